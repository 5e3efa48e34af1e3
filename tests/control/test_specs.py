"""What the worker is told of a configuration."""

from __future__ import annotations

import pickle
import sys
from ipaddress import ip_network
from pathlib import Path

from proxy.config.load import parse
from proxy.config.plan import plan
from proxy.control.specs import access_of, listener_spec
from proxy.core.access import ANYBODY, AccessList
from proxy.core.longest import LongestMatch
from proxy.core.survive import Survive

TEXT = """
[listener.web]
listen = "tcp://0.0.0.0:80"
upstream = "web"
[listener.web.limits]
bandwidth = "1MB/s"
weights = { "10.0.0.0/8" = 4 }
[upstream.web]
endpoints = ["10.0.0.1:80"]
"""


def test_weights_are_told() -> None:
    spec = listener_spec("web", parse(TEXT, "f").listener["web"])
    assert spec.bandwidth.weights == LongestMatch({ip_network("10.0.0.0/8"): 4})
    assert spec.bandwidth.weights != LongestMatch({ip_network("10.0.0.0/8"): 5})


def test_what_flows_live_on_through_is_told() -> None:
    spec = listener_spec("web", parse(TEXT, "f").listener["web"])
    assert spec.survive is Survive.RESTART
    text = TEXT.replace('upstream = "web"', 'upstream = "web"\nsurvive = "crash"', 1)
    assert listener_spec("web", parse(text, "f").listener["web"]).survive is Survive.CRASH


def test_access_is_of_the_lists_and_of_the_files(tmp_path: Path) -> None:
    allowed, denied = tmp_path / "allow.txt", tmp_path / "deny.txt"
    allowed.write_text("10.0.0.0/8\n10.2.0.0/16\n")
    denied.write_text("10.1.0.0/16\n10.2.0.0/16\n")
    access = access_with(
        f'allow_file = "{allowed}"\ndeny_file = "{denied}"\ndeny = ["10.3.0.0/16"]'
    )
    hosts = ["10.0.0.1", "10.1.0.1", "10.2.0.1", "10.3.0.1", "11.0.0.1", "2001:db8::1"]
    assert [host for host in hosts if access.admits(host)] == ["10.0.0.1"]


def test_an_empty_file_of_those_allowed_allows_nobody(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("# nobody yet\n")
    assert not access_with(f'allow_file = "{empty}"').admits("10.0.0.1")
    assert access_with(f'deny_file = "{empty}"') is ANYBODY
    assert access_with('allow = ["10.0.0.0/8"]').admits("10.0.0.1")


def test_what_is_done_with_a_file_beside_the_relay_does_not_grow_with_it(tmp_path: Path) -> None:
    # the first time, caches are filled
    _, few, many = (calls_for(tmp_path / f"{count}.txt", count) for count in (1, 10, 5000))
    assert few == many > 0


def calls_for(file: Path, prefixes: int) -> int:
    """The calls of what the relay's thread does at a reload, once a file has been read."""
    file.write_text("".join(f"10.{n >> 8}.{n & 255}.0/24\n" for n in range(prefixes)))
    text = TEXT.replace('upstream = "web"', f'upstream = "web"\ndeny_file = "{file}"', 1)
    before = parse(text, "f")
    with file.open("a") as more:
        more.write("192.0.2.0/24\n")
    after = parse(text, "f")
    calls = 0

    def count(_frame: object, event: str, _detail: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        lines = plan(before, after).lines()
        spec = listener_spec("web", after.listener["web"])
        body = pickle.dumps(spec)
    finally:
        sys.setprofile(None)
    assert len(lines) == 1
    assert not pickle.loads(body).access.admits("10.0.0.1")
    return calls


def access_with(keys: str) -> AccessList:
    text = TEXT.replace('upstream = "web"', f'upstream = "web"\n{keys}', 1)
    return access_of(parse(text, "f").listener["web"])
