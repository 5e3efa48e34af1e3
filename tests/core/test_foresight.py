"""Looks ahead, at gate, sources, pickers and names: they change nothing, and say what follows."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from ipaddress import IPv4Network, IPv6Network, ip_address
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.access import AccessList
from proxy.core.admission import ORDERED, AdmissionLimits, Gate, Nobody
from proxy.core.balance.ways import Balance, picker_of
from proxy.core.rate import Rate
from proxy.core.server_names import RoutePattern, ServerNames
from proxy.core.sources import SourceTable
from proxy.core.steering import WORKERS_MAX, steering_program, worker_of
from proxy.core.upstream import HOME, Upstream
from tests.core.balance.endpoints import endpoints_of
from tests.core.classic_bpf import run
from tests.core.test_admission import HOSTS, some_limits
from tests.core.test_steering import Source, header

SOURCES = ["192.0.2.1", b"\xc0\x00\x02\x01", "uid:7", ""]


def books_of(thing: object, names: Iterable[str]) -> list[Any]:
    """What an object keeps, as it is now: a copy, which later changes do not reach."""
    return [deepcopy(getattr(thing, name)) for name in names]


class Others(Nobody):
    """Other workers, that have some flows, and have admitted some."""

    def __init__(self, flows: int, admitted: int) -> None:
        self._numbers = flows, admitted
        self.told: list[tuple[int, int]] = []

    def flows(self) -> int:
        return self._numbers[0]

    def admitted(self) -> int:
        return self._numbers[1]

    def tell(self, flows: int, admitted: int) -> None:
        self.told.append((flows, admitted))


steps = st.lists(
    st.tuples(st.sampled_from(HOSTS), st.sampled_from([0.0, 0.125, 1.0]), st.booleans()),
    max_size=12,
)


def gate_books(gate: Gate) -> list[Any]:
    sources = gate.sources
    return [
        *books_of(gate, ("flows", "admitted", "_full_at", "_seen")),
        [(each.key, each.flows, each.full_at, each.queued) for each in sources],
        [(when, place, source.key) for when, place, source in sources._queue],
        sources._idle,
    ]


@given(some_limits, steps, st.integers(0, 3), st.integers(0, 3), st.booleans(), st.data())
def test_a_look_at_the_gate_changes_nothing_and_says_what_would_strike(
    limits: AdmissionLimits,
    steps: list[tuple[str, float, bool]],
    flows: int,
    admitted: int,
    alone: bool,
    data: st.DataObject,
) -> None:
    others = Others(flows, admitted)
    gate = Gate(limits, idle_max=1) if alone else Gate(limits, others, idle_max=1)
    now, live = 0.0, []
    for host, pause, leaves in steps:
        now += pause
        if gate.refusal(gate.key(host), now) is None:
            live.append(gate.enter(gate.key(host), now))
        elif live:
            gate.leave(live.pop(0), now)
        if leaves and live:
            gate.leave(live.pop(), now)
    now += data.draw(st.sampled_from([0.0, 0.125, 4.0]))
    for host in HOSTS:
        key = gate.key(host)
        before, told = gate_books(gate), list(others.told)
        levels = gate.levels(key, now)
        assert gate_books(gate) == before
        assert others.told == told
        assert len(levels) == sum(
            each is not None
            for each in (limits.flows, limits.flow_rate, limits.source_flows, limits.source_rate)
        )
        reached = [each.limit for each in levels if each.is_reached]
        copy = deepcopy(gate)
        assert reached == copy.hits(key, now)
        assert next(iter(reached), None) == deepcopy(gate).refusal(key, now)
        for level in levels:
            if level.per_second is None:
                assert level.is_reached == (level.level >= level.ceiling)
            else:
                assert level.is_reached == (level.ceiling - level.level < 1 - 1e-6)


def test_a_rate_tells_what_of_its_burst_is_spent() -> None:
    gate = Gate(AdmissionLimits(flow_rate=Rate(1.0, 4.0)))
    for _ in range(3):
        gate.enter("", 10.0)
    (level,) = gate.levels("", 11.0)
    assert level[1:] == (2.0, 4.0, False, 1.0)
    assert level.limit not in ORDERED


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([0.0, 0.5, 2.0]))))
def test_a_source_is_seen_without_forgetting_anybody(steps: list[tuple[str, float]]) -> None:
    table, now = SourceTable(2), 0.0
    for key, pause in steps:
        now += pause
        source = table.enter(key, now)
        source.full_at = max(source.full_at, now) + 1.0
        table.leave(source, now)
        for asked in "abcdefg":
            for when in (now, now + 0.75, now + 9.0):
                before = [(each.key, each.full_at) for each in table], list(table._queue)
                seen = table.peek(asked, when)
                assert ([(each.key, each.full_at) for each in table], table._queue) == before
                found = deepcopy(table).find(asked, when)
                seen_at = 0.0 if seen is None else seen.full_at
                found_at = 0.0 if found is None else found.full_at
                assert max(seen_at, when) == max(found_at, when)  # one that is full is like none


loads = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), max_size=5)


@pytest.mark.parametrize("way", Balance)
@given(loads=loads, before=st.integers(0, 9), source=st.sampled_from(SOURCES), data=st.data())
def test_a_look_at_a_picker_changes_nothing_and_names_whom_it_picks(
    way: Balance,
    loads: list[tuple[int, int]],
    before: int,
    source: str | bytes,
    data: st.DataObject,
) -> None:
    random = Random(7)
    picker, twin = (picker_of(way, len(loads), random.random) for _ in range(2))
    endpoints = endpoints_of([weight for weight, _ in loads])
    for endpoint, (_, flows) in zip(endpoints, loads, strict=True):
        endpoint.flows = flows
    tried = data.draw(st.sets(st.sampled_from(endpoints))) if endpoints else set()
    for each in (picker, twin):
        each.become(endpoints)
        random.seed(7)
        for _ in range(before):
            each.pick((), source, 0.0)
    state = random.getstate()
    foreseen = [picker.foresee(tried, source, 0.0) for _ in range(3)]
    assert random.getstate() == state
    assert foreseen[0] == foreseen[1] == foreseen[2]
    picked = picker.pick(tried, source, 0.0)
    random.setstate(state)
    assert twin.pick(tried, source, 0.0) is picked  # which had never been looked at
    if picked is None:
        assert foreseen[0] == ()
    else:
        assert picked in foreseen[0]
        assert len(foreseen[0]) == 1 or way is Balance.RANDOM


def test_whom_chance_may_name_are_all_but_those_that_lose_to_everybody() -> None:
    endpoints = endpoints_of([1, 1, 2])
    for endpoint, flows in zip(endpoints, (3, 1, 2), strict=True):
        endpoint.flows = flows
    picker = picker_of(Balance.RANDOM, 3, Random(7).random)
    picker.become(endpoints)
    picked = {picker.pick((), "", 0.0) for _ in range(200)}
    assert picked == set(picker.foresee((), "", 0.0)) == set(endpoints[1:])


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 2, 3])), min_size=1, max_size=4))
def test_an_upstream_foresees_with_regard_to_who_is_full(loads: list[tuple[int, int]]) -> None:
    endpoints = endpoints_of([1] * len(loads))
    upstream = Upstream("web", endpoints)
    for endpoint, (flows, ceiling) in zip(endpoints, loads, strict=True):
        endpoint.become(1, backup=False, ceiling=ceiling)
        endpoint.flows = min(flows, ceiling)
    upstream.become(endpoints, HOME)
    for now in range(3):
        foreseen = upstream.foresee("", now)
        picked = upstream.pick((), "", now)
        assert foreseen == (() if picked is None else (picked,))


@given(st.lists(st.tuples(st.integers(0, 2**8 - 1), st.integers(0, 32), st.booleans())), st.data())
def test_the_entry_that_decides(rows: list[tuple[int, int, bool]], data: st.DataObject) -> None:
    networks = {
        IPv4Network((number << 24 | number << 4, bits), strict=False): allowed
        for number, bits, allowed in rows
    }
    networks_v6 = {IPv6Network("2001:db8::/32"): True, IPv6Network("2001:db8::/64"): False}
    verdicts = networks | networks_v6
    listed = AccessList(
        [each for each, allowed in verdicts.items() if allowed],
        [each for each, allowed in verdicts.items() if not allowed],
    )
    address = data.draw(st.ip_addresses(network="2001:db8::/31") | st.ip_addresses(v=4))
    holding = [each for each in verdicts if each.version == address.version and address in each]
    entry = listed.entry(str(address))
    assert entry == max(holding, key=lambda each: each.prefixlen, default=None)
    if entry is not None:
        assert listed.admits(str(address)) is verdicts[entry]


def test_the_pattern_that_decides() -> None:
    texts = ["www.example.org", "*.example.org", ".example.org/h2", "/h2"]
    patterns = [RoutePattern(*text.split("/")) for text in texts]
    names = ServerNames({each: str(each) for each in patterns})
    for name in (None, "www.example.org", "a.example.org", "a.b.example.org", "example.net"):
        for alpn in ((), ("h2",), ("http/1.1", "h2")):
            pattern, found = names.pattern(name, alpn), names.find(name, alpn)
            assert found == (None if pattern is None else str(pattern))
    assert names.pattern("a.b.example.org", ("h2",)) == RoutePattern(".example.org", "h2")
    assert names.pattern("a.b.example.org") is None


@given(st.integers(1, WORKERS_MAX), st.integers(0, 32), st.integers(0, 128), st.ip_addresses())
def test_the_worker_is_the_one_that_the_program_names(
    workers: int, prefix_v4: int, prefix_v6: int, source: Source
) -> None:
    index = run(steering_program(workers, prefix_v4, prefix_v6), header(source))
    assert worker_of(source, workers, prefix_v4, prefix_v6) == index


def test_most_clients_have_another_worker() -> None:
    assert len({worker_of(ip_address(n << 8), 16) for n in range(256)}) == 16
