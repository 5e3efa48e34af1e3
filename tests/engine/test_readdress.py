"""Upstreams whose endpoints get other addresses, while all else stays as it is."""

from __future__ import annotations

from dataclasses import replace

import trio

from proxy.core.address import Address
from proxy.core.condition import Health
from proxy.engine.specs import DrainOrder, DrainTarget, HealthReport, UpstreamSpec
from tests.engine.lab import (
    PACE,
    accept,
    connect,
    is_refused,
    listening,
    receive_exactly,
    relaying,
    upstream_spec,
)
from tests.engine.test_upstreams import text, wait_served


def named(*addresses: Address, name: str = "web:80") -> UpstreamSpec:
    spec = upstream_spec("lab", list(addresses))
    return replace(spec, endpoints=tuple(each._replace(name=name) for each in spec.endpoints))


async def test_new_flows_go_to_the_new_address_and_live_ones_stay() -> None:
    one, two = listening(), listening()
    async with relaying([one.getsockname()]) as lab:
        await lab.worker.readdress([named(one.getsockname())])
        client = await connect(lab.address)
        endpoint = await accept(one)
        await lab.wait_live("established")
        await lab.worker.readdress([named(two.getsockname())])
        assert await wait_served(lab, 2) == [text(two.getsockname())] * 2
        await client.send(b"still here")
        assert await receive_exactly(endpoint, 10) == b"still here"
        rows = (await lab.counters())["endpoints"]
        assert [(row["endpoint"], row["flows"]) for row in rows if row["flows"]] == [("web:80", 3)]


async def test_a_name_without_addresses_gets_some_and_all_is_counted() -> None:
    one = listening().getsockname()
    async with relaying([one]) as lab:
        await lab.worker.readdress([named()])
        assert await is_refused(lab.address)
        status = await lab.worker.status()
        assert status["not_ready"] == [
            'upstream "lab": no endpoint has an address; the log says why'
        ]
        await lab.worker.readdress([named(one)])
        assert await wait_served(lab, 1) == [text(one)]
        assert (await lab.worker.status())["not_ready"] == []


async def test_a_name_of_several_addresses_keeps_its_counters() -> None:
    one, two, three = (listening().getsockname() for _ in range(3))
    async with relaying([one]) as lab:
        await lab.worker.readdress([named(one, two)])
        await wait_served(lab, 2)
        await lab.worker.readdress([named(one, three)])
        rows = (await lab.counters())["endpoints"]
        assert [(row["flows"], row["attempts"]) for row in rows if row["endpoint"] == "web:80"] == [
            (2, 2)
        ]


async def test_what_was_drained_stays_so_and_what_was_not_is_not() -> None:
    one, two, three = (listening().getsockname() for _ in range(3))
    both = named(one)
    both = replace(both, endpoints=(*both.endpoints, *named(three, name="b:80").endpoints))
    moved = replace(both, endpoints=(*named(two).endpoints, *both.endpoints[1:]))
    async with relaying([one]) as lab:
        await lab.worker.readdress([both])
        target = DrainTarget(upstream="lab", endpoint="web:80")
        assert await lab.worker.drain(DrainOrder(target, PACE))
        await lab.worker.readdress([moved])
        assert await wait_served(lab, 2) == [text(three)] * 2
        draining = {row["endpoint"]: row["draining"] for row in (await lab.counters())["endpoints"]}
        assert draining == {"web:80": True, "b:80": False}


async def test_health_stays_with_an_address_that_stays() -> None:
    one, two, three = (listening().getsockname() for _ in range(3))
    async with relaying([one]) as lab:
        await lab.worker.readdress([named(one, two)])
        await lab.worker.set_health([HealthReport("lab", "web:80", one, Health.DOWN, "dead")])
        await lab.worker.readdress([named(one, three)])
        assert await wait_served(lab, 2) == [text(three)] * 2


async def test_an_upstream_that_is_no_more_is_passed_over() -> None:
    one = listening().getsockname()
    async with relaying([one]) as lab:
        await lab.worker.readdress([replace(named(one), name="gone")])
        assert await wait_served(lab, 1) == [text(one)]
        assert {row["upstream"] for row in (await lab.counters())["endpoints"]} == {"lab"}
        await trio.lowlevel.checkpoint()
