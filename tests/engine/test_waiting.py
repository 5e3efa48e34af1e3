"""Clients that wait at a full listener, with real sockets: who enters, who is refused, who goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from socket import SHUT_WR
from time import monotonic

import pytest
import trio
from trio.socket import SocketType

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.query import FlowQuery
from proxy.core.rate import Rate
from proxy.core.waiting import WaitLimits
from proxy.engine.specs import EVERYTHING, DrainOrder, DrainTarget, OpenListener
from proxy.engine.waiting import AHEAD, ENTRIES_PER_TURN
from tests.engine.lab import (
    PACE,
    UPSTREAMS,
    Lab,
    accept,
    change,
    connect,
    is_refused,
    is_reset,
    listening,
    open_listener,
    pair,
    relaying,
    reset,
)
from tests.engine.test_admission import ONE, OTHER, SELDOM, become, counts, gate_of, spec
from tests.engine.test_unix import relaying as unix_relaying
from tests.engine.test_unix import unix_client

ONE_FLOW = AdmissionLimits(flows=1)
LONG = WaitLimits(time=3600.0, flows=10)


@pytest.fixture(autouse=True)
def _no_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is to be served is to be served for a reason, and not because a second is over."""
    monkeypatch.setattr("proxy.engine.waiting.LONGEST_ALARM", 3600.0)
    monkeypatch.setattr("proxy.core.waiting.REST", 3600.0)


async def number(lab: Lab, what: str) -> int:
    (row,) = (row for row in (await lab.counters())["listeners"] if row["listener"] == "lab")
    value: int = row[what]  # type: ignore[literal-required]
    return value


async def wait_waiting(lab: Lab, count: int) -> None:
    while await number(lab, "waiting") != count:
        await trio.sleep(0.002)


def used_files(lab: Lab) -> int:
    return lab.worker._relay.files.used


async def test_who_finds_no_place_waits_and_what_it_sent_is_served_first() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        first, _ = await pair(lab, endpoint)
        second = await connect(lab.address)
        await second.send(b"early")
        await wait_waiting(lab, 1)
        assert used_files(lab) == 3
        reset(first)
        accepted = await accept(endpoint)
        assert await accepted.recv(100) == b"early"
        await accepted.send(b"answer")
        assert await second.recv(100) == b"answer"
        assert await counts(lab) == await counts(lab, "hits") == {}
        assert await number(lab, "waited") == 1
        reset(second)
        await lab.wait_ended(2)
        assert (used_files(lab), gate_of(lab).flows) == (0, 0)


async def test_who_came_first_enters_first() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        last, _ = await pair(lab, endpoint)
        clients = []
        for n in range(3):
            clients.append(await connect(lab.address))
            await clients[n].send(b"%d" % n)
            await wait_waiting(lab, n + 1)
        for n in range(3):
            reset(last)
            accepted = await accept(endpoint)
            assert await accepted.recv(100) == b"%d" % n
            last = clients[n]


async def test_a_source_at_its_ceiling_holds_up_nobody_else() -> None:
    endpoint = listening()
    limits = AdmissionLimits(source_flows=1)
    async with relaying([endpoint.getsockname()], admission=limits, waiting=LONG) as lab:
        await connect(lab.address, ONE)
        await accept(endpoint)
        await connect(lab.address, ONE)
        await wait_waiting(lab, 1)
        await connect(lab.address, OTHER)
        await accept(endpoint)
        assert await number(lab, "waiting") == 1


@pytest.mark.parametrize("rate", ["flow_rate", "source_rate"])
async def test_a_token_lets_the_next_one_in(rate: str) -> None:
    endpoint = listening()
    limits = AdmissionLimits(**{rate: Rate(20.0, 1.0)})  # type: ignore[arg-type]
    async with relaying([endpoint.getsockname()], admission=limits, waiting=LONG) as lab:
        for _ in range(4):
            await connect(lab.address)
        for _ in range(4):
            await accept(endpoint)
        assert await counts(lab) == {}


