"""The plan of a reload: what is shown for what has changed."""

from __future__ import annotations

import json

import pytest

from proxy.config.load import parse
from proxy.config.model import Config
from proxy.config.plan import LINES_MAX, Drained, Plan, applicable, plan

BASE = """
[listener.web]
listen = "tcp://0.0.0.0:8080"
upstream = "web"
[listener.dns]
listen = "udp://[::]:53"
upstream = "dns"
[upstream.web]
endpoints = ["10.0.0.1:80", "10.0.0.2:80"]
[upstream.dns]
endpoints = ["10.0.0.53:53"]
"""


def config(*changes: tuple[str, str], more: str = "") -> Config:
    text = BASE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse(more + text, "f")


def lines(new: Config, **drained: object) -> list[str]:
    return plan(config(), new, Drained(**drained)).lines()  # type: ignore[arg-type]


def test_nothing_changes_nothing() -> None:
    assert plan(config(), config()) == Plan(())


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (
            config(('"tcp://0.0.0.0:8080"', '"tcp://0.0.0.0:80"')),
            ["~ listener.web.listen: tcp://0.0.0.0:8080 -> tcp://0.0.0.0:80"],
        ),
        (
            config(more='[listener.web.limits.per_flow]\nidle = "10m"\nduration = "1h"\n'),
            [
                "~ listener.web.limits.per_flow.idle: not set -> 10m; live flows too",
                "~ listener.web.limits.per_flow.duration: not set -> 1h; live flows too",
            ],
        ),
        (
            config(more='[listener.web.limits]\nbandwidth = "10Mbit/s"\nper_flow.bytes = "1GiB"\n'),
            [
                "~ listener.web.limits.bandwidth: not set -> 10Mbit/s; live flows too",
                "~ listener.web.limits.per_flow.bytes: not set -> 1GiB; live flows too",
            ],
        ),
        (
            config(
                more='[listener.web.limits]\nbandwidth = "1MB/s"\nweights = { "10.0.0.0/8" = 4 }\n'
            ),
            [
                "~ listener.web.limits.bandwidth: not set -> 8Mbit/s; live flows too",
                "~ listener.web.limits.weights: none -> 10.0.0.0/8 = 4; live flows too",
            ],
        ),
        (
            config(more="[listener.web.tcp]\nnodelay = false\n"),
            ["~ listener.web.tcp.nodelay: true -> false"],
        ),
        (
            config(('upstream = "dns"', 'upstream = "dns"\nreceive_buffer = "4MiB"')),
            ["~ listener.dns.receive_buffer: not set -> 4MiB"],
        ),
        (
            config(("10.0.0.2:80", "10.0.0.3:80")),
            [
                "+ endpoint 10.0.0.3:80 of upstream web",
                "- endpoint 10.0.0.2:80 of upstream web: no new flows, those it has live on",
            ],
        ),
        (
            config(
                ("[listener.dns]", "[listener.names]"),
                ('"dns"', '"names"'),
                ("[upstream.dns]", "[upstream.names]"),
            ),
            [
                "+ listener names: udp://[::]:53 to names",
                "- listener dns: accepts no more, its flows drain",
                "+ upstream names: 10.0.0.53:53",
                "- upstream dns: no new flows, those it has live on",
            ],
        ),
        (
            config(more='[engine]\ndrain_rate = "5/s"\ndrain_timeout = "1m"\nrecent = 5\n'),
            [
                "~ engine.recent: 1000 -> 5",
                "~ engine.drain_timeout: 30s -> 1m",
                "~ engine.drain_rate: 1000/s -> 5/s",
            ],
        ),
        (config(more='[log]\nflows = "off"\n'), ["~ log.flows: all -> off"]),
        (
            config(more='[admin]\nhttp = ""\n'),
            ["! admin.http: 127.0.0.1:9600 -> not set; needs a restart"],
        ),
        (
            config(('"10.0.0.53:53"]', '"10.0.0.53:53"]\nsource_ports = "1024-2047"\nmark = 7')),
            [
                "~ upstream.dns.source_ports: not set -> 1024-2047",
                "~ upstream.dns.mark: not set -> 7",
            ],
        ),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_a_change_is_shown(new: Config, expected: list[str]) -> None:
    assert lines(new) == expected


def test_what_was_drained_by_hand_opens_again() -> None:
    drained = {"listeners": {"web"}, "endpoints": {("web", "10.0.0.1:80"), ("web", "gone:1")}}
    assert lines(config(), **drained) == [
        "+ listener web: it was drained, and opens again",
        "+ endpoint 10.0.0.1:80 of upstream web: it was drained, and is chosen again",
    ]


def test_programs_are_told_the_same() -> None:
    steps = plan(config(), config(more='[listener.web.limits.per_flow]\nidle = "10m"\n'))
    assert json.loads(json.dumps(steps.rows())) == [
        {
            "act": "change",
            "subject": "listener.web.limits.per_flow.idle",
            "note": "not set -> 10m; live flows too",
            "affects_live_flows": True,
        }
    ]


def test_what_needs_a_restart_is_not_applied() -> None:
    new = config(more='[admin]\nhttp = ""\n[engine]\nrecent = 5\n')
    applied = applicable(config(), new)
    assert applied.admin == config().admin
    assert applied.engine.recent == 5
    assert plan(applied, new).lines() == [
        "! admin.http: 127.0.0.1:9600 -> not set; needs a restart"
    ]


def test_a_plan_is_bounded() -> None:
    endpoints = ", ".join(f'"10.1.{n // 250}.{n % 250 + 1}:80"' for n in range(LINES_MAX + 5))
    steps = plan(config(), config(('"10.0.0.2:80"', endpoints)))
    assert len(steps.lines()) == LINES_MAX + 1
    assert steps.lines()[-1] == "and 6 more"
    assert len(steps.rows()) == LINES_MAX


def test_a_lone_process_cannot_begin_to_keep_flows_through_its_end() -> None:
    crash = config(('upstream = "dns"', 'upstream = "dns"\nsurvive = "crash"'))
    (line,) = plan(config(), crash, is_alone=True).lines()
    assert line == "! listener.dns.survive: restart -> crash; needs a restart"
    assert plan(config(), crash).lines() == ["~ listener.dns.survive: restart -> crash"]
    assert applicable(config(), crash, is_alone=True) == config()
    assert applicable(config(), crash) == crash


def test_a_new_listener_of_a_lone_process_does_without() -> None:
    more = '[listener.x]\nlisten = "tcp://0.0.0.0:1"\nupstream = "web"\nsurvive = "crash"\n'
    assert lines(config(more=more)) == ["+ listener x: tcp://0.0.0.0:1 to web"]
    applied = applicable(config(), config(more=more), is_alone=True)
    assert applied.listener["x"].survive == "restart"
    assert plan(applied, config(more=more), is_alone=True).lines() == [
        "! listener.x.survive: restart -> crash; needs a restart"
    ]
