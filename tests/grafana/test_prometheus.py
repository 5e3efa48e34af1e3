"""Every expression of every dashboard, rule and alert, asked of a real Prometheus.

It scrapes a real sockpair by deploy/prometheus.yml, only more often, while flows are opened,
refused and reset, datagrams are dropped and an endpoint is dead. Each
expression must have an answer without NaN.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import PATIENCE, until
from tests.e2e.program import ROOT, free_port, output_of, peer, program
from tests.e2e.sockets import connect, echo, listen, reset, say
from tests.e2e.subject import Forward, Sockpair
from tests.grafana.boards import NAMES, Expression, expressions, headings, panels, variables

DEPLOY: Final = ROOT / "deploy"
WINDOW: Final = "5s"
"""In place of $__rate_interval: four scrapes and more, as Grafana has it."""

CHOICES: Final = {
    "job": "sockpair",
    "flows_job": "sockpair-flows",
    "instance": ".*",
    "listener": ".*",
    "upstream": ".*",
    "__rate_interval": WINDOW,
    "__range": "1m",
}
PAUSE: Final = 0.1
"""Seconds between two rounds of traffic."""


@dataclass(frozen=True)
class LimitedForward(Forward):
    """A listener that admits one flow, and refuses, or counts, the others."""

    dry_run: bool = False

    @property
    def toml(self) -> str:
        limits = (
            f"[listener.{self.name}.limits]\nflows = 1\ndry_run = {str(self.dry_run).lower()}\n"
        )
        return limits + super().toml.replace(f'upstream = "{self.name}"\n', "", 1).replace(
            f"[listener.{self.name}]\n", f'[listener.{self.name}]\nupstream = "{self.name}"\n', 1
        )


class CheckedForward(Forward):
    """A listener whose endpoint is checked."""

    @property
    def toml(self) -> str:
        return f'{super().toml}[upstream.{self.name}.health]\ncheck = "tcp"\ninterval = "1s"\n'


class QueuedForward(Forward):
    """A listener that counts its routes, and whose flows wait while its endpoint is full."""

    @property
    def toml(self) -> str:
        (endpoint,) = self.endpoints
        table = f'{{ address = "{endpoint}", flows = 100 }}'
        text = super().toml.replace(f'"{endpoint}"', table)
        routes = f'[listener.{self.name}.routes]\n"www.example.org" = "{self.name}"\n'
        upstream = f'upstream = "{self.name}"\n'
        text = text.replace(upstream, f"{upstream}route_metrics = true\n{routes}", 1)
        return f'{text}when_full = "wait"\n'


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def ask(self, path: str, **params: str) -> Any:
        """The data of an answer; an error is a failed test."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(params)}"
        answer = await trio.to_thread.run_sync(self._read, url)
        assert answer["status"] == "success", (params, answer)
        return answer["data"]

    async def is_ready(self) -> bool:
        return await trio.to_thread.run_sync(self._is_ready)

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=PATIENCE) as answer:
                return bool(answer.status == 200)
        except OSError:  # it does not listen, or it reads its files
            return False

    def _read(self, url: str) -> Any:
        with urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)

    async def values(self, expression: str) -> list[float]:
        """The values of an expression now."""
        data = await self.ask("query", query=expression)
        return [float(each["value"][1]) for each in data["result"]]

    async def names(self, query: str) -> list[str]:
        """What ``label_values(SERIES, LABEL)``, Grafana's own, gives."""
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
        assert found, query
        names: list[str] = await self.ask(
            f"label/{found[2]}/values", **{"match[]": filled(found[1])}
        )
        return names


def filled(text: str) -> str:
    """An expression with the variables of Grafana filled in."""
    return re.sub(r"\$([a-z_]\w*)", lambda found: CHOICES[found[1]], text)


