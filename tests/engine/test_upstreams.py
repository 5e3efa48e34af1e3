"""Endpoints of a relaying worker: who takes new flows, and what becomes of the condition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from proxy.core.address import Address, Transport
from proxy.core.balance.ways import Balance
from proxy.core.condition import Administration, Health
from proxy.engine.specs import DrainOrder, DrainTarget, EndpointOrder, HealthReport, UpstreamSpec
from tests.engine.lab import (
    PACE,
    Lab,
    accept,
    change,
    closed_port,
    connect,
    datagram_socket,
    is_refused,
    listening,
    relaying,
    upstream_spec,
)
from tests.engine.test_apply import connected_at_once


def report(name: str, address: Address, health: Health) -> HealthReport:
    return HealthReport("lab", name, address, health, "because")


async def wait_served(lab: Lab, count: int) -> list[str]:
    """Open flows, and tell the addresses of the endpoints that they have reached, sorted."""
    before = {row["id"] for row in await lab.live()}
    for _ in range(count):
        await connect(lab.address)
    while True:
        rows = [row for row in await lab.live() if row["id"] not in before]
        if len(rows) == count and all(row["state"] == "established" for row in rows):
            return sorted(str(row["endpoint"]["remote"]) for row in rows)
        await trio.sleep(0.002)


def text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


async def test_an_endpoint_that_checks_call_down_takes_no_flows_until_they_call_it_up() -> None:
    one, two = listening().getsockname(), listening().getsockname()
    async with relaying([one, two]) as lab:
        await lab.worker.set_health([report("e0", one, Health.DOWN)])
        assert await wait_served(lab, 4) == [text(two)] * 4
        await lab.worker.set_health([report("e0", one, Health.UP)])
        assert await wait_served(lab, 4) == sorted([text(one), text(two)] * 2)


async def test_what_checks_say_outlives_a_reload() -> None:
    one, two = listening().getsockname(), listening().getsockname()
    async with relaying([one, two]) as lab:
        await lab.worker.set_health([report("e0", one, Health.DOWN)])
        await lab.worker.apply(change(upstream_spec("lab", [one, two])))
        assert await wait_served(lab, 2) == [text(two)] * 2


async def test_reports_of_others_change_nothing() -> None:
    one = listening().getsockname()
    async with relaying([one]) as lab:
        await lab.worker.set_health(
            [
                report("e0", ("127.0.0.1", 1), Health.DOWN),
                report("e9", one, Health.DOWN),
                report("e0", one, Health.DOWN)._replace(upstream="gone"),
            ]
        )
        assert await wait_served(lab, 1) == [text(one)]


async def test_where_no_endpoint_is_usable_flows_end_and_the_worker_is_not_ready() -> None:
    one = listening().getsockname()
    async with relaying([one]) as lab:
        await lab.worker.set_health([report("e0", one, Health.DOWN)])
        assert await is_refused(lab.address)
        (row,) = await lab.wait_ended()
        assert row["close_reason"] == "no_endpoint"
        status = await lab.worker.status()
        assert status["not_ready"] == ['upstream "lab": no endpoint is usable: down']


async def test_weights_and_backups_come_and_go_with_a_reload() -> None:
    one, two, three = (listening().getsockname() for _ in range(3))
    plain = upstream_spec("lab", [one, two, three])
    weights = zip(plain.endpoints, (3, 1, 1), (False, False, True), strict=True)
    weighted = tuple(
        each._replace(weight=weight, backup=backup) for each, weight, backup in weights
    )
    async with relaying([one, two, three]) as lab:
        await lab.worker.apply(change(replace(plain, endpoints=weighted)))
        assert await wait_served(lab, 4) == sorted([text(one)] * 3 + [text(two)])
        await lab.worker.apply(change(plain))
        assert await wait_served(lab, 3) == sorted(map(text, (one, two, three)))


async def test_a_backup_takes_a_flow_that_all_others_have_failed() -> None:
    alive = listening().getsockname()
    addresses = [closed_port(), closed_port(), alive]
    plain = upstream_spec("lab", addresses)
    spec = replace(
        plain, endpoints=(*plain.endpoints[:2], plain.endpoints[2]._replace(backup=True))
    )
    async with relaying(addresses) as lab:
        await lab.worker.apply(change(spec))
        assert await wait_served(lab, 1) == [text(alive)]
        assert (await lab.worker.status())["not_ready"] == []


async def test_a_name_of_two_addresses_is_two_endpoints_and_one_label() -> None:
    one, two = listening(), listening()
    spec = upstream_spec("lab", [one.getsockname(), two.getsockname()])
    named = UpstreamSpec(
        name="lab", endpoints=tuple(each._replace(name="web:80") for each in spec.endpoints)
    )
    async with relaying([one.getsockname()]) as lab:
        await lab.worker.apply(change(named))
        await wait_served(lab, 3)
        (row,) = [row for row in (await lab.counters())["endpoints"] if row["flows"]]
        assert (row["endpoint"], row["flows"], row["attempts"]) == ("web:80", 3, 3)
        (upstream,) = lab.worker._roster.upstreams
        assert sorted(each.flows for each in upstream.endpoints) == [1, 2]
        await lab.worker.set_health(
            [HealthReport("lab", "web:80", one.getsockname(), Health.DOWN, "")]
        )
        assert await wait_served(lab, 2) == [text(two.getsockname())] * 2


async def test_a_name_is_drained_with_all_its_addresses() -> None:
    one, two = listening().getsockname(), listening().getsockname()
    spec = upstream_spec("lab", [one, two])
    named = replace(spec, endpoints=tuple(each._replace(name="web:80") for each in spec.endpoints))
    async with relaying([one]) as lab:
        await lab.worker.apply(change(named))
        target = DrainTarget(upstream="lab", endpoint="web:80")
        assert await lab.worker.drain(DrainOrder(target, PACE))
        assert await is_refused(lab.address)
        status = await lab.worker.status()
        assert "every endpoint drains" in status["not_ready"][0]
        await lab.worker.apply(change(named))
        await wait_served(lab, 2)


async def test_flows_are_counted_off_their_address_when_they_end() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        client = await connect(lab.address)
        await accept(endpoint)
        ((each,),) = (upstream.endpoints for upstream in lab.worker._roster.upstreams)
        await lab.wait_live("established")
        assert each.flows == 1
        client.close()
        await lab.worker.finish()
        assert each.flows == 0


async def test_one_way_of_choosing_follows_another_with_a_reload() -> None:
    one, two = listening().getsockname(), listening().getsockname()
    spec = upstream_spec("lab", [one, two])
    async with relaying([one, two]) as lab:
        await lab.worker.apply(change(replace(spec, balance=Balance.FIRST)))
        assert await wait_served(lab, 3) == [text(one)] * 3
        await lab.worker.apply(change(replace(spec, balance=Balance.LEAST_FLOWS)))
        assert await wait_served(lab, 3) == [text(two)] * 3
        await lab.worker.apply(change(replace(spec, balance=Balance.SOURCE)))
        assert len(set(await wait_served(lab, 8))) == 1


async def test_clients_who_come_at_once_are_not_all_sent_to_the_one_that_was_idle() -> None:
    """What is being connected counts; these endpoints are not heard of in time."""
    endpoints = [listening(backlog=8).getsockname() for _ in range(3)]
    spec = replace(upstream_spec("lab", endpoints), balance=Balance.LEAST_FLOWS)
    async with relaying(endpoints) as lab:
        await lab.worker.apply(change(spec))
        clients = [connected_at_once(lab.address) for _ in range(6)]
        while len(await lab.live()) < len(clients):
            await trio.sleep(0.002)
        (upstream,) = lab.worker._roster.upstreams
        assert [each.flows for each in upstream.endpoints] == [2, 2, 2]


@pytest.mark.parametrize("way", [Balance.SOURCE, Balance.MAGLEV])
async def test_a_source_has_one_endpoint_for_tcp_and_udp_whatever_port_it_comes_from(
    way: Balance,
) -> None:
    hosts = [f"127.0.0.{number}" for number in range(2, 34)]  # never all at one of five
    endpoints = [datagram_socket().getsockname() for _ in range(5)]
    spec = replace(upstream_spec("lab", endpoints), balance=way)
    async with relaying(endpoints, Transport.UDP) as lab:
        await lab.worker.apply(change(spec))
        for host in hosts:
            for _ in range(3):
                client = datagram_socket(host)
                await client.sendto(b"hello", lab.address)
        while len(rows := await lab.live()) < 3 * len(hosts):
            await trio.sleep(0.002)
        pairs = {
            (str(row["client"]["remote"]).split(":")[0], row["endpoint"]["remote"]) for row in rows
        }
        assert len(pairs) == len(hosts)
        assert len({endpoint for _, endpoint in pairs}) > 1


async def test_flows_that_could_not_be_connected_are_counted_off_their_endpoint() -> None:
    dead, endpoint = closed_port(), listening()
    async with relaying([dead, endpoint.getsockname()]) as lab:
        await wait_served(lab, 2)
        (upstream,) = lab.worker._roster.upstreams
        assert [each.flows for each in upstream.endpoints] == [0, 2]


def order(name: str, administration: Administration) -> EndpointOrder:
    return EndpointOrder("lab", name, administration)


async def test_a_disabled_endpoint_gets_no_new_flows_over_reloads_until_it_is_enabled() -> None:
    one, two = listening().getsockname(), listening().getsockname()
    async with relaying([one, two]) as lab:
        await wait_served(lab, 2)
        assert await lab.worker.administer(order("e0", Administration.DISABLED))
        assert not await lab.worker.administer(order("e9", Administration.DISABLED))
        assert await wait_served(lab, 2) == [text(two)] * 2
        await lab.worker.apply(change(upstream_spec("lab", [one, two])))
        assert await wait_served(lab, 2) == [text(two)] * 2
        rows = (await lab.counters())["endpoints"]
        assert [row["addresses"][0]["condition"] for row in rows] == ["disabled", "unknown"]
        assert rows[0]["flows"] == rows[0]["addresses"][0]["flows"] == 1  # it lives on
        assert await lab.worker.administer(order("e0", Administration.ENABLED))
        assert await wait_served(lab, 4) == sorted([text(one), text(two)] * 2)


async def test_a_drain_is_over_when_the_endpoint_is_enabled() -> None:
    one = listening().getsockname()
    async with relaying([one]) as lab:
        await wait_served(lab, 1)
        target = DrainTarget(upstream="lab", endpoint="e0")
        await lab.worker.drain(DrainOrder(target, PACE._replace(timeout=3600.0)))
        assert (await lab.counters())["endpoints"][0]["draining"]
        assert await lab.worker.administer(order("e0", Administration.ENABLED))
        assert await wait_served(lab, 1) == [text(one)]
        assert not (await lab.counters())["endpoints"][0]["draining"]
