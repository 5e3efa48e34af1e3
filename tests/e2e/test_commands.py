"""The commands of operators, against a running sockpair: their output is a contract."""

from __future__ import annotations

import json
import signal

import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.program import output_of
from tests.e2e.sockets import connect, echo, expect_refusal, expect_reset, listen, say, text_of
from tests.e2e.subject import COMMAND, Forward, Sockpair, lasting


async def ask(sockpair: Sockpair, *words: str, status: int = 0) -> str:
    return await output_of(*COMMAND, *words, "--admin", sockpair.settings.admin, status=status)


async def test_flows_is_what_the_table_says(stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    one, two = Forward("one", "tcp", [endpoint]), Forward("two", "tcp", [endpoint])
    sockpair = await stage.sockpair(one, two)
    async with await connect(one.address) as client, await connect(two.address) as other:
        await say(client, b"x" * 1000)
        await say(other, b"y")
        rows = await sockpair.wait_flows(2, state="established")
        answer = json.loads(await ask(sockpair, "flows", "-o", "json"))
        assert lasting(answer) == lasting(rows)
        lines = (await ask(sockpair, "flows", "-o", "ndjson")).splitlines()
        assert lasting([json.loads(line) for line in lines]) == lasting(rows)
        some = json.loads(await ask(sockpair, "flows", "--min-bytes", "2000", "-o", "json"))
        assert [row["listener"] for row in some] == ["one"]
        table = await ask(sockpair, "flows")
        for row in rows:
            for pair in (row["client"], row["endpoint"]):
                assert pair["local"] in table
                assert pair["remote"] in table
        assert "\x1b" not in table


async def test_find_tells_the_flow_of_either_address(stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    async with await connect(web.address) as client, await connect(web.address) as other:
        await say(client, b"hello")
        await say(other, b"hello")
        row, _ = await sockpair.wait_flows(2, state="established")
        for address in (row["client"]["remote"], row["endpoint"]["local"]):
            answer = json.loads(await ask(sockpair, "find", address, "-o", "json"))
            assert lasting(answer) == lasting([row])
    await sockpair.wait_flows(0)
    (found,) = json.loads(await ask(sockpair, "find", row["client"]["remote"], "-o", "json"))
    assert (found["id"], found["close_reason"]) == (row["id"], "finished")
    await ask(sockpair, "find", "192.0.2.1:9", status=1)


async def test_kill_ends_what_was_named(stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    async with await connect(web.address) as client, await connect(web.address) as other:
        await say(client, b"hello")
        await say(other, b"hello")
        name = text_of(client.socket.getsockname())
        (row,) = [row for row in await sockpair.flows() if row["client"]["remote"] == name]
        await ask(sockpair, "kill", str(row["id"]))
        await expect_reset(client)
        await ask(sockpair, "kill", str(row["id"]), status=1)
        await ask(sockpair, "kill", "--listener", "web", status=2)
        await ask(sockpair, "kill", "--listener", "web", "--yes")
        await expect_reset(other)
    assert (await sockpair.books("web", flows=2)).reasons == {"killed": 2}


async def test_status_says_how_it_is(stage: Stage) -> None:
    web = Forward("web", "tcp", ["127.0.0.1:9"])
    sockpair = await stage.sockpair(web)
    answer = json.loads(await ask(sockpair, "status", "-o", "json"))
    assert answer["pid"] == sockpair.pid
    assert [row["local"] for row in answer["listening"]] == [web.text]
    assert web.text in await ask(sockpair, "status")


async def test_http_port_answers_and_only_reads(stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    async with await connect(web.address) as client:
        await say(client, b"hello")
        (row,) = await sockpair.wait_flows(1, state="established")
        assert b"200 OK" in await http(sockpair, "GET", "/metrics")
        assert b'"flows"' in await http(sockpair, "GET", "/api/v1/flows")
        refused = await http(sockpair, "DELETE", f"/api/v1/flows/{row['id']}")
        assert refused.startswith(b"HTTP/1.1 403")
        await say(client, b"still here")


async def http(sockpair: Sockpair, method: str, path: str) -> bytes:
    """One request to the HTTP port, as bytes on the wire."""
    async with await trio.open_tcp_stream("127.0.0.1", sockpair.settings.admin_port) as stream:
        await stream.send_all(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        return b"".join([chunk async for chunk in stream])


async def test_limit_holds_for_live_flows_and_new_ones_until_it_is_lifted(stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    async with await connect(web.address) as client:
        await say(client, b"hello")
        (row,) = await sockpair.wait_flows(1, state="established")
        said = await ask(sockpair, "limit", "--client", "127.0.0.0/8", "--flows", "1")
        assert said == "limit 1: flows 1 for client 127.0.0.0/8; 1 live flow\n"
        name = str(row["id"])
        said = await ask(
            sockpair,
            "limit",
            "--id",
            name,
            "--bandwidth",
            "1MiB/s",
            "--bytes",
            "12B",
            "--for",
            "1h",
        )
        assert said == f"limit 2: bandwidth 1MiB/s, bytes 12B for id {name}; 1 live flow\n"
        answer = json.loads(await ask(sockpair, "limits", "-o", "json"))
        first, second = answer["orders"]
        assert (first["number"], first["flows"], first["matched"]) == (1, 1, 1)
        assert (first["until"], first["client"]) == (None, "127.0.0.0/8")
        assert second["until"] - second["since"] == 3600
        assert {"listener": "web", "key": "limits.per_flow.connect", "value": "5s"} in (
            answer["configured"]
        )
        table = await ask(sockpair, "limits")
        assert "bandwidth 1MiB/s, bytes 12B" in table
        assert "limits.per_flow.connect" in table
        await expect_refusal(web.address)
        sockpair.program.process.send_signal(signal.SIGHUP)
        await until(lambda: sockpair.log_records("reloaded"), "the reload")
        await client.send_all(b"more than there is left")
        await expect_reset(client)
        await sockpair.wait_flows(0)
    assert "lifted limit 1" in await ask(sockpair, "limit", "--lift", "1")
    await ask(sockpair, "limit", "--lift", "1", status=1)
    async with await connect(web.address) as one, await connect(web.address) as two:
        await say(one, b"hello")
        await say(two, b"hello")
    await ask(sockpair, "limit", "--flows", "1", status=2)
    await ask(sockpair, "limit", "--listener", "web", status=2)
    await ask(sockpair, "limit", "--listener", "web", "--bandwidth", "quick", status=2)
    await ask(sockpair, "limit", "--lift", "2", "--bytes", "1B", status=2)
    (record, _) = sockpair.log_records("limit_set")
    assert (record["client"], record["flows"]) == ("127.0.0.0/8", 1)
    assert record["by"]


async def test_commands_say_what_to_start_when_nobody_is_there(stage: Stage) -> None:
    nobody = stage.folder / "nobody.sock"
    for words in (["flows"], ["status"], ["find", "192.0.2.1:9"], ["kill", "1"]):
        done = await trio.run_process(
            [*COMMAND, *words, "--admin", nobody],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, b"")
        assert str(nobody).encode() in done.stderr
        assert b"sockpair run" in done.stderr
        assert b"Traceback" not in done.stderr
