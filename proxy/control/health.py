"""Active health checks: each address of an endpoint is asked again and again, by the supervisor.

One task an address, which sleeps, probes, learns and reports a change to all workers; so an
address is checked once, however many workers there are. What is checked follows the configuration
and the addresses of names: ``Checks.become`` says what that is now. What was learned of an address
stays for as long as it is checked, whatever else changes; when it is checked no more, workers are
told that nothing is known of it.

At most ``CHECKED_AT_ONCE`` probes are under way; others wait for their turn, and are late.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog
import trio

from proxy.control.outbound import check_outbound
from proxy.control.probe_command import CommandProbe
from proxy.control.probe_http import HttpProbe
from proxy.control.probes import Sight, TcpProbe, UdpProbe
from proxy.core.address import format_address
from proxy.core.condition import Health
from proxy.core.health import Checked, Thresholds, pause
from proxy.core.proxy_block import LOCAL_BLOCK
from proxy.core.proxy_line import UNKNOWN_LINE
from proxy.core.unix import UnixAddress
from proxy.engine.specs import HealthReport

if TYPE_CHECKING:
    from proxy.config import health as config_health
    from proxy.config.model import Config
    from proxy.config.upstream import Upstream
    from proxy.core.address import Address
    from proxy.core.health import Result
    from proxy.engine.marks import Marks
    from proxy.engine.port import CheckRow
    from proxy.engine.specs import EndpointSpec, SourceSpec, UpstreamSpec

CHECKED_AT_ONCE: Final = 64
"""Probes under way: each has a descriptor, or a process."""

PREFACES: Final = {None: b"", "v1": UNKNOWN_LINE, "v2": LOCAL_BLOCK}
"""How our own connections begin where a PROXY header is expected, by the configuration's word."""

log = structlog.get_logger()


class Probe(Protocol):
    """One kind of check; see ``probes``."""

    async def run(self, sight: Sight) -> Result:
        """Do it."""
        ...


class CheckKey(NamedTuple):
    """What is checked: one address of an endpoint."""

    upstream: str
    endpoint: str
    address: Address


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """How it is checked.

    Attributes:
        probe: what is done.
        sight: where to.
        way: what the way there is made of, by which plans are compared.
        interval: seconds from one check to the next.
        thresholds: of results in a row.

    """

    probe: Probe
    sight: Sight
    way: tuple[Marks, SourceSpec | None]
    interval: float
    thresholds: Thresholds


