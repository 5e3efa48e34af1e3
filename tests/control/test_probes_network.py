"""What ICMP says to a probe, in network namespaces: loopback knows closed ports alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.control.probes import Sight, UdpProbe
from proxy.core.health import Result, Verdict
from tests.engine.udp_network import Network, require_namespaces

SILENCE = Result(Verdict.SILENT, "no answer within 0.3 s")


@pytest.fixture
def network() -> Iterator[Network]:
    """``proxy`` and ``one`` on a bridge; the test is on ``proxy``."""
    require_namespaces()
    network = Network()
    try:
        for host in ("proxy", "one"):
            network.add(host)
        network.join("far", "proxy", "eth0", "10.0.2.1/24", "fd02::1/64")
        network.join("far", "one", "eth0", "10.0.2.2/24", "fd02::2/64")
        with network.inside("proxy"):
            yield network
    finally:
        network.close()


@pytest.mark.parametrize(
    ("family", "reject", "reason"),
    [
        ("ip", "icmp type port-unreachable", "port unreachable"),
        ("ip", "icmp type host-unreachable", "host unreachable"),
        ("ip", "icmp type net-unreachable", "network unreachable"),
        ("ip", "icmp type admin-prohibited", "prohibited on the way"),
        ("ip6", "icmpv6 type addr-unreachable", "host unreachable"),
        ("ip6", "icmpv6 type no-route", "network unreachable"),
        ("ip", "icmp type prot-unreachable", None),
    ],
)
async def test_what_says_that_nothing_arrives_is_a_failure(
    network: Network, family: str, reject: str, reason: str | None
) -> None:
    host = "10.0.2.2" if family == "ip" else "fd02::2"
    network.run("one", "nft", f"add table {family} t")
    network.run("one", "nft", f"add chain {family} t c {{ type filter hook input priority 0; }}")
    network.run("one", "nft", f"add rule {family} t c udp dport 53 reject with {reject}")
    network.socket("one", host, 53)
    address = (host, 53) if family == "ip" else (host, 53, 0, 0)
    result = await UdpProbe(b"x").run(Sight(address, 5.0 if reason else 0.3))
    assert result == (SILENCE if reason is None else Result(Verdict.FAILED, reason))
