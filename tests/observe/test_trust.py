"""Which names are our own, which pages are strangers', and which users may change something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog.testing

from proxy.observe.trust import Trust
from tests.observe.admin import admin_server
from tests.observe.fake_relay import FakeRelay

TRUST = Trust(frozenset({"proxy.example.net"}))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9600",
        "192.0.2.1:80",
        "[::1]",
        "[::1]:9600",
        "localhost",
        "LocalHost:9600",
        "proxy.example.net",
        "Proxy.Example.NET:443",
    ],
)
def test_our_own_names(host: str) -> None:
    assert TRUST.objection({"host": host}) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:9600",
        "proxy.example.net.evil.example",
        "xproxy.example.net",
        "proxy.example.net:80:80",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "[evil.example]",
        "[::1",
    ],
)
def test_names_of_strangers(host: str) -> None:
    said = TRUST.objection({"host": host})
    assert said is not None
    assert "admin.hosts" in said


def test_no_name_is_no_browser() -> None:
    assert TRUST.objection({}) is None


@pytest.mark.parametrize(
    ("site", "mode", "answered"),
    [
        ("same-origin", "cors", True),
        ("none", "navigate", True),
        ("cross-site", "navigate", True),
        ("cross-site", "no-cors", False),
        ("cross-site", "cors", False),
        ("same-site", "cors", False),
    ],
)
def test_pages_of_other_origins(site: str, mode: str, answered: bool) -> None:
    headers = {"host": "127.0.0.1:9600", "sec-fetch-site": site, "sec-fetch-mode": mode}
    assert (TRUST.objection(headers) is None) is answered


async def test_only_the_users_named_may_change_something(tmp_path: Path) -> None:
    relay = FakeRelay()
    relay.open_tcp()
    nobody = Trust(users=frozenset({os.getuid() + 1}))
    with structlog.testing.capture_logs() as logs:
        async with admin_server(relay, tmp_path, trust=nobody) as admin:
            assert (await admin.control("GET", "/api/v1/flows/1")).status == 200
            answer = await admin.control("DELETE", "/api/v1/flows/1")
            assert answer.status == 403
            assert "admin.users" in answer.json["error"]
            answer = await admin.control("POST", "/api/v1/flows/1")
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert len(relay.live) == 1
    assert [(entry["event"], entry["asked"]) for entry in logs] == [
        ("change_refused", "DELETE /api/v1/flows/1")
    ]
    assert f"uid {os.getuid()}" in logs[0]["by"]


async def test_who_is_named_may(tmp_path: Path) -> None:
    relay = FakeRelay()
    relay.open_tcp()
    us = Trust(users=frozenset({os.getuid()}))
    with structlog.testing.capture_logs() as logs:
        async with admin_server(relay, tmp_path, trust=us) as admin:
            assert (await admin.control("DELETE", "/api/v1/flows/1")).status == 200
    assert [entry["event"] for entry in logs] == ["flows_killed"]
    assert f"pid {os.getpid()} uid {os.getuid()}" == logs[0]["by"]


async def test_by_tcp_nobody_is_told_what_strangers_may_not_see(tmp_path: Path) -> None:
    async with admin_server(FakeRelay(), tmp_path, trust=TRUST) as admin:
        assert (await admin.get("/metrics", Host="proxy.example.net:9600")).status == 200
        assert (await admin.get("/metrics", Host="evil.example")).status == 403
        foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
        assert (await admin.get("/metrics", **foreign)).status == 403


@pytest.mark.parametrize(
    ("origin", "answered"),
    [
        ("http://127.0.0.1:9600", True),
        ("https://127.0.0.1:9600", True),
        ("http://127.0.0.1:8000", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_browsers_without_fetch_metadata_tell_the_origin(origin: str, answered: bool) -> None:
    headers = {"host": "127.0.0.1:9600", "origin": origin}
    assert (TRUST.objection(headers) is None) == answered
    assert TRUST.objection({**headers, "sec-fetch-site": "same-origin"}) is None