class Checks:
    """Checks addresses, and knows how they are.

    Args:
        report: tells the workers.

    """

    def __init__(self, report: Callable[[Sequence[HealthReport]], Awaitable[None]]) -> None:
        self._report = report
        self._plans: Mapping[CheckKey, CheckPlan] = {}
        self._states: dict[CheckKey, Checked] = {}
        self._scopes: dict[CheckKey, trio.CancelScope] = {}
        self._turns = trio.CapacityLimiter(CHECKED_AT_ONCE)
        self._woken = trio.Event()

    def become(self, plans: Mapping[CheckKey, CheckPlan]) -> None:
        """Check these addresses, and no others any more, from the next turn on."""
        for key, scope in list(self._scopes.items()):
            if plans.get(key) != self._plans.get(key):
                scope.cancel()
                del self._scopes[key]
        self._plans = plans
        self._woken.set()

    async def run(self) -> None:
        """Check until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._woken = trio.Event()
                await self._forget()
                for key, plan in self._plans.items():
                    if key not in self._scopes:
                        state = self._states.setdefault(key, Checked())
                        scope = self._scopes[key] = trio.CancelScope()
                        nursery.start_soon(self._watch, key, plan, state, scope)
                await self._woken.wait()

    def rows(self) -> list[CheckRow]:
        """How every address that is checked is; times are Unix seconds."""
        offset = time() - monotonic()
        return [_row(key, state, offset) for key in self._plans if (state := self._states.get(key))]

    async def _forget(self) -> None:
        """Know nothing any more of what is not checked, and say so."""
        gone = [key for key in self._states if key not in self._plans]
        for key in gone:
            del self._states[key]
        if gone:
            await self._report([HealthReport(*key, Health.UNKNOWN, "") for key in gone])

    async def _watch(
        self, key: CheckKey, plan: CheckPlan, state: Checked, scope: trio.CancelScope
    ) -> None:
        with scope:
            while True:
                async with self._turns:
                    began = monotonic()
                    result = await plan.probe.run(plan.sight)
                now, before, since = monotonic(), state.health, state.since
                if state.learn(result, now, now - began, plan.thresholds):
                    _tell(key, state, before, now - (began if since is None else since))
                    with trio.CancelScope(shield=True):  # what was learned, workers must know
                        await self._report([HealthReport(*key, state.health, result.reason)])
                await trio.sleep(pause(plan.interval, random.random()))  # noqa: S311 - of no value


def check_plans(config: Config, upstreams: Mapping[str, UpstreamSpec]) -> dict[CheckKey, CheckPlan]:
    """What has to be checked, and how.

    Args:
        config: at work.
        upstreams: with the addresses that they have now.

    """
    return {
        CheckKey(name, endpoint.name, endpoint.address): _plan(upstream, upstreams[name], endpoint)
        for name, upstream in config.upstream.items()
        if upstream.health.check != "off"
        for endpoint in upstreams[name].endpoints
    }


def _plan(upstream: Upstream, spec: UpstreamSpec, endpoint: EndpointSpec) -> CheckPlan:
    health = upstream.health
    sight = Sight(
        _at_port(endpoint.address, health.port),
        health.timeout,
        check_outbound(upstream),
        PREFACES[upstream.send_proxy],
    )
    return CheckPlan(
        probe=_probe(health, spec.name, endpoint.name),
        sight=sight,
        way=(spec.marks, spec.source),
        interval=health.interval,
        thresholds=Thresholds(health.rise, health.fall),
    )


def _probe(health: config_health.Health, upstream: str, endpoint: str) -> Probe:
    send = health.send or health.send_hex or b""
    expect = health.expect or health.expect_hex or health.expect_regex
    match health.check:
        case "http":
            return HttpProbe(health.path, health.host, health.status)
        case "udp":
            return UdpProbe(send, expect)
        case "command":
            return CommandProbe(health.command or (), upstream, endpoint)
    return TcpProbe(send, expect)


def _at_port(address: Address, port: int | None) -> Address:
    """The same host at another port; a Unix socket has none."""
    if port is None or isinstance(address, UnixAddress):
        return address
    host, _, *rest = address
    return (host, port, rest[0], rest[1]) if rest else (host, port)


def _tell(key: CheckKey, state: Checked, before: Health, lasted: float) -> None:
    """Log what has become of an address."""
    assert state.last is not None
    facts = {
        "upstream": key.upstream,
        "endpoint": key.endpoint,
        "address": format_address(key.address),
        "reason": state.last.reason,
        "before": before.value,
        "lasted": round(lasted, 3),
    }
    match state.health:
        case Health.UP:
            log.info("endpoint_up", **facts)
        case Health.DOWN:
            log.warning("endpoint_down", **facts)
        case Health.UNKNOWN:
            log.info("endpoint_unknown", **facts)


def _row(key: CheckKey, state: Checked, offset: float) -> CheckRow:
    last = state.last
    return {
        "upstream": key.upstream,
        "endpoint": key.endpoint,
        "address": format_address(key.address),
        "health": state.health.value,
        "since": None if state.since is None else round(state.since + offset, 3),
        "result": None if last is None else last.verdict.value,
        "reason": "" if last is None else last.reason,
        "last": None if last is None else round(state.last_at + offset, 3),
        "duration": round(state.took, 6),
        "results": {verdict.value: count for verdict, count in state.verdicts.items()},
    }
