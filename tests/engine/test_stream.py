"""What a TCP flow does with data, FIN and RST; each case with real sockets on loopback."""

from __future__ import annotations

import errno
import gc
import os
import sys
from contextlib import suppress
from socket import AF_INET, SHUT_WR, SO_ERROR, SO_RCVBUF, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET
from socket import socket as Socket

import pytest
import trio

from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.core.address import Transport
from proxy.core.expiry import FlowLimits
from proxy.core.query import FlowQuery
from proxy.engine.leg import LARGEST_CHUNK
from tests.engine.lab import (
    accept,
    closed_port,
    connect,
    is_refused,
    is_reset,
    listening,
    open_listener,
    pair,
    pass_both_ways,
    receive_all,
    receive_exactly,
    relaying,
    reset,
    send_all,
)

BULK = os.urandom(8 << 20)


async def test_bytes_go_both_ways_and_are_counted() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"question")
        assert await receive_exactly(accepted, 8) == b"question"
        await send_all(accepted, b"the answer")
        assert await receive_exactly(client, 10) == b"the answer"
        row = await lab.wait_live("established")
        assert row["original"] == {"bytes": 8, "packets": None}
        assert row["reply"] == {"bytes": 10, "packets": None}
        assert row["client"]["remote"] == "{}:{}".format(*client.getsockname())
        assert row["endpoint"]["local"] == "{}:{}".format(*accepted.getpeername())
        client.close()
        accepted.close()
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("finished", "client")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_bulk_both_ways_at_once(host: str) -> None:
    endpoint = listening(host)
    async with relaying([endpoint.getsockname()], host=host) as lab:
        client, accepted = await pair(lab, endpoint)
        await pass_both_ways(client, accepted, BULK)
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == "finished"
        assert ended["original"]["bytes"] == ended["reply"]["bytes"] == len(BULK)


async def test_client_half_closes_and_still_receives() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"all I have")
        client.shutdown(SHUT_WR)
        assert await receive_all(accepted) == b"all I have"
        await lab.wait_live("client_closed")
        await send_all(accepted, b"late answer")
        accepted.close()
        assert await receive_all(client) == b"late answer"
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("finished", "client")


async def test_endpoint_half_closes_and_still_receives() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(accepted, b"banner")
        accepted.shutdown(SHUT_WR)
        assert await receive_all(client) == b"banner"
        await lab.wait_live("endpoint_closed")
        await send_all(client, b"upload")
        client.close()
        assert await receive_all(accepted) == b"upload"
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("finished", "endpoint")


async def test_data_sent_before_the_endpoint_accepts_is_not_lost() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client = await connect(lab.address)
        await send_all(client, b"early")
        client.shutdown(SHUT_WR)
        accepted = await accept(endpoint)
        assert await receive_all(accepted) == b"early"
        accepted.close()
        assert await receive_all(client) == b""


async def test_an_endpoint_that_speaks_at_once_is_heard() -> None:
    """What it sends with its acceptance comes in the same edge as the connection itself."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab, trio.open_nursery() as nursery:

        async def greet() -> None:
            while True:
                accepted = await accept(endpoint)
                await accepted.send(b"welcome")
                accepted.close()

        nursery.start_soon(greet)
        for _ in range(50):
            client = await connect(lab.address)
            assert await receive_all(client) == b"welcome"
            client.close()
        nursery.cancel_scope.cancel()


async def test_reset_by_the_client_reaches_the_endpoint() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await lab.wait_live("established")
        reset(client)
        assert await is_reset(accepted)
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("client_reset", "client")


async def test_reset_by_the_endpoint_reaches_the_client_after_its_data() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(accepted, b"last words")
        await lab.wait_counter(lambda c: c["listeners"][0]["reply"]["received"], 10)
        reset(accepted)
        assert await receive_exactly(client, 10) == b"last words"
        assert await is_reset(client)
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("endpoint_reset", "endpoint")


async def test_an_answer_before_the_whole_request_is_read_is_delivered() -> None:
    """An endpoint answers and closes with the request unread: its kernel sends RST."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:

            async def upload() -> None:  # and see the reset that follows the answer
                with pytest.raises((ConnectionResetError, BrokenPipeError)):
                    await send_all(client, BULK * 4)

            nursery.start_soon(upload)
            await receive_exactly(accepted, 1000)
            await send_all(accepted, b"413 too large")
            await lab.wait_counter(lambda c: c["listeners"][0]["reply"]["received"], 13)
            accepted.close()
            assert await receive_exactly(client, 13) == b"413 too large"
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("endpoint_reset", "endpoint")
        counters = (await lab.counters())["listeners"][0]["original"]
        assert counters["buffered"] == 0
        assert counters["sent"] < counters["received"]


