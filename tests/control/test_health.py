"""Checks as they go on: who is told what, when the plan changes, when names do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.config.load import parse
from proxy.control.health import CHECKED_AT_ONCE, CheckKey, CheckPlan, Checks, check_plans
from proxy.control.probe_command import CommandProbe
from proxy.control.probe_http import HttpProbe
from proxy.control.probes import Sight, TcpProbe, UdpProbe
from proxy.core.condition import Health
from proxy.core.health import Result, Thresholds, Verdict
from proxy.core.proxy_header import Header
from proxy.core.proxy_protocol import read_header
from proxy.engine.marks import UNMARKED, Marks
from proxy.engine.specs import EndpointSpec, HealthReport, SourceSpec, UpstreamSpec

PASSED, FAILED = Result(Verdict.PASSED, "well"), Result(Verdict.FAILED, "ill")


class Puppet:
    """A probe that ends as it is told, each time that it is let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.under_way = 0
        self._send, self._receive = trio.open_memory_channel[Result](100)

    async def run(self, sight: Sight) -> Result:
        self.runs += 1
        self.under_way += 1
        try:
            return await self._receive.receive()
        finally:
            self.under_way -= 1

    async def end(self, *results: Result) -> None:
        for result in results:
            self._send.send_nowait(result)
            await wait_all_tasks_blocked(0.002)


