"""TCP flows: how they begin, half-close, time out and end, and that both sides see it rightly."""

from __future__ import annotations

import socket

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import SLOWNESS, until
from tests.e2e.program import free_port
from tests.e2e.sockets import (
    Serve,
    connect,
    echo,
    expect_refusal,
    expect_reset,
    listen,
    receive_all,
    receive_exactly,
    reset,
    say,
    text_of,
    unanswered_endpoint,
)
from tests.e2e.subject import Forward, agree_nothing_lost

GREETINGS = 300
"""Tries, because it takes a close race to get both into one event."""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_table_shows_both_socket_pairs(stage: Stage, host: str) -> None:
    peers: list[str] = []

    async def remember(stream: trio.SocketStream) -> None:
        peers.append(text_of(stream.socket.getpeername()))
        await echo(stream)

    endpoint = await listen(stage.nursery, remember, host)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint], host))
    async with await connect(web.address) as client:
        await say(client, b"hello")
        (row,) = await sockpair.wait_flows(1, state="established")
        assert row["client"] == {
            "local": web.text,
            "remote": text_of(client.socket.getsockname()),
            "via": None,
        }
        assert row["endpoint"] == {"local": peers[0], "remote": endpoint}
        assert row["original"] == row["reply"] == {"bytes": 5, "packets": None}
        assert row["close_reason"] is None
    books = await sockpair.books("web", flows=1)
    assert books.reasons == {"finished": 1}
    assert books.rows[0]["close_side"] == "client"


async def test_client_half_closes_first_and_still_receives(stage: Stage) -> None:
    heard: list[bytes] = []
    answer = trio.Event()

    async def hear_then_answer(stream: trio.SocketStream) -> None:
        async with stream:
            heard.append(await receive_all(stream))
            await answer.wait()
            await stream.send_all(b"y" * 300_000)

    endpoint = await listen(stage.nursery, hear_then_answer)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    async with await connect(web.address) as client:
        await client.send_all(b"x" * 200_000)
        await client.send_eof()
        await sockpair.wait_flows(1, state="client_closed")
        await until(lambda: heard, "the endpoint to see the end")
        answer.set()
        assert await receive_all(client) == b"y" * 300_000
    assert heard == [b"x" * 200_000]
    books = await sockpair.books("web", flows=1)
    assert (books.original, books.reply) == (200_000, 300_000)
    assert (books.reasons, books.rows[0]["close_side"]) == ({"finished": 1}, "client")
    agree_nothing_lost("web", await sockpair.metrics())


async def test_endpoint_half_closes_first_and_still_receives(stage: Stage) -> None:
    heard: list[bytes] = []

    async def answer_then_hear(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"welcome")
            await stream.send_eof()
            heard.append(await receive_all(stream))

    endpoint = await listen(stage.nursery, answer_then_hear)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    async with await connect(web.address) as client:
        assert await receive_all(client) == b"welcome"
        await sockpair.wait_flows(1, state="endpoint_closed")
        await client.send_all(b"x" * 100_000)
    books = await sockpair.books("web", flows=1)
    assert (books.reasons, books.rows[0]["close_side"]) == ({"finished": 1}, "endpoint")
    await until(lambda: heard == [b"x" * 100_000], "the endpoint to have all")


@pytest.mark.parametrize("goodbye", [True, False], ids=["and ends", "and waits"])
async def test_endpoint_that_speaks_at_once_is_always_heard(stage: Stage, goodbye: bool) -> None:
    """Its greeting may arrive before we have seen that we are connected: one event tells both."""

    async def greet(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"welcome")
            if not goodbye:
                await receive_all(stream)

    endpoint = await listen(stage.nursery, greet)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    for _ in range(GREETINGS):
        async with await connect(web.address) as client:
            if goodbye:
                assert await receive_all(client) == b"welcome"
            else:
                assert await receive_exactly(client, 7) == b"welcome"
    books = await sockpair.books("web", flows=GREETINGS)
    assert set(books.reasons) == {"finished"}


async def test_round_robin_gives_every_endpoint_its_turn(stage: Stage) -> None:
    def naming(name: bytes) -> Serve:
        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                await stream.send_all(name)

        return serve

    endpoints = [await listen(stage.nursery, naming(name)) for name in (b"a", b"b", b"c")]
    sockpair = await stage.sockpair(web := Forward("web", "tcp", endpoints))
    answers = []
    for _ in range(6):
        async with await connect(web.address) as client:
            answers.append(await receive_all(client))
    assert sorted(answers) == [b"a", b"a", b"b", b"b", b"c", b"c"]
    assert set(answers[:3]) == {b"a", b"b", b"c"}
    await sockpair.books("web", flows=6)


async def test_next_endpoint_is_tried_when_one_refuses(stage: Stage) -> None:
    dead = f"127.0.0.1:{free_port()}"
    endpoints = [dead, await listen(stage.nursery, echo)]
    sockpair = await stage.sockpair(web := Forward("web", "tcp", endpoints))
    for _ in range(4):
        async with await connect(web.address) as client:
            await say(client, b"anybody there?")
    books = await sockpair.books("web", flows=4)
    assert books.reasons == {"finished": 4}
    assert {row["endpoint"]["remote"] for row in books.rows} == {endpoints[1]}
    metrics = await sockpair.metrics()
    assert metrics.sum("sockpair_endpoint_up", endpoint=dead) == 0
    assert metrics.sum("sockpair_endpoint_up", endpoint=endpoints[1]) == 1


async def test_next_endpoint_is_tried_when_one_does_not_answer(stage: Stage) -> None:
    endpoints = [await unanswered_endpoint(stage.nursery), await listen(stage.nursery, echo)]
    forward = Forward("web", "tcp", endpoints, limits={"connect": "200ms"})
    sockpair = await stage.sockpair(forward)
    for _ in range(2):
        async with await connect(forward.address) as client:
            await say(client, b"anybody there?")
    assert (await sockpair.books("web", flows=2)).reasons == {"finished": 2}