async def test_bytes_of_a_clean_end_arrive_before_the_reset() -> None:
    """FIN, then RST from the same side; the other side reads slowly, and misses nothing."""
    endpoint = listening()
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
    data = BULK[: 64 << 10]
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, data)
        client.shutdown(SHUT_WR)
        await lab.wait_live("client_closed")
        reset(client)
        await lab.wait_live("closing")
        assert await receive_exactly(accepted, len(data)) == data
        await lab.wait_ended()


async def test_refusing_endpoint_gives_the_client_a_reset() -> None:
    async with relaying([closed_port()]) as lab:
        client = await connect(lab.address)
        assert await is_reset(client)
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("connect_refused", "endpoint")
        (endpoint,) = (await lab.counters())["endpoints"]
        assert endpoint["failures"]["connect_refused"] == endpoint["attempts"] == 1
        assert not endpoint["up"]


async def test_the_next_endpoint_is_tried_when_one_refuses() -> None:
    endpoint = listening()
    async with relaying([closed_port(), endpoint.getsockname()]) as lab:
        for _ in range(3):
            client, accepted = await pair(lab, endpoint)
            await send_all(client, b"x")
            assert await receive_exactly(accepted, 1) == b"x"
            client.close()
            accepted.close()
        rows = await lab.wait_ended(3)
        assert {row["close_reason"] for row in rows} == {"finished"}


async def test_flows_go_round_the_endpoints() -> None:
    endpoints = [listening() for _ in range(3)]
    async with relaying([endpoint.getsockname() for endpoint in endpoints]) as lab:
        for _ in range(6):
            await connect(lab.address)
        for endpoint in endpoints:
            await accept(endpoint)
            await accept(endpoint)


async def test_silent_endpoint_is_a_connect_timeout() -> None:
    """A full accept queue drops the SYN, as a dead host does."""
    endpoint = listening(backlog=0)
    fillers = [Socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK) for _ in range(4)]
    for filler in fillers:
        filler.connect_ex(endpoint.getsockname())
    async with relaying([endpoint.getsockname()], limits=FlowLimits(connect=0.2)) as lab:
        client = await connect(lab.address)
        await lab.wait_live("connecting")
        assert await is_reset(client)
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("connect_timeout", "endpoint")
    for filler in fillers:
        filler.close()


async def test_the_next_endpoint_is_tried_when_one_is_silent() -> None:
    silent, endpoint = listening(backlog=0), listening()
    fillers = [Socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK) for _ in range(4)]
    for filler in fillers:
        filler.connect_ex(silent.getsockname())
    addresses = [silent.getsockname(), silent.getsockname(), endpoint.getsockname()]
    async with relaying(addresses, limits=FlowLimits(connect=0.8)) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"x")
        assert await receive_exactly(accepted, 1) == b"x"
        failures = [endpoint["failures"] for endpoint in (await lab.counters())["endpoints"]]
        assert [failed["connect_timeout"] for failed in failures] == [1, 1, 0]
    for filler in fillers:
        filler.close()


async def test_client_that_resets_while_connecting_ends_the_flow() -> None:
    endpoint = listening(backlog=0)
    fillers = [Socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK) for _ in range(4)]
    for filler in fillers:
        filler.connect_ex(endpoint.getsockname())
    async with relaying([endpoint.getsockname()]) as lab:
        client = await connect(lab.address)
        await lab.wait_live("connecting")
        reset(client)
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("client_reset", "client")
    for filler in fillers:
        filler.close()


async def test_unreachable_endpoint() -> None:
    async with relaying([("255.255.255.255", 9)]) as lab:
        assert await is_refused(lab.address)
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == "unreachable"


async def test_a_peer_that_never_reads_blocks_its_sender_and_nothing_grows() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, BULK * 8)
            await lab.wait_counter(lambda each: each["listeners"][0]["original"]["buffered"], 1)
            await trio.sleep(0.1)
            assert nursery.child_tasks, "the sender was not held back"
            nursery.cancel_scope.cancel()
        counters = (await lab.counters())["listeners"][0]["original"]
        assert 0 < counters["buffered"] <= LARGEST_CHUNK
        assert counters["received"] == counters["sent"] + counters["buffered"]
        received = await receive_exactly(accepted, counters["received"])
        assert received == (BULK * 8)[: len(received)]


