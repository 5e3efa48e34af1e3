"""What the worker is told of a configuration."""

from __future__ import annotations

from ipaddress import ip_network

from proxy.config.load import parse
from proxy.control.specs import listener_spec
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