class Heard:
    """What workers were told."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, Health, str]] = []

    async def __call__(self, reports: Sequence[HealthReport]) -> None:
        await trio.lowlevel.checkpoint()
        self.reports += [(each.endpoint, each.health, each.reason) for each in reports]


def key(name: str = "e") -> CheckKey:
    return CheckKey("web", name, ("192.0.2.1", 80))


def plan(puppet: Puppet, rise: int = 2, fall: int = 2) -> CheckPlan:
    return CheckPlan(
        puppet,
        Sight(("192.0.2.1", 80), 1.0),
        (UNMARKED, None),
        interval=0.0001,
        thresholds=Thresholds(rise, fall),
    )


async def test_workers_are_told_of_changes_alone_and_so_is_the_log(nursery: trio.Nursery) -> None:
    heard, puppet = Heard(), Puppet()
    checks = Checks(heard)
    nursery.start_soon(checks.run)
    with structlog.testing.capture_logs() as logged:
        checks.become({key(): plan(puppet)})
        await wait_all_tasks_blocked(0.002)
        await puppet.end(PASSED, PASSED, FAILED, PASSED, FAILED, FAILED, FAILED, PASSED, PASSED)
    assert heard.reports == [
        ("e", Health.UP, "well"),
        ("e", Health.DOWN, "ill"),
        ("e", Health.UP, "well"),
    ]
    told = [(each["event"], each["log_level"], each["before"], each["reason"]) for each in logged]
    assert told == [
        ("endpoint_up", "info", "unknown", "well"),
        ("endpoint_down", "warning", "up", "ill"),
        ("endpoint_up", "info", "down", "well"),
    ]
    (row,) = checks.rows()
    assert (row["health"], row["result"], row["address"]) == ("up", "passed", "192.0.2.1:80")
    assert row["results"] == {"passed": 5, "failed": 4, "silent": 0}
    assert row["since"] is not None
    assert row["last"] is not None
    assert row["last"] >= row["since"] > 1e9


async def test_the_same_plan_again_disturbs_nothing(nursery: trio.Nursery) -> None:
    heard, puppet = Heard(), Puppet()
    checks = Checks(heard)
    nursery.start_soon(checks.run)
    checks.become({key(): plan(puppet)})
    await wait_all_tasks_blocked(0.002)
    assert puppet.runs == 1
    checks.become({key(): plan(puppet), key("other"): plan(Puppet())})
    await wait_all_tasks_blocked(0.002)
    assert (puppet.runs, puppet.under_way) == (1, 1)


async def test_another_plan_goes_on_with_what_was_learned(nursery: trio.Nursery) -> None:
    heard, one, two = Heard(), Puppet(), Puppet()
    checks = Checks(heard)
    nursery.start_soon(checks.run)
    checks.become({key(): plan(one)})
    await wait_all_tasks_blocked(0.002)
    await one.end(FAILED)
    checks.become({key(): plan(two)})
    await wait_all_tasks_blocked(0.002)
    assert one.under_way == 0
    await two.end(PASSED)
    assert [health for _, health, _ in heard.reports] == [Health.DOWN]
    await two.end(PASSED)
    assert [health for _, health, _ in heard.reports] == [Health.DOWN, Health.UP]


async def test_of_what_is_checked_no_more_nothing_is_known(nursery: trio.Nursery) -> None:
    heard, puppet = Heard(), Puppet()
    checks = Checks(heard)
    nursery.start_soon(checks.run)
    checks.become({key(): plan(puppet)})
    await wait_all_tasks_blocked(0.002)
    await puppet.end(FAILED)
    checks.become({})
    await wait_all_tasks_blocked(0.002)
    assert heard.reports == [("e", Health.DOWN, "ill"), ("e", Health.UNKNOWN, "")]
    assert checks.rows() == []
    assert puppet.under_way == 0
    checks.become({key(): plan(puppet)})
    await wait_all_tasks_blocked(0.002)
    await puppet.end(PASSED)
    assert heard.reports[2:] == [("e", Health.UP, "well")], "it begins anew"


async def test_probes_under_way_are_bounded(nursery: trio.Nursery) -> None:
    puppet = Puppet()
    checks = Checks(Heard())
    nursery.start_soon(checks.run)
    checks.become({key(f"e{number}"): plan(puppet) for number in range(3 * CHECKED_AT_ONCE)})
    await wait_all_tasks_blocked(0.002)
    assert puppet.under_way == CHECKED_AT_ONCE


def plans(keys: str, upstream: str = "", spec: UpstreamSpec | None = None) -> list[CheckPlan]:
    config = parse(
        '[listener.web]\nlisten = "tcp://127.0.0.1:0"\nupstream = "web"\n'
        f'[upstream.web]\nendpoints = ["db.example:80"]\n{upstream}\n'
        f"[upstream.web.health]\n{keys}\n",
        "f",
    )
    endpoints = tuple(
        EndpointSpec("db.example:80", address)
        for address in (("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0))
    )
    spec = spec or UpstreamSpec(name="web", endpoints=endpoints)
    return list(check_plans(config, {"web": spec}).values())


def test_each_address_of_a_name_is_checked() -> None:
    one, two = plans('check = "tcp"\nport = 81')
    assert one.sight.address == ("192.0.2.1", 81)
    assert two.sight.address == ("2001:db8::1", 81, 0, 0)
    assert plans('check = "off"') == []


def test_the_keys_become_probes() -> None:
    assert plans('check = "tcp"\nsend = "a"\nexpect_hex = "62"')[0].probe == TcpProbe(b"a", b"b")
    assert plans('check = "udp"\nsend_hex = "61"')[0].probe == UdpProbe(b"a")
    http = plans('check = "http"\npath = "/x"\nhost = "h"\nstatus = ["204"]')[0]
    assert http.probe == HttpProbe("/x", "h", (range(204, 205),))
    command = plans('check = "command"\ncommand = ["a", "b"]')[0]
    assert command.probe == CommandProbe(("a", "b"), "web", "db.example:80")
    timed = plans('check = "tcp"\ninterval = "7s"\ntimeout = "3s"\nrise = 4\nfall = 5')[0]
    assert (timed.interval, timed.sight.timeout, timed.thresholds) == (7.0, 3.0, Thresholds(4, 5))


def test_where_headers_are_sent_ours_say_that_it_is_us() -> None:
    assert plans('check = "tcp"')[0].sight.preface == b""
    for version in ("v1", "v2"):
        preface = plans('check = "tcp"', f'send_proxy = "{version}"')[0].sight.preface
        assert read_header(preface) == Header(len(preface))
    assert plans('check = "tcp"', 'send_proxy = "v2"')[0].sight.preface[12] == 0x20  # LOCAL


def test_another_way_is_another_plan() -> None:
    before = plans('check = "tcp"')
    assert plans('check = "tcp"') == before
    spec = UpstreamSpec(name="web", endpoints=(EndpointSpec("db.example:80", ("192.0.2.1", 80)),))
    plain = plans('check = "tcp"', spec=spec)
    marked = plans('check = "tcp"', spec=replace(spec, marks=Marks(mark=7)))
    sourced = plans('check = "tcp"', spec=replace(spec, source=SourceSpec((), range(1, 9))))
    assert plain != marked != sourced != plain


async def test_plans_that_change_faster_than_checks_begin(nursery: trio.Nursery) -> None:
    heard, puppet = Heard(), Puppet()
    checks = Checks(heard)
    nursery.start_soon(checks.run)
    for _ in range(50):
        checks.become({key(): plan(puppet)})
        await trio.lowlevel.checkpoint()
        checks.become({})
        await trio.lowlevel.checkpoint()
    checks.become({key(): plan(puppet)})
    await wait_all_tasks_blocked(0.002)
    assert puppet.under_way == 1
    await puppet.end(FAILED)
    assert heard.reports[-1] == ("e", Health.DOWN, "ill")
