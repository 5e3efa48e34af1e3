"""Limits that are set while a house is at work: on its workers, through reloads, until they end."""

from __future__ import annotations

import os
import signal
from ipaddress import ip_network
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from proxy.config.load import parse
from proxy.control.house import House
from proxy.control.limits import configured
from proxy.control.steward import Steward
from proxy.core.live_limit import ORDERS_MAX, LimitValues
from proxy.core.query import FlowQuery
from proxy.engine.port import StandingDownError
from tests.control.test_crew import (
    CLIENTS,
    asks,
    client_from,
    crewed,
    echo,
    is_over,
    listener,
    port_of,
    rows_by_worker,
    settings,
    until,
)
from tests.e2e.program import free_port
from tests.engine.lab import listening

WEB = FlowQuery(listener="web")


def text_of(folder: Path, endpoint: tuple[str, int]) -> str:
    return settings(folder) + listener("web", f"tcp://127.0.0.1:{free_port()}", endpoint)


async def served(port: int, hosts: list[str]) -> list[trio.socket.SocketType]:
    clients = [await client_from(host, port) for host in hosts]
    for client in clients:
        assert await asks(client)
    return clients


async def limits_of_flows(house: House) -> list[dict[str, float]]:
    return [row["limits"] for row in (await house.worker.flows(FlowQuery()))["rows"]]


async def test_a_limit_is_for_the_flows_of_all_workers_and_is_lifted_by_itself(
    tmp_path: Path,
) -> None:
    endpoint = listening()
    async with (
        crewed(text_of(tmp_path, endpoint.getsockname())) as house,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, endpoint)
        steward = Steward(house, None)
        nursery.start_soon(steward.keep_limits)
        port = await port_of(house, "web")
        await served(port, CLIENTS)
        assert len(await rows_by_worker(house)) == 2
        lasting = await steward.limit(WEB, LimitValues(bytes=1 << 40), None, "me")
        with structlog.testing.capture_logs() as logs:
            row = await steward.limit(WEB, LimitValues(bytes=1 << 30), 0.3, "me")
            assert row is not None
            assert row["matched"] == len(CLIENTS)
            assert {each["bytes"] for each in await limits_of_flows(house)} == {1 << 30}
            while {each["bytes"] for each in await limits_of_flows(house)} != {1 << 40}:
                await trio.sleep(0.02)
        assert [(each["event"], each["number"]) for each in logs] == [
            ("limit_set", 2),
            ("limit_expired", 2),
        ]
        assert (logs[0]["by"], logs[0]["listener"], logs[0]["bytes"]) == ("me", "web", 1 << 30)
        assert lasting is not None
        (left,) = (await steward.limits())["orders"]
        assert left == lasting
        with structlog.testing.capture_logs() as logs:
            assert await steward.lift_limit(1, "somebody") == left
        assert [(each["event"], each["by"]) for each in logs] == [("limit_lifted", "somebody")]
        assert await steward.lift_limit(1, "somebody") is None
        assert not any("bytes" in each for each in await limits_of_flows(house))
        nursery.cancel_scope.cancel()


async def test_limits_of_flows_that_have_ended_make_room_for_others(tmp_path: Path) -> None:
    endpoint = listening()
    async with (
        crewed(text_of(tmp_path, endpoint.getsockname())) as house,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, endpoint)
        steward = Steward(house, None)
        await served(await port_of(house, "web"), CLIENTS[:1])
        (flow,) = (await house.worker.flows(FlowQuery()))["rows"]
        budget = LimitValues(bytes=1 << 40)
        await steward.limit(FlowQuery(id=flow["id"]), budget, None, "me")
        books = steward._limits._books
        for _ in range(ORDERS_MAX - 2):
            books.give(WEB, budget, "me", 0.0, 0.0)
        books.give(FlowQuery(id=flow["id"] + 10**9), budget, "me", 0.0, 0.0)
        with structlog.testing.capture_logs() as logs:
            assert await steward.limit(WEB, budget, None, "me") is not None
        assert [(each["event"], each["number"]) for each in logs] == [
            ("limit_expired", ORDERS_MAX),
            ("limit_set", ORDERS_MAX + 1),
        ]
        assert await steward.limit(WEB, budget, None, "me") is None  # that flow lives
        nursery.cancel_scope.cancel()