@asynccontextmanager
async def prometheus(folder: Path, sockpair: Sockpair) -> AsyncIterator[Prometheus]:
    """Run a server with the configuration of deploy/, every second."""
    text = (DEPLOY / "prometheus.yml").read_text()
    text = text.replace("127.0.0.1:9600", f"127.0.0.1:{sockpair.settings.admin_port}")
    text = re.sub(r"(interval): \d+s", r"\1: 1s", text)
    text = re.sub(r"- (\w+\.yml)", rf"- {DEPLOY}/\1", text)
    file = folder / "prometheus.yml"
    file.write_text(text)
    port = free_port()
    command = [
        peer("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    server = Prometheus(port)
    async with program(command, folder, server.is_ready, name="prometheus"):
        yield server


@pytest.fixture
async def scraped(stage: Stage, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """A server that scrapes a busy, troubled house."""
    endpoint = await listen(stage.nursery, echo)
    dead = f"127.0.0.1:{free_port()}"
    forwards = {
        "web": CheckedForward("web", "tcp", [endpoint]),
        "dead": Forward("dead", "tcp", [dead]),
        "named": QueuedForward("named", "tcp", [endpoint.replace("127.0.0.1", "localhost")]),
        "full": LimitedForward("full", "tcp", [endpoint]),
        "dry": LimitedForward("dry", "tcp", [endpoint], dry_run=True),
        "dns": Forward("dns", "udp", [dead]),
    }
    sockpair = await stage.sockpair(*forwards.values())
    folder = tmp_path / "prometheus"
    folder.mkdir()
    async with prometheus(folder, sockpair) as server, trio.open_nursery() as nursery:
        for each in ("full", "dry", "web"):
            nursery.start_soon(stay, forwards[each])
        for trouble in (come_and_go, come_and_reset, drop):
            nursery.start_soon(again, trouble, forwards)
        yield server
        nursery.cancel_scope.cancel()


async def stay(forward: Forward) -> None:
    """One flow that lives, and says something now and then."""
    async with await connect(forward.address) as client:
        while True:
            await say(client, b"x" * 1000)
            await trio.sleep(PAUSE)


async def again(
    trouble: Callable[[dict[str, Forward]], Awaitable[None]], forwards: dict[str, Forward]
) -> None:
    while True:
        await trouble(forwards)
        await trio.sleep(PAUSE)


async def come_and_go(forwards: dict[str, Forward]) -> None:
    """Flows that are finished, refused by a limit, and refused by a dead endpoint."""
    for name in ("web", "dead", "full", "dry"):
        try:
            async with await connect(forwards[name].address) as client:
                await client.send_all(b"hello")
                await client.receive_some(5)
        except (OSError, trio.BrokenResourceError):
            assert name in {"dead", "full"}


async def come_and_reset(forwards: dict[str, Forward]) -> None:
    async with await connect(forwards["web"].address) as client:
        await say(client, b"hello")
        reset(client)


async def drop(forwards: dict[str, Forward]) -> None:
    """A datagram for a port where nobody is."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as client:
        await client.sendto(b"hello", forwards["dns"].address)


async def answered(server: Prometheus, asked: list[Expression]) -> None:
    """Wait until every expression has an answer; then none has NaN in it."""
    open_ = {each.place: filled(each.text) for each in asked}

    async def look() -> bool:
        for place, text in list(open_.items()):
            values = await server.values(text)
            if values:
                assert all(map(math.isfinite, values)), place
                del open_[place]
        return not open_

    try:
        await until(look, "an answer to every expression", 4 * PATIENCE)
    except AssertionError:
        if not open_:
            raise
        raise AssertionError(f"no answer to {open_}") from None


@pytest.mark.peers("prometheus")
async def test_every_panel_has_data(scraped: Prometheus) -> None:
    asked = [each for name in NAMES for each in expressions(name)]
    assert len(asked) > sum(len(list(panels(name))) for name in NAMES)
    assert all(headings(name) for name in NAMES)
    await answered(scraped, asked)
    for name in NAMES:
        for variable, each in variables(name).items():
            if each["type"] == "query":
                assert await scraped.names(each["query"]), (name, variable)


@pytest.mark.peers("prometheus")
async def test_every_rule_and_alert_has_data(scraped: Prometheus) -> None:
    async def groups() -> list[Any] | None:
        data = await scraped.ask("rules")
        rules = [rule for group in data["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] == "ok" for rule in rules) else None

    rules = await until(groups, "every rule to have been evaluated")
    assert {rule["type"] for rule in rules} == {"alerting", "recording"}
    await answered(scraped, [Expression(rule["name"], asked_by(rule)) for rule in rules])


def asked_by(rule: dict[str, Any]) -> str:
    """What a rule records; or the condition of an alert as 0 or 1, since most do not fire."""
    if rule["type"] == "recording":
        return str(rule["name"])
    condition, count = re.subn(r" (==|[<>]=?) (?=[\d.]+$)", r" \1 bool ", rule["query"])
    assert count == 1, rule["query"]
    return condition


@pytest.mark.peers("promtool")
async def test_promtool_takes_and_proves_the_rules() -> None:
    promtool = peer("promtool")
    await output_of(promtool, "check", "config", DEPLOY / "prometheus.yml")
    await output_of(promtool, "check", "rules", DEPLOY / "rules.yml", DEPLOY / "alerts.yml")
    await output_of(promtool, "test", "rules", DEPLOY / "rules_test.yml")