async def test_whose_time_is_over_is_refused_by_the_limit() -> None:
    endpoint = listening()
    brief = WaitLimits(time=0.01, flows=10)
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=brief) as lab:
        await pair(lab, endpoint)
        assert await is_refused(lab.address)
        assert await counts(lab) == await counts(lab, "hits") == {"listener_flows": 1}
        assert await number(lab, "waiting") == 0
        assert used_files(lab) == 2


async def test_when_as_many_wait_as_may_the_next_is_refused() -> None:
    endpoint = listening()
    two = WaitLimits(time=3600.0, flows=2)
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=two) as lab:
        await pair(lab, endpoint)
        for _ in range(2):
            await connect(lab.address)
        assert await is_refused(lab.address)
        assert await counts(lab) == {"listener_flows": 1}
        assert await number(lab, "waiting") == 2


@pytest.mark.parametrize(
    ("how", "said"), [("close", b""), ("end", b""), ("reset", b""), ("reset", b"words")]
)
async def test_who_goes_away_is_forgotten(how: str, said: bytes) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        client = await connect(lab.address)
        await client.send(said)
        await wait_waiting(lab, 1)
        match how:
            case "reset":
                reset(client)
            case "close":
                client.close()
            case "end":
                client.shutdown(SHUT_WR)
                assert await is_reset(client)
        await wait_waiting(lab, 0)
        assert await number(lab, "abandoned") == 1
        assert await counts(lab) == {}
        assert used_files(lab) == 2


async def test_who_has_spoken_and_ended_waits_for_its_answer() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        first, _ = await pair(lab, endpoint)
        client = await connect(lab.address)
        await client.send(b"question")
        client.shutdown(SHUT_WR)
        await wait_waiting(lab, 1)
        reset(first)
        accepted = await accept(endpoint)
        assert await accepted.recv(100) == b"question"
        assert await accepted.recv(100) == b""
        await accepted.send(b"answer")
        assert await client.recv(100) == b"answer"


async def test_a_reload_with_more_places_lets_them_in() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        for _ in range(2):
            await connect(lab.address)
        await wait_waiting(lab, 2)
        await become(lab, endpoint, admission=AdmissionLimits(flows=2), waiting=LONG)
        await accept(endpoint)
        assert await number(lab, "waiting") == 1
        await become(lab, endpoint, admission=AdmissionLimits(flows=9, source_flows=9))
        await accept(endpoint)
        assert await number(lab, "waiting") == 0
        assert await counts(lab) == {}


@pytest.mark.parametrize("limits", [None, WaitLimits(time=0.0, flows=10)])
async def test_a_reload_to_refusal_or_less_time_refuses_who_waits(
    limits: WaitLimits | None,
) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        client = await connect(lab.address)
        await wait_waiting(lab, 1)
        await become(lab, endpoint, admission=ONE_FLOW, waiting=limits)
        assert await is_reset(client)
        assert await counts(lab) == {"listener_flows": 1}
        assert await number(lab, "waiting") == 0


async def test_a_reload_bounds_how_many_wait_from_then_on() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        for _ in range(2):
            await connect(lab.address)
        await wait_waiting(lab, 2)
        fewer = WaitLimits(time=3600.0, flows=1)
        await become(lab, endpoint, admission=ONE_FLOW, waiting=fewer)
        assert await number(lab, "waiting") == 2  # who waits already stays
        assert await is_refused(lab.address)
        assert await counts(lab) == {"listener_flows": 1}


async def test_a_reload_counts_the_time_that_has_been_waited() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        clients = []
        for n in range(2):
            clients.append(await connect(lab.address))
            await wait_waiting(lab, n + 1)
        room = lab.worker._roster.terms["lab"].waiting
        assert room is not None
        next(iter(room._lines)).since -= 120.0
        less = WaitLimits(time=60.0, flows=10)
        await become(lab, endpoint, admission=ONE_FLOW, waiting=less)
        assert await is_reset(clients[0])
        assert await number(lab, "waiting") == 1


