"""The turns of sources: even, complete, bounded."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.source import ANY_PORT, TRIES_MAX, SourcePool


def first(pool: SourcePool, remote: str = "192.0.2.1") -> tuple[str, int]:
    return next(pool.candidates(remote))


def test_addresses_take_turns_and_the_kernel_chooses_ports() -> None:
    pool = SourcePool(["10.0.0.1", "10.0.0.2"])
    assert [first(pool) for _ in range(3)] == [("10.0.0.1", 0), ("10.0.0.2", 0), ("10.0.0.1", 0)]


def test_the_remote_host_decides_about_the_version() -> None:
    pool = SourcePool(["10.0.0.1", "fd00::1"])
    assert first(pool, "2001:db8::1") == ("fd00::1", 0)
    assert first(pool) == ("10.0.0.1", 0)
    assert list(SourcePool(["10.0.0.1"]).candidates("2001:db8::1")) == []


def test_ports_alone_leave_the_address_to_routing() -> None:
    pool = SourcePool([], range(5000, 5002))
    assert [first(pool), first(pool)] == [("0.0.0.0", 5000), ("0.0.0.0", 5001)]
    assert first(pool, "::1") == ("::", 5000)


def test_what_is_tried_for_one_flow_is_bounded() -> None:
    assert len(list(SourcePool(["10.0.0.1"], range(1, 60000)).candidates("192.0.2.1"))) == TRIES_MAX
    assert len(list(SourcePool(["10.0.0.1"]).candidates("192.0.2.1"))) == 1


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_every_source_has_its_turn_before_any_has_two(
    hosts: int, ports: int, data: st.DataObject
) -> None:
    pool = SourcePool([f"10.0.0.{n}" for n in range(hosts)], range(1000, 1000 + ports))
    used: Counter[tuple[str, int]] = Counter()
    for _ in range(2 * hosts * ports):
        tries = data.draw(st.integers(1, 3))  # some are taken, and passed over
        used.update(islice(pool.candidates("192.0.2.1"), tries))
        spread = [used[(f"10.0.0.{h}", 1000 + p)] for h in range(hosts) for p in range(ports)]
        assert max(spread) - min(spread) <= 1


def test_without_a_range_there_is_one_port() -> None:
    assert list(ANY_PORT) == [0]