async def test_a_stalled_flow_does_not_hold_up_another() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        stalled, _never_reads = await pair(lab, endpoint)
        with trio.move_on_after(0.1):
            await send_all(stalled, BULK * 8)
        client, accepted = await pair(lab, endpoint)
        for _ in range(20):
            await send_all(client, b"ping")
            assert await receive_exactly(accepted, 4) == b"ping"


CLOCKS = [
    (FlowLimits(idle=0.15), "established", "idle_timeout"),
    (FlowLimits(half_closed=0.15), "client_closed", "half_closed_timeout"),
    (FlowLimits(duration=0.15), "established", "max_duration"),
]


@pytest.mark.parametrize(("limits", "state", "reason"), CLOCKS)
async def test_each_clock_ends_the_flow_with_a_reset(
    limits: FlowLimits, state: str, reason: str
) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], limits=limits) as lab:
        client, accepted = await pair(lab, endpoint)
        if state == "client_closed":
            client.shutdown(SHUT_WR)
            assert await receive_all(accepted) == b""
        assert await is_reset(client)
        (ended,) = await lab.wait_ended()
        # Linux tells a RST after a FIN as EPIPE (net/ipv4/tcp_input.c, tcp_reset).
        error = errno.EPIPE if state == "client_closed" else errno.ECONNRESET
        assert accepted.getsockopt(SOL_SOCKET, SO_ERROR) == error
        assert (ended["close_reason"], ended["close_side"]) == (reason, "proxy")
        assert ended["state"] == state


async def test_payload_keeps_an_idle_flow_alive() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], limits=FlowLimits(idle=0.3)) as lab:
        client, accepted = await pair(lab, endpoint)
        for _ in range(8):
            await trio.sleep(0.1)
            await send_all(client, b"x")
            assert await receive_exactly(accepted, 1) == b"x"


async def test_a_killed_flow_is_reset_on_both_sides() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        row = await lab.wait_live("established")
        assert await lab.worker.kill(FlowQuery(id=row["id"])) == 1
        assert await is_reset(client)
        assert await is_reset(accepted)
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["close_side"]) == ("killed", "proxy")


async def test_a_full_table_refuses_with_a_reset_and_keeps_what_it_has() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()], table_limit=1) as lab:
        client, accepted = await pair(lab, endpoint)
        await lab.wait_live("established")
        assert await is_refused(lab.address)
        await send_all(client, b"still here")
        assert await receive_exactly(accepted, 10) == b"still here"
        counters = await lab.counters()
        assert counters["listeners"][0]["refused"]["table_full"] == 1
        assert counters["table_entries"] == 1


async def test_a_thousand_clients_that_leave_at_once() -> None:
    endpoint = listening(backlog=4096)
    async with relaying([endpoint.getsockname()]) as lab:
        clients = [await connect(lab.address) for _ in range(1000)]
        for number, client in enumerate(clients):
            if number % 2:
                reset(client)
            else:
                client.close()
        async with trio.open_nursery() as nursery:

            async def endpoint_side() -> None:
                while True:
                    accepted = await accept(endpoint)
                    accepted.close()

            nursery.start_soon(endpoint_side)
            rows = await lab.wait_ended(1000)
            nursery.cancel_scope.cancel()
        assert {row["close_reason"] for row in rows} <= {
            "finished",
            "client_reset",
            "endpoint_reset",
        }
        assert lab.worker._relay.files.used == 0
        assert len(lab.worker._relay.wheel) == 0


async def test_stop_ends_flows_as_drained() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await lab.wait_live("established")
        assert lab.worker.stop() == 1
        assert await is_reset(client)
        assert await is_reset(accepted)
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == "drained"


async def test_a_fault_of_ours_ends_one_flow_as_internal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from proxy.engine.leg import StreamLeg

    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        victim, _ = await pair(lab, endpoint)
        bystander, accepted = await pair(lab, endpoint)
        healthy = StreamLeg.ready

        def faulty(self: StreamLeg, mask: int, now: float) -> None:
            if self.flow.id == 1:
                raise RuntimeError("planted")
            healthy(self, mask, now)

        monkeypatch.setattr(StreamLeg, "ready", faulty)
        await send_all(victim, b"x")
        assert await is_reset(victim)
        await send_all(bystander, b"fine")
        assert await receive_exactly(accepted, 4) == b"fine"
        (ended,) = await lab.ended()
        assert ended["close_reason"] == "internal"