@pytest.mark.parametrize("target", [DrainTarget(listener="lab"), EVERYTHING])
async def test_a_drain_refuses_who_waits(target: DrainTarget) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        client = await connect(lab.address)
        await wait_waiting(lab, 1)
        await lab.worker.drain(DrainOrder(target, PACE))
        assert await is_reset(client)
        assert await counts(lab) == {"draining": 1}
        assert used_files(lab) == 2


async def test_a_stop_leaves_nobody_behind() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        client = await connect(lab.address)
        await wait_waiting(lab, 1)
        lab.worker.stop()
        assert await is_reset(client)
        assert (used_files(lab), await number(lab, "waiting")) == (0, 0)


async def test_a_place_that_a_kill_makes_is_taken() -> None:
    endpoint = listening()
    limits = AdmissionLimits(source_flows=1, flow_rate=Rate(SELDOM, 2))
    async with relaying([endpoint.getsockname()], admission=limits, waiting=LONG) as lab:
        await pair(lab, endpoint)
        for _ in range(2):
            await connect(lab.address)
        await wait_waiting(lab, 2)
        assert await lab.worker.kill(FlowQuery()) == 1
        await accept(endpoint)
        assert await number(lab, "waiting") == 1


async def test_clients_of_a_unix_socket_wait_too(tmp_path: Path) -> None:
    """Of one user, and so of one source, in the order of arrival."""
    endpoint = listening()
    limits = AdmissionLimits(source_flows=1)
    door = tmp_path / "door"
    async with unix_relaying(
        f"unix://{door}", [endpoint.getsockname()], admission=limits, waiting=LONG
    ) as lab:
        last = await unix_client(door)
        await last.send(b"first")
        accepted = await accept(endpoint)
        assert await accepted.recv(100) == b"first"
        clients = []
        for n in range(3):
            clients.append(await unix_client(door))
            await clients[n].send(b"%d" % n)
            await wait_waiting(lab, n + 1)
        gone = await unix_client(door)
        await wait_waiting(lab, 4)
        gone.close()
        await wait_waiting(lab, 3)
        assert await number(lab, "abandoned") == 1
        for n in range(3):
            last.close()
            accepted.close()
            last = clients[n]
            accepted = await accept(endpoint)
            assert await accepted.recv(100) == b"%d" % n
            await accepted.send(b"answer")
            assert await last.recv(100) == b"answer"
        assert await number(lab, "waited") == 4
        last.close()
        accepted.close()
        await lab.wait_ended(4)
        assert used_files(lab) == 0


async def test_who_were_two_sources_and_are_one_wait_in_one_line() -> None:
    endpoint = listening()
    apart = AdmissionLimits(source_flows=1)
    together = AdmissionLimits(source_flows=2, prefix_v4=8)
    async with relaying([endpoint.getsockname()], admission=apart, waiting=LONG) as lab:
        first = await connect(lab.address, ONE)
        await accept(endpoint)
        await connect(lab.address, OTHER)
        await accept(endpoint)
        for n, host in enumerate((OTHER, ONE)):
            client = await connect(lab.address, host)
            await client.send(b"%d" % n)
            await wait_waiting(lab, n + 1)
        await become(lab, endpoint, admission=together, waiting=LONG)
        assert await number(lab, "waiting") == 2
        reset(first)
        assert await (await accept(endpoint)).recv(100) == b"0"  # which was of the other source
        assert await number(lab, "waiting") == 1
        assert gate_of(lab).flows == 2


@pytest.mark.parametrize("waiting", [LONG, None])
async def test_who_was_of_a_full_source_and_is_of_its_own_enters(
    waiting: WaitLimits | None,
) -> None:
    endpoint = listening()
    together = AdmissionLimits(source_flows=1, prefix_v4=8)
    async with relaying([endpoint.getsockname()], admission=together, waiting=LONG) as lab:
        await connect(lab.address, ONE)
        await accept(endpoint)
        for n, host in enumerate((ONE, OTHER)):
            client = await connect(lab.address, host)
            await client.send(host.encode())
            await wait_waiting(lab, n + 1)
        await become(lab, endpoint, admission=AdmissionLimits(source_flows=1), waiting=waiting)
        assert await (await accept(endpoint)).recv(100) == OTHER.encode()
        assert await number(lab, "waiting") == (waiting is not None)
        assert await counts(lab) == ({} if waiting else {"source_flows": 1})