async def test_a_worker_that_takes_anothers_place_is_told_of_the_limits(tmp_path: Path) -> None:
    endpoint = listening()
    async with (
        crewed(text_of(tmp_path, endpoint.getsockname())) as house,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(echo, endpoint)
        steward = Steward(house, None)
        query = FlowQuery(client=ip_network("127.0.0.0/8"))
        await steward.limit(query, LimitValues(bytes=5), None, "me")
        for row in (await house.worker.status())["workers"]:
            os.kill(row["pid"], signal.SIGKILL)
        await until(house, lambda read: read["worker_restarts"] == 2)
        while len((await house.worker.status())["workers"]) < 2:
            await trio.sleep(0.02)
        for host in CLIENTS:
            client = await client_from(host, await port_of(house, "web"))
            await client.send(b"hello, this is more than five bytes")
            assert await is_over(client) or await is_over(client)
        nursery.cancel_scope.cancel()


async def test_a_limit_outlives_a_reload(tmp_path: Path) -> None:
    endpoint = listening()
    file = tmp_path / "sockpair.toml"
    text = text_of(tmp_path, endpoint.getsockname())
    file.write_text(text)
    async with crewed(text) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        steward = Steward(house, str(file))
        port = await port_of(house, "web")
        await served(port, CLIENTS[:4])
        await steward.limit(WEB, LimitValues(bytes=1 << 40, bandwidth=1e8), None, "me")
        for limits in ("per_flow = { bytes = '1GiB' }", "bandwidth = '1Gbit/s'", ""):
            file.write_text(f"{text}[listener.web.limits]\n{limits}\n")
            answer = await steward.reload("test")
            assert answer["reloaded"], answer
            await served(port, CLIENTS[:1])
            least = 1 << 30 if "bytes" in limits else 1 << 40
            rows = await limits_of_flows(house)
            assert {each["bytes"] for each in rows} == {least}
            assert {each["bandwidth_reply"] for each in rows} == {1e8}
        (row,) = (await steward.limits())["orders"]
        assert row["matched"] == len(await limits_of_flows(house)) == 7
        nursery.cancel_scope.cancel()


def test_the_limits_of_the_file_are_told_by_listener(tmp_path: Path) -> None:
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:1", ("127.0.0.1", 2))
    text += "[listener.web.limits]\nflows = 7\nbandwidth = '10Mbit/s'\ndry_run = false\n"
    text += "per_flow = { bytes = '1GiB', duration = '10m' }\nper_source = { flow_rate = '20/s' }\n"
    rows = {row["key"]: row["value"] for row in configured(parse(text, "file"))}
    assert rows["limits.flows"] == "7"
    assert rows["limits.bandwidth"] == "10Mbit/s"
    assert rows["limits.per_flow.bytes"] == "1GiB"
    assert rows["limits.per_flow.duration"] == "10m"
    assert rows["limits.per_flow.idle"] == "2h4m"  # of TCP
    assert rows["limits.per_flow.connect"] == "5s"  # a default is in force too
    assert rows["limits.per_source.flow_rate"] == "20/s"
    assert not rows.keys() & {"limits.dry_run", "limits.flow_rate", "limits.per_flow.amplification"}


def test_limits_of_other_transports_are_not_in_force(tmp_path: Path) -> None:
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:1", ("127.0.0.1", 2))
    text += listener("dns", "udp://127.0.0.1:1", ("127.0.0.1", 2))
    keys: dict[str, set[str]] = {"web": set(), "dns": set()}
    for row in configured(parse(text, "file")):
        keys[row["listener"]].add(row["key"])
    streams = {"limits.when_full", "limits.per_flow.connect", "limits.per_flow.half_closed"}
    assert streams <= keys["web"]
    assert not streams & keys["dns"]
    assert "limits.per_flow.unreplied" in keys["dns"] - keys["web"]
    assert "limits.per_flow.idle" in keys["dns"] & keys["web"]


async def test_an_order_whose_turn_comes_when_a_successor_takes_over_is_refused(
    tmp_path: Path,
) -> None:
    """It would be in force here only, and nobody would have been told."""
    async with crewed(text_of(tmp_path, listening().getsockname())) as house:
        steward = Steward(house, None)
        refused = trio.Event()

        async def order() -> None:
            with pytest.raises(StandingDownError):
                await steward.limit(WEB, LimitValues(bytes=1), None, "me")
            refused.set()

        async with trio.open_nursery() as nursery:
            async with house._changing:
                nursery.start_soon(house.stand_down)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(order)
                await trio.testing.wait_all_tasks_blocked()
            await refused.wait()
        assert (await steward.limits())["orders"] == []
