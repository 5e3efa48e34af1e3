"""From the upstreams of the configuration to upstreams with socket addresses.

An endpoint that is an address has one; one that is a name has as many as are known of it. Of those,
such are left out as nothing could come of: of a family that the upstream does not want, or has no
source for; and, while others are left, those that this host has no route to (RFC 6724 section 5,
rule 1), as those of IPv6 on a host that has none.

The weights of a service are its own, as parts of ``WEIGHT_MAX`` if they are larger; and of its
priorities the lowest number is asked, and all others are backups.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from socket import SOCK_DGRAM
from socket import socket as Socket
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.config.service import ServiceEndpoint
from proxy.config.unix import UnixEndpoint
from proxy.control.names import name_of
from proxy.control.outbound import copies_dscp, is_original, upstream_marks
from proxy.control.specs import style_of, waiting_of
from proxy.core.address import parse_address
from proxy.core.balance.ways import Balance
from proxy.core.ejection import EjectionTerms
from proxy.core.endpoint import WEIGHT_MAX
from proxy.core.names import Outcome
from proxy.core.source import ANY_PORT
from proxy.core.unix import unix_address
from proxy.core.upstream import MulticastPath
from proxy.engine.sockaddr import family_of, scoped
from proxy.engine.specs import EndpointSpec, SourceSpec, UpstreamSpec

if TYPE_CHECKING:
    from proxy.config.model import Config
    from proxy.config.upstream import Endpoint, Upstream
    from proxy.control.names import Names
    from proxy.core.address import Address, HostPort
    from proxy.core.names import Target

FAMILIES: Final = {"any": (4, 6), "ipv4": (4,), "ipv6": (6,)}
"""IP versions, by the configuration's word."""


class ResolveError(Exception):
    """Endpoints have no address.

    Attributes:
        problems: one line for people about each.

    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Unresolved(NamedTuple):
    """An endpoint without an address.

    Attributes:
        text: one line for people.
        final: whether trying again will not help: the file is wrong, and not the network.

    """

    text: str
    final: bool


def upstream_specs(config: Config, names: Names) -> dict[str, UpstreamSpec]:
    """Every upstream with the addresses that its endpoints have now, if any."""
    return {
        name: _upstream_spec(name, upstream, names) for name, upstream in config.upstream.items()
    }


def unresolved(config: Config, names: Names) -> list[Unresolved]:
    """The endpoints that have no address now, and why."""
    return [
        problem
        for name, upstream in config.upstream.items()
        if not is_original(upstream)
        for endpoint in upstream.endpoints
        if (problem := _problem(f"upstream.{name}", endpoint.address, upstream, names))
    ]


def _upstream_spec(name: str, upstream: Upstream, names: Names) -> UpstreamSpec:
    source = None
    if upstream.source is not None or upstream.source_ports is not None:
        source = SourceSpec(tuple(upstream.source or ()), upstream.source_ports or ANY_PORT)
    original = is_original(upstream)
    return UpstreamSpec(
        name=name,
        endpoints=()
        if original
        else tuple(
            spec for each in upstream.endpoints for spec in _endpoint_specs(each, upstream, names)
        ),
        original=original,
        balance=Balance(upstream.balance),
        ejection=EjectionTerms(**upstream.ejection.model_dump()),
        closes_fallen=upstream.on_down == "close",
        slow_start=upstream.slow_start or 0.0,
        waiting=waiting_of(upstream),
        multicast=MulticastPath(upstream.multicast_interface, upstream.multicast_ttl),
        marks=upstream_marks(upstream),
        copies_dscp=copies_dscp(upstream),
        source=source,
        style=style_of(upstream),
    )


def _endpoint_specs(endpoint: Endpoint, upstream: Upstream, names: Names) -> Iterable[EndpointSpec]:
    """An endpoint of the configuration as one spec for each of its addresses."""
    text, weight, backup = str(endpoint.address), endpoint.weight, endpoint.backup
    ceiling = inf if endpoint.flows is None else endpoint.flows
    if name_of(endpoint.address) is None:
        address = _fixed(endpoint.address)
        return [] if address is None else [EndpointSpec(text, address, weight, backup, ceiling)]
    targets = _wanted(names.targets(endpoint.address), upstream)
    if not isinstance(endpoint.address, ServiceEndpoint):
        return [EndpointSpec(text, each.address, weight, backup, ceiling) for each in targets]
    first = min((each.priority for each in targets), default=0)
    scale = min(1.0, WEIGHT_MAX / max([1, *(each.weight for each in targets)]))
    return [
        EndpointSpec(
            text,
            each.address,
            max(1, round(each.weight * scale)),
            backup or each.priority > first,
            ceiling,
        )
        for each in targets
    ]


def _wanted(targets: Iterable[Target], upstream: Upstream) -> list[Target]:
    """Those that flows of an upstream can go to."""
    versions = set(FAMILIES[upstream.family])
    if upstream.source:
        versions &= {_version(host) for host in upstream.source}
    fitting = [each for each in targets if _version(each.address[0]) in versions]
    if upstream.interface is not None or upstream.mark is not None:
        return fitting  # other routes than ours may be meant
    routed = {each.address[0] for each in fitting if _has_route(each.address)}
    return [each for each in fitting if each.address[0] in routed] or fitting


def _version(host: str) -> int:
    return 6 if ":" in host else 4


def _has_route(address: Address) -> bool:
    """Whether the kernel would know where to send; nothing is sent."""
    with Socket(family_of(address), SOCK_DGRAM) as asking:
        return asking.connect_ex(address) == 0


def _fixed(endpoint: HostPort) -> Address | None:
    """The address of an endpoint without a name; None while its interface is not there."""
    if isinstance(endpoint, UnixEndpoint):
        return unix_address(endpoint.host)
    if "%" not in endpoint.host:
        return parse_address(str(endpoint))
    try:
        return scoped(endpoint.host, endpoint.port)
    except OSError:
        return None


def _problem(place: str, endpoint: HostPort, upstream: Upstream, names: Names) -> Unresolved | None:
    resolution = names.of(endpoint)
    if resolution is None:
        if _fixed(endpoint) is not None:
            return None
        interface = endpoint.host.partition("%")[2]
        reason = f'there is no interface "{interface}"; "ip link" lists them'
        return Unresolved(f'{place}: cannot reach "{endpoint}": {reason}', final=True)
    if _wanted(resolution.targets, upstream):
        return None
    reason, final = resolution.reason, resolution.last is Outcome.ABSENT
    if resolution.targets:
        reason, final = f"it has no {_family_text(upstream)} address", True
    remedy = "check the name, or use an address"
    return Unresolved(f'{place}: cannot resolve "{endpoint.host}": {reason}; {remedy}', final)


def _family_text(upstream: Upstream) -> str:
    versions = set(FAMILIES[upstream.family])
    if upstream.source:
        versions &= {_version(host) for host in upstream.source}
    return " or ".join(f"IPv{version}" for version in sorted(versions))
