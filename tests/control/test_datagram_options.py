"""From the keys of the file to what the engine is told about datagrams."""

from __future__ import annotations

from proxy.config.load import parse
from proxy.control.endpoints import upstream_specs
from proxy.control.names import Names
from proxy.control.specs import datagram_options
from proxy.core.upstream import MulticastPath
from proxy.engine.datagram_options import ORDINARY, DatagramOptions, Pmtu

TEXT = """
[listener.plain]
listen = "udp://0.0.0.0:1"
upstream = "plain"

[listener.all]
listen = "udp://0.0.0.0:2"
upstream = "all"
pmtu = "probe"
responses = 2
datagrams = 3
broadcast = true
multicast = ["239.1.1.1"]

[upstream.plain]
endpoints = ["10.0.0.1:1"]

[upstream.all]
endpoints = ["239.1.1.1:2"]
multicast_interface = "eth1"
multicast_ttl = 4
"""


def test_every_key_reaches_the_engine() -> None:
    listeners = parse(TEXT, "f").listener
    assert datagram_options(listeners["plain"]) == ORDINARY
    assert datagram_options(listeners["all"]) == DatagramOptions(
        pmtu=Pmtu.PROBE, responses=2, datagrams=3, broadcast=True, multicast=True
    )


def test_the_way_to_groups_reaches_the_engine() -> None:
    upstreams = upstream_specs(parse(TEXT, "f"), Names())
    assert upstreams["plain"].multicast == MulticastPath(None, 1)
    assert upstreams["all"].multicast == MulticastPath("eth1", 4)