async def test_a_dry_run_keeps_nobody_waiting() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        await pair(lab, endpoint)
        clients = [await connect(lab.address) for _ in range(2)]
        await wait_waiting(lab, 2)
        dry = AdmissionLimits(flows=1, dry_run=True)
        await become(lab, endpoint, admission=dry, waiting=LONG)
        for client in clients:
            await (await accept(endpoint)).send(b"x")
            assert await client.recv(1) == b"x"
        await pair(lab, endpoint)
        assert await number(lab, "waiting") == 0
        assert await counts(lab) == await counts(lab, "hits") == {}
        assert await counts(lab, "dry_run_hits") == {"listener_flows": 1}  # by the last
        await become(lab, endpoint, admission=ONE_FLOW, waiting=LONG)
        await connect(lab.address)
        await wait_waiting(lab, 1)


async def test_whom_a_full_table_keeps_out_in_its_turn_is_refused() -> None:
    """The gate has a place, but the table has none, and nobody in it may go."""
    endpoint = listening()
    async with relaying(
        [endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG, table_limit=2
    ) as lab:
        beside = bind_socket(ListenAddress(Transport.TCP, "127.0.0.1", 0))
        await open_listener(lab.worker, "beside", beside, [endpoint.getsockname()])
        await pair(lab, endpoint)
        clients = [await connect(lab.address) for _ in range(2)]
        await wait_waiting(lab, 2)
        await connect(beside.getsockname())
        await accept(endpoint)
        upstreams = UPSTREAMS[lab.worker].values()
        wider = spec(lab.transport, admission=AdmissionLimits(flows=3), waiting=LONG)
        await lab.worker.apply(change(*upstreams, changed=(wider,), table_limit=2))
        assert await counts(lab) == {"table_full": 2}  # both at once
        assert await counts(lab, "hits") == {}
        assert await number(lab, "waiting") == 0
        for client in clients:
            assert await is_reset(client)
        assert (used_files(lab), gate_of(lab).flows) == (4, 1)


class Elsewhere:
    """Other workers, with a flow until it is taken away; remembers what they are told."""

    def __init__(self) -> None:
        self.live = 1
        self.told: list[tuple[int, int]] = []
        self.since = self.told_since = inf

    def flows(self) -> int:
        return self.live

    def admitted(self) -> int:
        return 1

    def tell(self, flows: int, admitted: int) -> None:
        self.told.append((flows, admitted))

    def waits_since(self, not_before: float) -> float:
        return self.since if self.since >= not_before else inf

    def tell_waiting(self, since: float) -> None:
        self.told_since = since


async def test_a_place_that_comes_to_nothing_is_given_back_to_other_workers() -> None:
    """Who asks for a place tells of a flow, and must take it back if the table has no room."""
    endpoint = listening()
    two = AdmissionLimits(flows=2)
    async with relaying(
        [endpoint.getsockname()], admission=two, waiting=LONG, table_limit=1
    ) as lab:
        await pair(lab, endpoint)
        gate = gate_of(lab)
        others = Elsewhere()
        gate.join(others)
        assert await is_refused(lab.address)  # the table is full, whatever the gate says
        lab.worker._relay.table.resize(2, 10)
        client = await connect(lab.address)
        await wait_waiting(lab, 1)
        lab.worker._relay.table.resize(1, 10)
        others.live = 0
        room = lab.worker._roster.terms["lab"].waiting
        assert room is not None
        room.wake(monotonic())
        assert await is_reset(client)
        assert await counts(lab) == {"table_full": 2}
        assert (2, gate.admitted) in others.told
        assert others.told[-1] == (1, gate.admitted)


async def test_who_comes_when_a_place_is_free_does_not_overtake_who_waits() -> None:
    """Another worker has freed it, which is learnt of at the next tick, or by asking."""
    endpoint = listening()
    two = AdmissionLimits(flows=2)
    async with relaying([endpoint.getsockname()], admission=two, waiting=LONG) as lab:
        await pair(lab, endpoint)
        others = Elsewhere()
        gate_of(lab).join(others)
        first = await connect(lab.address)
        await first.send(b"first")
        await wait_waiting(lab, 1)
        others.live = 0
        await (await connect(lab.address)).send(b"second")
        assert await (await accept(endpoint)).recv(100) == b"first"
        assert await number(lab, "waiting") == 1


@pytest.mark.parametrize("waits", [True, False])
async def test_more_than_enter_in_a_turn_enter_in_the_next(waits: bool) -> None:
    count = 2 * ENTRIES_PER_TURN + 1
    endpoint = listening()
    room = WaitLimits(time=3600.0, flows=count)
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=room) as lab:
        await pair(lab, endpoint)
        for _ in range(count):
            await connect(lab.address)
        await wait_waiting(lab, count)
        wider = AdmissionLimits(flows=1 + count)
        await become(lab, endpoint, admission=wider, waiting=room if waits else None)
        for _ in range(count):
            await accept(endpoint)
        assert await number(lab, "waiting") == 0