async def test_a_reset_waits_for_what_came_before_it_only_so_long() -> None:
    endpoint = listening()
    endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
    async with relaying([endpoint.getsockname()], limits=FlowLimits(linger=0.2)) as lab:
        client, _never_reads = await pair(lab, endpoint)
        await send_all(client, BULK[: 64 << 10])
        client.shutdown(SHUT_WR)
        await lab.wait_live("client_closed")
        reset(client)
        await lab.wait_live("closing")
        (ended,) = await lab.wait_ended()
        assert (ended["close_reason"], ended["state"]) == ("client_reset", "closing")


async def test_a_byte_at_a_time_passes_at_once() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        for number in range(50):
            await send_all(client, bytes([number]))
            assert await receive_exactly(accepted, 1) == bytes([number])


@pytest.mark.parametrize("side", ["client", "endpoint"])
async def test_a_reset_in_the_middle_of_a_chunk_delivers_a_prefix(side: str) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        sender, receiver = (client, accepted) if side == "client" else (accepted, client)
        received = bytearray()

        async def receive() -> None:
            with suppress(ConnectionResetError):
                while part := await receiver.recv(1 << 16):
                    received.extend(part)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with trio.move_on_after(0.05):
                await send_all(sender, BULK * 8)
            reset(sender)
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == f"{side}_reset"
        assert bytes(received) == (BULK * 8)[: len(received)]
        assert (await lab.counters())["listeners"][0]["original"]["buffered"] == 0


@pytest.mark.parametrize("first", ["client", "endpoint"])
async def test_both_sides_end_at_once(first: str) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client, accepted = await pair(lab, endpoint)
        await send_all(client, b"a")
        await send_all(accepted, b"b")
        for socket in (client, accepted) if first == "client" else (accepted, client):
            socket.shutdown(SHUT_WR)
        assert await receive_all(client) == b"b"
        assert await receive_all(accepted) == b"a"
        (ended,) = await lab.wait_ended()
        assert ended["close_reason"] == "finished"


@pytest.mark.slow
async def test_ten_thousand_connects_that_close_at_once() -> None:
    endpoint = listening(backlog=4096)
    async with relaying([endpoint.getsockname()], table_limit=20_000) as lab:
        async with trio.open_nursery() as nursery:

            async def endpoint_side() -> None:
                while True:
                    accepted, _ = await endpoint.accept()
                    accepted.close()

            nursery.start_soon(endpoint_side)
            for _ in range(10_000):
                client = Socket(AF_INET, SOCK_STREAM)
                client.connect_ex(lab.address)
                client.close()
                await trio.lowlevel.checkpoint()
            with trio.fail_after(60):
                rows = await lab.wait_ended(10_000)
            nursery.cancel_scope.cancel()
        assert len(rows) == 10_000
        assert not {row["close_reason"] for row in rows} & {"internal", "idle_timeout"}
        assert lab.worker._relay.files.used == 0


async def test_an_ended_flow_is_freed_without_the_collector() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        gc.disable()
        try:
            client, accepted = await pair(lab, endpoint)
            await lab.wait_live("established")
            (flow,) = lab.worker._relay.table
            legs = [sys.getrefcount(leg) for leg in (flow.original, flow.reply)]
            client.close()
            accepted.close()
            await lab.wait_ended()
            after = [sys.getrefcount(leg) for leg in (flow.original, flow.reply)]
        finally:
            gc.enable()
        assert all(now < before for now, before in zip(after, legs, strict=True))


async def test_listeners_that_feed_each_other_in_a_ring_do_not_go_round() -> None:
    sockets = [bind_socket(ListenAddress(Transport.TCP, "127.0.0.1", 0)) for _ in range(2)]
    addresses = [socket.getsockname() for socket in sockets]
    async with relaying([addresses[0]]) as lab:
        for number, socket in enumerate(sockets):
            await open_listener(lab.worker, f"ring{number}", socket, [addresses[1 - number]])
        assert await is_refused(lab.address)
        await lab.wait_ended(3)
        refused = [row["refused"]["loop"] for row in (await lab.counters())["listeners"]]
        assert sum(refused) == 1