async def test_endpoint_that_refuses_resets_the_client(stage: Stage) -> None:
    dead = f"127.0.0.1:{free_port()}"
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [dead]))
    await expect_refusal(web.address)
    books = await sockpair.books("web", flows=1)
    assert (books.reasons, books.rows[0]["close_side"]) == ({"connect_refused": 1}, "endpoint")


async def test_endpoint_that_never_answers_resets_the_client(stage: Stage) -> None:
    silent = await unanswered_endpoint(stage.nursery)
    forward = Forward("web", "tcp", [silent], limits={"connect": "300ms"})
    sockpair = await stage.sockpair(forward)
    async with await connect(forward.address) as client:
        await client.send_all(b"sent into the void")
        await sockpair.wait_flows(1, state="connecting")
        await expect_reset(client)
    assert (await sockpair.books("web", flows=1)).reasons == {"connect_timeout": 1}


async def test_client_that_gives_up_while_connecting(stage: Stage) -> None:
    forward = Forward("web", "tcp", [await unanswered_endpoint(stage.nursery)])
    sockpair = await stage.sockpair(forward)
    client = await connect(forward.address)
    await sockpair.wait_flows(1, state="connecting")
    reset(client)
    books = await sockpair.books("web", flows=1)
    assert (books.reasons, books.rows[0]["close_side"]) == ({"client_reset": 1}, "client")


async def test_client_reset_becomes_a_reset_at_the_endpoint(stage: Stage) -> None:
    seen: list[bool] = []

    async def expect(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"welcome")
            await expect_reset(stream)
            seen.append(True)

    endpoint = await listen(stage.nursery, expect)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    client = await connect(web.address)
    await receive_exactly(client, 7)
    reset(client)
    await until(lambda: seen, "the endpoint to be reset")
    books = await sockpair.books("web", flows=1)
    assert (books.reasons, books.rows[0]["close_side"]) == ({"client_reset": 1}, "client")


async def test_endpoint_reset_becomes_a_reset_at_the_client(stage: Stage) -> None:
    async def answer_and_reset(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"go away")
        reset(stream)

    endpoint = await listen(stage.nursery, answer_and_reset)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    async with await connect(web.address) as client:
        await client.send_all(b"please")
        assert await receive_exactly(client, 7) == b"go away"
        await expect_reset(client)
    books = await sockpair.books("web", flows=1)
    assert (books.reasons, books.rows[0]["close_side"]) == ({"endpoint_reset": 1}, "endpoint")
    assert (books.original, books.reply) == (6, 7)


@pytest.mark.parametrize(
    ("limits", "half_close", "reason"),
    [
        ({"idle": "200ms"}, False, "idle_timeout"),
        ({"half_closed": "200ms"}, True, "half_closed_timeout"),
        ({"duration": "300ms"}, False, "max_duration"),
    ],
)
async def test_timeout_resets_both_sides(
    stage: Stage, limits: dict[str, str], half_close: bool, reason: str
) -> None:
    seen: list[bool] = []

    async def echo_until_reset(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(await receive_exactly(stream, 4))
            if half_close:
                assert await receive_all(stream) == b""
                await until(lambda: _is_reset(stream), "a reset after the end")
            else:
                await expect_reset(stream)
            seen.append(True)

    endpoint = await listen(stage.nursery, echo_until_reset)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint], limits=limits))
    async with await connect(web.address) as client:
        await say(client, b"ping")
        if half_close:
            await client.send_eof()
        await expect_reset(client)
    await until(lambda: seen, "the endpoint to be reset")
    books = await sockpair.books("web", flows=1)
    (row,) = books.rows
    assert (row["close_reason"], row["close_side"]) == (reason, "proxy")
    assert row["closed"] - row["opened"] < 2 * SLOWNESS, "the timeout came much too late"


def _is_reset(stream: trio.SocketStream) -> bool:
    """Whether RST has come, on a stream whose receiving half has ended already (SO_ERROR)."""
    return stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


async def test_payload_holds_off_the_idle_timeout(stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    forward = Forward("web", "tcp", [endpoint], limits={"idle": "400ms"})
    sockpair = await stage.sockpair(forward)
    async with await connect(forward.address) as client:
        began = trio.current_time()
        while trio.current_time() < began + 1:  # longer than two timeouts
            await say(client, b"still here")
            await trio.sleep(0.05)
    assert (await sockpair.books("web", flows=1)).reasons == {"finished": 1}


async def test_killed_flow_is_reset_on_both_sides(stage: Stage) -> None:
    ends: list[str] = []

    async def note_the_end(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"welcome")
            try:
                ends.append((await receive_all(stream)).decode())
            except trio.BrokenResourceError:
                ends.append("reset")

    endpoint = await listen(stage.nursery, note_the_end)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    async with await connect(web.address) as victim, await connect(web.address) as bystander:
        await receive_exactly(victim, 7)
        await receive_exactly(bystander, 7)
        name = text_of(victim.socket.getsockname())
        rows = await sockpair.wait_flows(2)
        (id_,) = [row["id"] for row in rows if row["client"]["remote"] == name]
        status, body = await sockpair.ask("DELETE", f"/api/v1/flows/{id_}")
        assert status == 200, body
        await expect_reset(victim)
        await until(lambda: ends == ["reset"], "the endpoint to be reset")
        await bystander.send_all(b"not me")
    books = await sockpair.books("web", flows=2)
    assert books.reasons == {"killed": 1, "finished": 1}
    await until(lambda: ends == ["reset", "not me"], "the other to end in the ordinary way")