async def test_a_socket_that_closes_takes_nobody_along_who_came_by_another() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], admission=ONE_FLOW, waiting=LONG) as lab:
        stays, goes = (bind_socket(ListenAddress(Transport.TCP, "127.0.0.1", 0)) for _ in range(2))
        again = stays.dup()
        limits = spec(lab.transport, admission=ONE_FLOW, waiting=LONG)
        upstream = UPSTREAMS[lab.worker]["lab"]
        both = OpenListener(limits, (stays, goes))
        await lab.worker.apply(change(upstream, opened=(both,)))
        first = await connect(stays.getsockname())
        await accept(endpoint)
        clients = [await connect(each.getsockname()) for each in (stays, goes)]
        await wait_waiting(lab, 2)
        await lab.worker.apply(change(upstream, opened=(OpenListener(limits, (again,)),)))
        assert await is_reset(clients[1])
        assert await counts(lab) == {"draining": 1}
        assert await number(lab, "waiting") == 1
        reset(first)
        await accept(endpoint)


@asynccontextmanager
async def beside_another() -> AsyncIterator[tuple[Lab, SocketType, Elsewhere]]:
    """A listener of two flows with one here, its endpoint, and another worker with the second."""
    endpoint = listening()
    two = AdmissionLimits(flows=2)
    async with relaying([endpoint.getsockname()], admission=two, waiting=LONG, slot=0) as lab:
        await pair(lab, endpoint)
        others = Elsewhere()
        gate_of(lab).join(others)
        yield lab, endpoint, others


async def test_a_tick_finds_the_place_that_another_worker_has_freed() -> None:
    async with beside_another() as (lab, endpoint, others):
        await connect(lab.address)
        await wait_waiting(lab, 1)
        others.live = 0
        lab.worker._roster.look_around(monotonic())
        await accept(endpoint)
        assert await number(lab, "waiting") == 0


async def test_a_place_is_left_to_who_has_waited_longer_at_another_worker() -> None:
    async with beside_another() as (lab, endpoint, others):
        came = monotonic()
        await connect(lab.address)
        await wait_waiting(lab, 1)
        assert came <= others.told_since <= monotonic()
        others.live, others.since = 0, came - 2 * AHEAD
        lab.worker._roster.look_around(monotonic())
        await connect(lab.address)  # nor does a newcomer take it
        await wait_waiting(lab, 2)
        assert others.told[-1] == (1, gate_of(lab).admitted)
        others.since = came - AHEAD / 2  # so near that it is not worth the time until a tick
        lab.worker._roster.look_around(monotonic())
        await accept(endpoint)
        await wait_waiting(lab, 1)
        others.since = inf
        lab.worker._roster.terms["lab"].waiting.dissolve(monotonic())
        assert others.told_since == inf


async def test_who_should_wait_no_more_at_another_worker_is_not_waited_for() -> None:
    async with beside_another() as (lab, endpoint, others):
        others.live, others.since = 0, monotonic() - LONG.time - 1
        await connect(lab.address)
        await accept(endpoint)
