"""What is explained is what then happens, and nothing happens by explaining it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from proxy.core.access import AccessList
from proxy.core.address import Transport
from proxy.core.admission import AdmissionLimits
from proxy.core.balance.ways import Balance
from proxy.core.condition import Administration, Health
from proxy.core.ejection import EjectionTerms
from proxy.core.explanation import Explanation, FlowQuestion
from proxy.core.live_limit import LimitValues, LiveLimit
from proxy.core.query import FlowQuery
from proxy.core.rate import Rate
from proxy.core.server_names import parse_pattern
from proxy.core.waiting import WaitLimits
from proxy.engine.preface import ProxyTerms
from proxy.engine.specs import (
    DrainOrder,
    DrainTarget,
    EndpointOrder,
    EndpointSpec,
    HealthReport,
    RoutesSpec,
)
from tests.engine.lab import (
    PACE,
    Lab,
    change,
    connect,
    datagram_socket,
    is_refused,
    listening,
    relaying,
    upstream_spec,
)
from tests.engine.test_upstreams import text, wait_served

if TYPE_CHECKING:
    from proxy.core.address import Address

ASKED = FlowQuestion(Transport.TCP, ("127.0.0.1", 0), "lab")
OURS = AccessList([ip_network("127.0.0.0/8")], [ip_network("127.0.0.2/32")])


async def explained(lab: Lab, question: FlowQuestion = ASKED, **parts: Any) -> Explanation:
    answer = await lab.worker.explain(question._replace(transport=lab.transport)._replace(**parts))
    assert answer is not None
    return answer


def next_of(answer: Explanation) -> list[str]:
    return [row["address"] for row in answer["endpoint"]["candidates"] if row["next"]]


def why_of(answer: Explanation) -> dict[str, str]:
    return {row["endpoint"]: row["why"] for row in answer["endpoint"]["candidates"]}


def verdict_of(answer: Explanation) -> tuple[str, str | None]:
    return answer["outcome"], answer["reason"]


def levels_of(answer: Explanation) -> dict[str, tuple[float, float]]:
    return {row["limit"]: (row["level"], row["ceiling"]) for row in answer["limits"]}


def endpoints() -> list[Address]:
    return [listening().getsockname() for _ in range(3)]


@pytest.mark.parametrize("balance", [each for each in Balance if each is not Balance.RANDOM])
async def test_the_next_flow_gets_the_endpoint_that_is_explained(balance: Balance) -> None:
    there = endpoints()
    async with relaying(there) as lab:
        await lab.worker.apply(change(replace(upstream_spec("lab", there), balance=balance)))
        for _ in range(4):
            answers = [await explained(lab) for _ in range(3)]
            assert answers[0] == answers[1] == answers[2]
            assert verdict_of(answers[0]) == ("admit", None)
            assert await wait_served(lab, 1) == next_of(answers[0])
        counters = await lab.counters()
        assert sum(row["attempts"] for row in counters["endpoints"]) == 4
        assert answers[0]["endpoint"]["balance"] == balance.value


async def test_of_a_draw_those_are_named_who_may_be_drawn() -> None:
    there = endpoints()
    async with relaying(there) as lab:
        await lab.worker.apply(change(replace(upstream_spec("lab", there), balance=Balance.RANDOM)))
        assert len(next_of(await explained(lab))) == 3


async def test_why_an_endpoint_is_not_chosen() -> None:
    there = endpoints()
    async with relaying(there) as lab:
        one, two, three = (EndpointSpec(f"e{n}", each) for n, each in enumerate(there))
        spec = upstream_spec("lab", there)
        specs = (one, two._replace(ceiling=1), three._replace(backup=True))
        await lab.worker.apply(change(replace(spec, endpoints=specs)))
        await wait_served(lab, 2)
        await lab.worker.set_health([HealthReport("lab", "e0", there[0], Health.DOWN, "refused")])
        answer = await explained(lab)
        assert why_of(answer) == {
            "e0": "down: refused",
            "e1": "has all the flows it may have",
            "e2": "a backup: asked if all others fail",
        }
        assert verdict_of(answer) == ("no_endpoint", "no_endpoint")
        waiting = replace(spec, endpoints=specs, waiting=WaitLimits(9.0, 2))
        await lab.worker.apply(change(waiting))
        answer = await explained(lab)
        assert verdict_of(answer) == ("wait", "no_endpoint")
        assert answer["endpoint"]["queue"] == {"flows": 0, "ceiling": 2, "seconds": 9.0}
        await lab.worker.administer(EndpointOrder("lab", "e1", Administration.DISABLED))
        answer = await explained(lab)
        assert why_of(answer)["e1"] == "disabled"
        assert next_of(answer) == [text(there[2])]
        assert verdict_of(answer) == ("admit", None)


async def test_an_ejected_endpoint_that_is_asked_all_the_same_says_so() -> None:
    there = endpoints()
    async with relaying(there) as lab:
        terms = EjectionTerms(panic_percent=100)
        spec = replace(upstream_spec("lab", there), balance=Balance.FIRST, ejection=terms)
        await lab.worker.apply(change(spec))
        (upstream,) = lab.worker._roster.upstreams
        assert upstream.endpoints[0].try_eject("because", monotonic())
        answer = await explained(lab)
        assert next_of(answer) == [text(there[0])]
        assert why_of(answer) == {
            "e0": "the first that is usable; too few are usable for its ejection to be heeded",
            "e1": "asked if others fail",
            "e2": "asked if others fail",
        }


async def test_the_entry_of_the_access_list() -> None:
    async with relaying(endpoints(), access=OURS) as lab:
        rules = {
            host: (answer["rule"]["entry"], verdict_of(answer))
            for host in ("127.0.0.1", "127.0.0.2", "192.0.2.1")
            for answer in [await explained(lab, client=(host, 0))]
        }
        assert rules == {
            "127.0.0.1": ("127.0.0.0/8", ("admit", None)),
            "127.0.0.2": ("127.0.0.2/32", ("refuse", "access")),
            "192.0.2.1": (None, ("refuse", "access")),
        }
        assert await is_refused(lab.address, "127.0.0.2")


async def test_limits_and_their_levels_of_which_nothing_is_taken() -> None:
    limits = AdmissionLimits(flows=9, flow_rate=Rate(0.001, 4), source_flows=2, source_rate=None)
    async with relaying(endpoints(), admission=limits) as lab:
        await wait_served(lab, 2)
        for _ in range(9):
            answer = await explained(lab)
        levels = levels_of(answer)
        assert levels["listener_flows"] == (2, 9)
        assert levels["source_flows"] == (2, 2)
        assert levels["listener_rate"][0] == pytest.approx(2, abs=0.1)
        assert levels["table_full"] == (2, 10_000)
        assert verdict_of(answer) == ("refuse", "source_flows")
        assert await is_refused(lab.address)
        answer = await explained(lab, client=("127.0.0.3", 0))
        assert verdict_of(answer) == ("admit", None)
        assert levels_of(answer)["source_flows"] == (0, 2)


async def test_a_dry_run_refuses_nobody() -> None:
    limits = AdmissionLimits(flows=0, dry_run=True)
    async with relaying(endpoints(), admission=limits) as lab:
        answer = await explained(lab)
        assert verdict_of(answer) == ("admit", None)
        assert [row["limit"] for row in answer["limits"] if row["reached"]] == ["listener_flows"]
        assert (await lab.counters())["listeners"][0]["dry_run_hits"]["listener_flows"] == 0


async def test_who_may_wait_at_the_listener() -> None:
    limits, room = AdmissionLimits(flows=1), WaitLimits(9.0, 1)
    async with relaying(endpoints(), admission=limits, waiting=room) as lab:
        await wait_served(lab, 1)
        assert verdict_of(await explained(lab)) == ("wait", "listener_flows")
        await connect(lab.address)
        await lab.wait_counter(lambda counters: counters["listeners"][0]["waiting"], 1)
        answer = await explained(lab)
        assert verdict_of(answer) == ("refuse", "listener_flows")
        assert answer["waiting"] == {"flows": 1, "ceiling": 1, "seconds": 9.0}


async def test_orders_for_a_number_of_flows() -> None:
    async with relaying(endpoints()) as lab:
        order = LiveLimit(
            number=7,
            query=FlowQuery(client=ip_network("127.0.0.0/8")),
            values=LimitValues(flows=1),
            by="test",
            since=time(),
        )
        await lab.worker.limit([order])
        await wait_served(lab, 1)
        answer = await explained(lab)
        assert verdict_of(answer) == ("refuse", "ordered_flows")
        (row,) = [row for row in answer["limits"] if row["order"] == 7]
        assert (row["level"], row["ceiling"]) == (1, 1)
        hits = (await lab.counters())["listeners"][0]["hits"]
        assert hits["ordered_flows"] == 0
        assert verdict_of(await explained(lab, client=("192.0.2.1", 0))) == ("admit", None)


async def test_the_route_by_server_name() -> None:
    default, other = endpoints()[:2]
    async with relaying([default]) as lab:
        routes = RoutesSpec(((parse_pattern("*.example.org"), "other"),), 1.0)
        spec = lab.worker._roster.spec_of("lab", Transport.TCP)
        assert spec is not None
        upstreams = upstream_spec("lab", [default]), upstream_spec("other", [other])
        await lab.worker.apply(change(*upstreams, changed=(replace(spec, routes=routes),)))
        answer = await explained(lab, server_name="a.example.org")
        assert answer["route"] == {"upstream": "other", "pattern": "*.example.org", "routes": 1}
        assert next_of(answer) == [text(other)]
        for name in (None, "example.net"):
            answer = await explained(lab, server_name=name)
            assert answer["route"] == {"upstream": "lab", "pattern": None, "routes": 1}
            assert next_of(answer) == [text(default)]


@pytest.mark.parametrize("alone", [False, True])
async def test_who_is_believed(alone: bool) -> None:
    proxies = AccessList([ip_network("127.0.0.9/32")], [])
    async with relaying(endpoints(), proxied=ProxyTerms(proxies, alone, 1.0)) as lab:
        answer = await explained(lab, client=("192.0.2.1", 0), via="127.0.0.9")
        assert (answer["rule"]["proxy"], answer["outcome"]) == ("trusted", "admit")
        answer = await explained(lab)
        expected = ("refused", "refuse") if alone else ("untrusted", "admit")
        assert (answer["rule"]["proxy"], answer["outcome"]) == expected


@pytest.mark.parametrize("proxied", [False, True])
async def test_whom_a_proxy_declares_that_is_not_believed_is_not_the_client(proxied: bool) -> None:
    terms = ProxyTerms(AccessList([ip_network("127.0.0.9/32")], []), False, 1.0)
    async with relaying(endpoints(), access=OURS, proxied=terms if proxied else None) as lab:
        answer = await explained(lab, client=("192.0.2.1", 0), via="127.0.0.2")
        assert answer["client"] == "127.0.0.2"
        assert answer["rule"]["entry"] == "127.0.0.2/32"
        assert verdict_of(answer) == ("refuse", "access")


async def test_a_listener_that_is_drained_and_one_that_is_not_there() -> None:
    async with relaying(endpoints()) as lab:
        await lab.worker.drain(DrainOrder(DrainTarget(listener="lab"), PACE))
        assert verdict_of(await explained(lab)) == ("refuse", "draining")
        assert await lab.worker.explain(ASKED._replace(listener="lba")) is None
        assert await lab.worker.explain(ASKED._replace(transport=Transport.UDP)) is None


async def test_who_goes_where_the_table_is_full() -> None:
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], Transport.UDP, table_limit=1) as lab:
        client = datagram_socket()
        await client.connect(lab.address)
        await client.send(b"one")
        await lab.wait_live("unreplied")
        answer = await explained(lab)
        assert verdict_of(answer) == ("refuse", "table_full")
        assert (answer["evicted"], levels_of(answer)["table_full"]) == (None, (1, 1))
        (flow,) = lab.worker._relay.table
        flow.opened -= 60.0  # unreplied for long
        answer = await explained(lab)
        assert verdict_of(answer) == ("admit", None)
        assert answer["evicted"] == flow.id
        assert await lab.live()  # it is still there


async def test_datagrams_get_the_endpoint_that_is_explained() -> None:
    there = [datagram_socket() for _ in range(3)]
    async with relaying([each.getsockname() for each in there], Transport.UDP) as lab:
        for _ in range(4):
            (address,) = next_of(await explained(lab))
            client = datagram_socket()
            await client.connect(lab.address)
            before = {row["id"] for row in await lab.live()}
            await client.send(b"one")
            while not (rows := [row for row in await lab.live() if row["id"] not in before]):
                await trio.sleep(0.002)
            assert rows[0]["endpoint"]["remote"] == address
