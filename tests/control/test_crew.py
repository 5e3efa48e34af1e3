"""Workers as processes: one table, one set of counters; the death of one is its own alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, SOCK_STREAM, socketpair

import pytest
import structlog.testing
import trio

from proxy.config.load import parse
from proxy.control import crew as crew_module
from proxy.control.crew import Crew, Expect
from proxy.control.house import House
from proxy.control.opening import open_house
from proxy.control.remote import RemoteWorker
from proxy.control.steward import Steward
from proxy.core.address import Transport
from proxy.core.condition import Administration, Health
from proxy.core.events import FlowEvent
from proxy.core.explanation import FlowQuestion
from proxy.core.query import FlowQuery
from proxy.engine.flow_lines import FlowLog
from proxy.engine.port import RelayCounters
from proxy.engine.specs import EVERYTHING, DrainTarget, HealthReport
from proxy.engine.worker import open_files
from tests.engine.lab import PATIENCE, _noted, datagram_socket, listening

CLIENTS = [f"127.0.0.{number}" for number in range(2, 22)]
"""Twenty sources: with two workers each has some, but for once in half a million."""


def settings(folder: Path, more: str = "", workers: object = 2) -> str:
    return f"""
[admin]
socket = "{folder}/admin.sock"
http = ""
[engine]
workers = {workers}
drain_timeout = "1ms"
{more}
"""


@asynccontextmanager
async def crewed(text: str) -> AsyncIterator[House]:
    """A house with a crew at work."""
    with structlog.testing.capture_logs(), trio.fail_after(3 * PATIENCE):
        house = await open_house(parse(text, "f"))
        async with trio.open_nursery() as nursery:
            with house:
                await nursery.start(house.worker.run)
                nursery.start_soon(house.inherit)
                try:
                    yield house
                finally:
                    with trio.CancelScope(shield=True):
                        await house.worker.finish()
                    nursery.cancel_scope.cancel()


def listener(name: str, listen: str, endpoint: tuple[str, int]) -> str:
    return (
        f'[listener.{name}]\nlisten = "{listen}"\nupstream = "{name}"\n'
        f'[upstream.{name}]\nendpoints = ["{endpoint[0]}:{endpoint[1]}"]\n'
    )


def crew_of(house: House) -> Crew:
    assert isinstance(house.worker, Crew)
    return house.worker


async def port_of(house: House, name: str) -> int:
    for row in (await house.worker.status())["listening"]:
        if row["listener"] == name:
            return int(row["local"].rpartition(":")[2])
    raise AssertionError(name)


async def client_from(host: str, port: int) -> trio.socket.SocketType:
    client = _noted(trio.socket.socket())
    await client.bind((host, 0))
    await client.connect(("127.0.0.1", port))
    return client


async def is_refused(host: str, port: int) -> bool:
    with trio.socket.socket() as client:
        await client.bind((host, 0))
        try:
            await client.connect(("127.0.0.1", port))
        except ConnectionRefusedError:
            return True
    return False


async def echo(endpoint: trio.socket.SocketType) -> None:
    """Answer on every connection, until cancelled."""

    async def serve(connection: trio.socket.SocketType) -> None:
        with connection, suppress(ConnectionResetError):
            while data := await connection.recv(1000):
                await connection.send(data)

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(serve, (await endpoint.accept())[0])


async def asks(client: trio.socket.SocketType, word: bytes = b"hello") -> bool:
    await client.send(word)
    return await client.recv(100) == word


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


async def is_over(client: trio.socket.SocketType) -> bool:
    try:
        return await client.recv(1) == b""
    except ConnectionResetError:
        return True


async def until(house: House, holds: Callable[[RelayCounters], object]) -> RelayCounters:
    while not holds(counters := await house.worker.counters()):
        await trio.sleep(0.02)
    return counters


async def rows_by_worker(house: House) -> dict[int, list[int]]:
    found = await house.worker.flow_ids(FlowQuery())
    workers: dict[int, list[int]] = {}
    for id in found["ids"]:
        workers.setdefault((id - 1) % crew_of(house).size, []).append(id)
    return workers


async def test_two_workers_answer_as_one(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")
        clients = [await client_from(host, port) for host in CLIENTS]
        for client in clients:
            assert await asks(client)
        port_view = house.worker
        assert set(await rows_by_worker(house)) == {0, 1}
        counters = await port_view.counters()
        (web,) = counters["listeners"]
        assert (web["opened"], sum(web["live"].values())) == (20, 20)
        assert web["original"]["received"] == web["reply"]["sent"] == 100
        assert counters["table_entries"] == 20
        assert counters["table_limit"] == 100_000
        found = await port_view.flow_ids(FlowQuery(sort="opened", limit=7))
        assert (len(found["ids"]), found["matched"]) == (7, 20)
        page = await port_view.flows(FlowQuery(sort="opened"))
        opened = [row["opened"] for row in page["rows"]]
        assert opened == sorted(opened, reverse=True)
        assert [row["id"] for row in page["rows"][:7]] == found["ids"]
        described = await port_view.flow_rows([*found["ids"], 999], recent=False)
        assert described[-1] is None
        assert [
            f'{{"id":{id},' in (row or "") for id, row in zip(found["ids"], described, strict=False)
        ]
        assert await port_view.kill(FlowQuery(id=found["ids"][0])) == 1
        assert await port_view.kill(FlowQuery()) == 19
        nursery.cancel_scope.cancel()


async def test_flows_that_end_send_finished_lines_in_their_order(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")
        await house.worker.log_flows(FlowLog())
        for host in CLIENTS:
            assert await asks(await client_from(host, port))
        workers = await rows_by_worker(house)
        assert await house.worker.kill(FlowQuery()) == 20
        records = [json.loads(line) for line in await lines_of(house, 20)]
        assert {record["close_reason"] for record in records} == {"killed"}
        ended = {record["id"]: number for number, record in enumerate(records)}
        for ids in workers.values():  # a worker ends its flows in the order of their opening
            assert [ended[id] for id in sorted(ids)] == sorted(ended[id] for id in ids)
        nursery.cancel_scope.cancel()


async def test_what_nobody_wants_is_not_sent_and_is_remembered_all_the_same(
    tmp_path: Path,
) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port, crew = await port_of(house, "web"), crew_of(house)
        recent = FlowQuery(recent=True)
        for round, flows in enumerate(("off", "errors", "all"), 1):
            await crew.log_flows(FlowLog(flows))  # type: ignore[arg-type]
            for host in CLIENTS:
                assert await asks(await client_from(host, port))
            assert await crew.kill(FlowQuery()) == 20
            counters = await until(house, lambda read: read["table_entries"] == 0)
            assert counters["listeners"][0]["closed"]["killed"] == 20 * round
            assert (await crew.flows(recent))["matched"] == 20 * round
            assert counters["log_dropped"] == 0
        assert len(await lines_of(house, 20)) == 20
        assert crew._lines._count == 0
        nursery.cancel_scope.cancel()


async def test_the_last_flows_have_their_lines_before_the_end_is_told(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port, crew = await port_of(house, "web"), crew_of(house)
        await crew.log_flows(FlowLog(kind="text"))
        for host in CLIENTS:
            assert await asks(await client_from(host, port))
        assert await crew.finish() == 20
        assert crew._lines._count == 20
        assert all(" drained proxy" in line for line in await lines_of(house, 20))
        nursery.cancel_scope.cancel()


async def test_a_worker_that_begins_anew_knows_what_is_logged(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port, crew = await port_of(house, "web"), crew_of(house)
        await crew.log_flows(FlowLog("all", "text"))
        os.kill((await crew.status())["workers"][0]["pid"], signal.SIGKILL)
        await until(house, lambda read: read["worker_restarts"] == 1)
        while None in crew._remotes:
            await trio.sleep(0.01)
        for host in CLIENTS:
            assert await asks(await client_from(host, port))
        assert len([ids for ids in (await rows_by_worker(house)).values() if ids]) == 2
        assert await crew.kill(FlowQuery()) == 20
        assert all(" killed proxy" in line for line in await lines_of(house, 20))
        nursery.cancel_scope.cancel()


async def lines_of(house: House, count: int) -> list[str]:
    """The next so many lines of flows that ended."""
    lines: list[str] = []
    while len(lines) < count:
        part = await house.worker.wait_flow_lines()
        lines += part.text.decode().splitlines()
    assert len(lines) == count
    return lines


async def test_a_source_has_one_worker_for_tcp_and_udp(tmp_path: Path) -> None:
    stream, datagrams = listening(), datagram_socket()
    text = (
        settings(tmp_path)
        + listener("web", "tcp://127.0.0.1:0", stream.getsockname())
        + listener("dns", "udp://127.0.0.1:0", datagrams.getsockname())
    )
    async with crewed(text) as house:
        web, dns = await port_of(house, "web"), await port_of(house, "dns")
        for host in CLIENTS:
            for _ in range(3):
                await client_from(host, web)
                client = datagram_socket(host)
                await client.sendto(b"x", ("127.0.0.1", dns))
        await until(house, lambda counters: counters["table_entries"] == 120)
        workers: dict[str, set[int]] = {}
        for row in (await house.worker.flows(FlowQuery()))["rows"]:
            workers.setdefault(row["source"], set()).add(row["id"] % 2)
        assert len(workers) == 20
        assert {len(each) for each in workers.values()} == {1}


async def test_a_worker_that_dies_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        crew, port = crew_of(house), await port_of(house, "web")
        clients = {host: await client_from(host, port) for host in CLIENTS}
        for client in clients.values():
            assert await asks(client)
        before = await house.worker.counters()
        owners = {
            row["source"].removesuffix("/32"): (row["id"] - 1) % 2
            for row in (await house.worker.flows(FlowQuery()))["rows"]
        }
        victim = crew._remotes[0]
        assert victim is not None
        with structlog.testing.capture_logs() as logs:
            os.kill(victim.pid, signal.SIGKILL)
            for host, client in clients.items():
                if owners[host] == 1:
                    assert await asks(client), "the other worker's flows never notice"
                else:
                    assert await is_over(client)
            for host in CLIENTS:
                again = await client_from(host, port)
                assert await asks(again), "its clients wait in the queue for its successor"
        assert crew.restarts == 1
        assert sum(each["worker_restarts"] for each in crew.past()) == 1  # and so a successor's
        after = await house.worker.counters()
        (web,), (was,) = after["listeners"], before["listeners"]
        lost = sum(1 for owner in owners.values() if owner == 0)
        assert web["closed"]["internal"] == lost
        told = [each for each in logs if each["event"] == "worker_lost"]
        assert [(each["worker"], each["lost"]) for each in told] == [(0, lost)]
        assert web["opened"] == was["opened"] + 20
        assert sum(web["live"].values()) == 40 - lost
        assert web["original"]["received"] >= was["original"]["received"]
        ids = (await house.worker.flow_ids(FlowQuery()))["ids"]
        assert len(ids) == len(set(ids)) == 40 - lost
        assert max(ids) > 1_000_000_000, "the successor's ids are new ones"
        nursery.cancel_scope.cancel()


async def test_a_name_goes_on_where_it_was_though_a_worker_died_while_it_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "READING", 0.02)
    endpoint = listening()
    web = listener("web", "tcp://127.0.0.1:0", ("127.0.0.1", 9))
    more = listener("more", "tcp://127.0.0.1:0", endpoint.getsockname())
    file = tmp_path / "f.toml"
    file.write_text(settings(tmp_path) + web + more)
    async with crewed(file.read_text()) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        crew, steward = crew_of(house), Steward(house, str(file))
        port = await port_of(house, "more")
        for host in CLIENTS:
            with await client_from(host, port) as client:
                assert await asks(client)
        await until(house, lambda counters: counters["table_entries"] == 0)
        before = (await house.worker.counters())["listeners"][1]
        file.write_text(settings(tmp_path) + web)
        assert (await steward.reload("test"))["problems"] == []
        while crew._readings._unsettled:
            await trio.sleep(0.01)
        await trio.sleep(0.1)  # further readings, in which it is not
        for index in range(2):
            victim = crew._remotes[index]
            assert victim is not None
            os.kill(victim.pid, signal.SIGKILL)
            while crew.restarts <= index or crew._remotes[index] is None:
                await trio.sleep(0.01)
        gone = await house.worker.counters()
        assert [row["listener"] for row in gone["listeners"]] == ["web"]
        assert [row["upstream"] for row in gone["endpoints"]] == ["web"]
        file.write_text(settings(tmp_path) + web + more)
        assert (await steward.reload("test"))["problems"] == []
        assert (await house.worker.counters())["listeners"][1] == before
        nursery.cancel_scope.cancel()


async def test_who_waits_for_an_endpoint_is_counted_over_workers_that_die_and_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "READING", 0.02)
    endpoint = listening()
    host, number = endpoint.getsockname()
    one_place = f'endpoints = [{{ address = "{host}:{number}", flows = 2 }}]\nwhen_full = "wait"\n'
    file = tmp_path / "f.toml"
    web = listener("web", "tcp://127.0.0.1:0", (host, number))
    waits = web.replace(f'endpoints = ["{host}:{number}"]\n', f'{one_place}wait = "1h"\n')
    file.write_text(settings(tmp_path) + waits)
    async with crewed(file.read_text()) as house:
        crew, steward = crew_of(house), Steward(house, str(file))
        port = await port_of(house, "web")
        for client in CLIENTS:
            await client_from(client, port)
        counters = await until(house, lambda read: read["queues"][0]["waited"] == 18)
        (row,) = counters["queues"]
        assert (row["waiting"], row["ceiling"]) == (18, 1000), "of both workers together"
        while not all(last and last["queues"][0]["waited"] for last in crew._readings._last):
            await trio.sleep(0.01)
        victim = crew._remotes[0]
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        counters = await until(house, lambda read: read["worker_restarts"] == 1)
        (row,) = counters["queues"]
        assert row["waited"] == 18
        assert row["waiting"] < 18
        file.write_text(settings(tmp_path) + web)
        assert (await steward.reload("test"))["problems"] == []
        assert (await house.worker.counters())["queues"] == []
        file.write_text(settings(tmp_path) + waits)
        assert (await steward.reload("test"))["problems"] == []
        (row,) = (await house.worker.counters())["queues"]
        assert row == {**row, "waiting": 0, "ceiling": 1000, "waited": 18}


async def test_a_reload_reaches_every_worker(tmp_path: Path) -> None:
    one, two = listening(), listening()
    file = tmp_path / "f.toml"
    web = listener("web", "tcp://127.0.0.1:0", one.getsockname())
    more = listener("more", "tcp://127.0.0.1:0", two.getsockname())
    file.write_text(settings(tmp_path) + web)
    async with crewed(file.read_text()) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, one)
        nursery.start_soon(echo, two)
        steward = Steward(house, str(file))
        before = open_files()
        for _ in range(5):
            file.write_text(settings(tmp_path) + web + more)
            assert (await steward.reload("test"))["problems"] == []
            port = await port_of(house, "more")
            for host in CLIENTS:
                client = await client_from(host, port)
                assert await asks(client)
                client.close()
            file.write_text(settings(tmp_path) + web)
            assert (await steward.reload("test"))["problems"] == []
            assert await is_refused(CLIENTS[0], port)
        while open_files() != before:  # the endpoint's last connections are still ending
            await trio.sleep(0.01)
        port = await port_of(house, "web")
        assert await asks(await client_from(CLIENTS[0], port))
        file.write_text(settings(tmp_path, workers=3) + web)
        answer = await steward.reload("test")
        assert answer["lines"] == ["! engine.workers: 2 -> 3; needs a restart"]
        nursery.cancel_scope.cancel()


async def test_a_drained_listener_stays_so_when_a_worker_is_replaced(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    file = tmp_path / "f.toml"
    file.write_text(text)
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        crew, port = crew_of(house), await port_of(house, "web")
        steward = Steward(house, str(file))
        assert (await steward.drain(listener="web", by="test"))["draining"] == [{"listener": "web"}]
        victim = crew._remotes[1]
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        while crew.restarts == 0 or crew._remotes[1] is None:
            await trio.sleep(0.01)
        for host in CLIENTS:
            assert await is_refused(host, port)
        assert (await steward.reload("test"))["problems"] == []
        await all_ask(house)
        nursery.cancel_scope.cancel()


async def all_ask(house: House) -> None:
    """Every client is answered, by whichever worker is its own."""
    port = await port_of(house, "web")
    for host in CLIENTS:
        assert await asks(await client_from(host, port))


async def test_a_drained_listener_stays_so_when_every_worker_is_replaced(tmp_path: Path) -> None:
    """None that lives had its socket: what was ordered is known to the crew alone."""
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    text += listener("other", "tcp://127.0.0.1:0", endpoint.getsockname())
    file = tmp_path / "f.toml"
    file.write_text(text)
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        crew, port = crew_of(house), await port_of(house, "web")
        steward = Steward(house, str(file))
        await steward.drain(listener="web", by="test")
        while (await crew.status())["drains"][0]["phase"] != "done":
            await trio.sleep(0.01)
        before = await crew.status()
        assert before["not_ready"] == ['listener "web": drained; a reload opens it again']
        for number in range(2):
            await replace_all(crew)
            after = await crew.status()
            assert after["not_ready"] == before["not_ready"], number
            assert after["drains"] == before["drains"]
        assert await is_refused(CLIENTS[0], port)
        question = FlowQuestion(Transport.TCP, (CLIENTS[0], 0), "web")
        assert (await crew.explain(question)) is not None
        assert (await steward.drain(listener="web", by="test"))["draining"] == [{"listener": "web"}]
        assert (await steward.reload("test"))["problems"] == []
        assert (await crew.status())["not_ready"] == []
        assert (await crew.status())["drains"] == []
        await all_ask(house)
        nursery.cancel_scope.cancel()


async def test_a_drain_is_told_while_no_worker_is_there(tmp_path: Path) -> None:
    """Else who watches it would be told that a reload has ended it."""
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house:
        crew = crew_of(house)
        await house.drain(DrainTarget(listener="web"))
        end_all(crew)
        while crew._remotes != [None, None]:
            await trio.sleep(0.001)
        status = await crew.status()
        assert [row["listener"] for row in status["drains"]] == ["web"]
        assert status["not_ready"] == [
            'listener "web": drained; a reload opens it again',
            "worker 0: not running",
            "worker 1: not running",
        ]


def end_all(crew: Crew) -> None:
    for remote in crew._remotes:
        assert remote is not None
        os.kill(remote.pid, signal.SIGKILL)


async def replace_all(crew: Crew) -> None:
    """Kill every worker, and wait until others are at work."""
    former = [*crew._remotes]
    end_all(crew)
    while any(each in former or each is None for each in crew._remotes):
        await trio.sleep(0.01)


async def test_what_checks_say_is_told_to_a_worker_that_is_replaced(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        crew, port = crew_of(house), await port_of(house, "web")
        address = endpoint.getsockname()
        name = f"{address[0]}:{address[1]}"
        for health in (Health.UP, Health.DOWN):
            await crew.set_health([HealthReport("web", name, address, health, "because")])
        victim = crew._remotes[1]
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        while crew.restarts == 0 or crew._remotes[1] is None:
            await trio.sleep(0.01)
        for host in CLIENTS:
            with suppress(ConnectionResetError):  # while connecting, or a moment later
                assert await is_over(await client_from(host, port))
        assert await rows_by_worker(house) == {}
        await crew.set_health([HealthReport("web", name, address, Health.UP, "")])
        for host in CLIENTS:
            assert await asks(await client_from(host, port))
        nursery.cancel_scope.cancel()


async def test_a_disabled_endpoint_stays_so_in_a_worker_that_is_replaced(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    file = tmp_path / "f.toml"
    file.write_text(text)
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        crew, port = crew_of(house), await port_of(house, "web")
        name = "{}:{}".format(*endpoint.getsockname())
        steward = Steward(house, str(file))
        assert await steward.administer("10.9.9.9:1", None, Administration.DISABLED, "test") == []
        done = await steward.administer(name, None, Administration.DISABLED, "test")
        assert done == [{"upstream": "web", "endpoint": name}]
        assert (await steward.reload("test"))["problems"] == []
        victim = crew._remotes[1]
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        while crew.restarts == 0 or crew._remotes[1] is None:
            await trio.sleep(0.01)
        for host in CLIENTS:
            with suppress(ConnectionResetError):
                assert await is_over(await client_from(host, port))
        (row,) = (await crew.counters())["endpoints"]
        assert [each["condition"] for each in row["addresses"]] == ["disabled"]
        await steward.administer(name, "web", Administration.ENABLED, "test")
        for host in CLIENTS:
            assert await asks(await client_from(host, port))
        nursery.cancel_scope.cancel()


async def test_draining_everything_waits_for_every_worker(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path).replace("1ms", "60s")
    text += listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")
        clients = [await client_from(host, port) for host in CLIENTS]
        await until(house, lambda counters: counters["table_entries"] == 20)
        assert await house.drain(EVERYTHING)
        assert (await house.worker.status())["draining"]
        for client in clients[1:]:
            client.close()
        with trio.move_on_after(0.3) as early:
            await house.worker.wait_drained()
        assert early.cancelled_caught
        clients[0].close()
        await house.worker.wait_drained()
        nursery.cancel_scope.cancel()


async def test_a_worker_that_is_lost_before_it_has_begun_does_not_hold_up_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, lost = Crew._live, list[int]()

    async def first_lost(self: Crew, remote: RemoteWorker) -> int | None:
        if remote.index not in lost:
            lost.append(remote.index)
            return None
        return await live(self, remote)

    monkeypatch.setattr(Crew, "_live", first_lost)
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", ("127.0.0.1", 9))
    async with crewed(text) as house:
        assert sorted(lost) == [0, 1]
        assert len((await house.worker.status())["workers"]) == 2


async def test_every_worker_lost_at_once(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house:
        crew = crew_of(house)
        for remote in crew._remotes:
            assert remote is not None
            os.kill(remote.pid, signal.SIGKILL)
        while None not in crew._remotes:
            await trio.sleep(0.001)
        assert "worker 0: not running" in (await house.worker.status())["not_ready"]
        await house.worker.counters()
        while None in crew._remotes:
            await trio.sleep(0.01)
        assert (await house.worker.status())["not_ready"] == []


async def test_a_worker_that_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "HUNG", 0.5)
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        crew, port = crew_of(house), await port_of(house, "web")
        victim = crew._remotes[0]
        assert victim is not None
        os.kill(victim.pid, signal.SIGSTOP)
        clients = [await client_from(host, port) for host in CLIENTS]
        for client in clients:
            assert await asks(client), "who waited in the stopped worker's queue is served, too"
        assert crew.restarts == 1
        nursery.cancel_scope.cancel()


async def test_a_short_stop_of_a_worker_loses_nothing(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        crew, port = crew_of(house), await port_of(house, "web")
        clients = [await client_from(host, port) for host in CLIENTS]
        for remote in crew._remotes:
            assert remote is not None
            os.kill(remote.pid, signal.SIGSTOP)
        for client in clients:
            await client.send(b"hello")
        await trio.sleep(0.3)
        for remote in crew._remotes:
            assert remote is not None
            os.kill(remote.pid, signal.SIGCONT)
        for client in clients:
            assert await client.recv(100) == b"hello"
        assert crew.restarts == 0
        nursery.cancel_scope.cancel()


async def test_workers_end_with_the_supervisor(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house:
        pids = [remote.pid for remote in crew_of(house)._remotes if remote is not None]
        for remote in crew_of(house)._remotes:
            assert remote is not None
            assert remote._wire is not None
            remote._wire._socket.shutdown(trio.socket.SHUT_RDWR)  # as if we were gone
        while any(map(is_alive, pids)):
            await trio.sleep(0.01)


@pytest.mark.parametrize("scheme", ["unix", "unixgram"])
async def test_a_unix_socket_is_served_by_one_of_two_workers(tmp_path: Path, scheme: str) -> None:
    """Its descriptor comes from the supervisor; the worker must know that it is a Unix socket."""
    kind = SOCK_STREAM if scheme == "unix" else SOCK_DGRAM
    path, behind = tmp_path / "listener", tmp_path / "endpoint"
    text = settings(tmp_path) + (
        f'[listener.u]\nlisten = "{scheme}://{path}"\nupstream = "u"\n'
        f'[upstream.u]\nendpoints = ["{scheme}://{behind}"]\n'
    )
    endpoint = _noted(trio.socket.socket(AF_UNIX, kind))
    await endpoint.bind(str(behind))
    async with crewed(text) as house:
        client = _noted(trio.socket.socket(AF_UNIX, kind))
        if kind == SOCK_STREAM:
            endpoint.listen()
        else:
            await client.bind(str(tmp_path / "client"))
        await client.connect(str(path))
        await client.send(b"hello")
        if kind == SOCK_STREAM:
            endpoint, _ = await endpoint.accept()
            _noted(endpoint)
        assert await endpoint.recv(100) == b"hello"
        page = await house.worker.flows(FlowQuery())
        assert [row["client"]["local"] for row in page["rows"]] == [f"unix:{path}"]


async def test_a_unix_socket_outlives_the_one_worker_that_serves_it(tmp_path: Path) -> None:
    """Its successor is told other things first, and serves nothing until it is told what to be."""
    path = tmp_path / "listener"
    endpoint = listening()
    text = settings(tmp_path) + listener("u", f"unix://{path}", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        crew = crew_of(house)
        await crew.log_flows(FlowLog())
        for index in range(2):
            victim = crew._remotes[index]
            assert victim is not None
            os.kill(victim.pid, signal.SIGKILL)
            with trio.fail_after(PATIENCE):
                while crew._remotes[index] in (None, victim):
                    await trio.sleep(0.01)
            client = _noted(trio.socket.socket(AF_UNIX, SOCK_STREAM))
            await client.connect(str(path))
            assert await asks(client)
        nursery.cancel_scope.cancel()


async def test_the_series_of_a_unix_socket_outlive_the_one_worker_that_serves_it(
    tmp_path: Path,
) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("u", f"unix://{tmp_path}/u", endpoint.getsockname())
    async with crewed(text) as house:
        crew = crew_of(house)
        for index in range(2):
            victim = crew._remotes[index]
            assert victim is not None
            os.kill(victim.pid, signal.SIGKILL)
            with trio.fail_after(PATIENCE):
                while crew._remotes[index] is victim:
                    await trio.sleep(0.001)
                assert crew._remotes[index] is None
                while crew._remotes[index] is None:
                    counters = await house.worker.counters()
                    assert [row["listener"] for row in counters["listeners"]] == ["u"]
                    await trio.sleep(0.01)


async def test_what_happens_in_any_worker_is_told(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")
        await house.worker.watch({4: FlowQuery(listener="web"), 9: FlowQuery(min_bytes=1)})
        clients = [await client_from(host, port) for host in CLIENTS]
        for client in clients:
            assert await asks(client)
        assert set(await rows_by_worker(house)) == {0, 1}
        assert (await house.worker.moved_flows())["flows"] == []
        for client in clients:
            assert await asks(client)
        moved = (await house.worker.moved_flows())["flows"]
        assert [tuple(watches) for watches, _ in moved] == 20 * [(4, 9)]
        await house.worker.kill(FlowQuery())
        events = list[FlowEvent]()
        while len(events) < 60:
            some, lost = await house.worker.wait_flow_events()
            assert not lost
            events += some
        of_one: dict[int, list[FlowEvent]] = {}
        for event in events:
            of_one.setdefault(json.loads(event.row)["id"], []).append(event)
        assert len(of_one) == 20
        for story in of_one.values():
            assert [event.kind for event in story] == ["opened", "established", "closed"]
            assert [event.watches for event in story] == [(4,), (4,), (4, 9)]
        nursery.cancel_scope.cancel()


async def test_a_worker_that_dies_is_a_gap_and_the_next_one_is_watched_too(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")
        await house.worker.watch({1: FlowQuery()})
        for row in (await house.worker.status())["workers"]:
            os.kill(row["pid"], signal.SIGKILL)
        lost = False
        while not lost:
            _, lost = await house.worker.wait_flow_events()
        while (await house.worker.status())["not_ready"]:
            await trio.sleep(0.02)
        for host in CLIENTS:
            assert await asks(await client_from(host, port))
        workers = set[int]()
        while workers != {0, 1}:
            some, _ = await house.worker.wait_flow_events()
            workers |= {json.loads(event.row)["id"] % 2 for event in some}
        nursery.cancel_scope.cancel()


async def test_workers_serve_though_a_predecessor_gives_nothing() -> None:
    """They ask whether they may, which only a supervisor that lives can answer."""
    endpoint = listening()
    house = await open_house(
        parse(
            "[engine]\nworkers = 2\n"
            + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname()),
            "f",
        )
    )
    assert isinstance(house.worker, Crew)

    async def introduce(_index: int, expect: Expect) -> bool:
        ours, theirs = socketpair()
        ours.close()
        with theirs:
            await expect([theirs])
        return True

    house.worker.inherits = introduce
    with house, structlog.testing.capture_logs() as logs, trio.fail_after(3 * PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(house.worker.run)
            assert (await house.worker.status())["listening"]
            assert [row["event"] for row in logs].count("hand_over_failed") == 2
            await house.worker.finish()
            nursery.cancel_scope.cancel()
