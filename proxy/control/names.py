"""From the upstreams of the configuration to upstreams with socket addresses.

Names are resolved at the start and at each reload, all at the same time, each with a bound; the
resolver runs in threads, so it never blocks the relay.
"""

from __future__ import annotations

from socket import SOCK_STREAM, gaierror
from typing import TYPE_CHECKING, Final

import trio

from proxy.config.unix import UnixEndpoint
from proxy.control.outbound import copies_dscp, is_original, upstream_marks
from proxy.control.specs import style_of
from proxy.core.address import Address, HostPort, parse_address
from proxy.core.source import ANY_PORT
from proxy.core.unix import unix_address
from proxy.core.upstream import MulticastPath
from proxy.engine.sockaddr import scoped
from proxy.engine.specs import EndpointSpec, SourceSpec, UpstreamSpec

if TYPE_CHECKING:
    from proxy.config.model import Config
    from proxy.config.upstream import Endpoint, Upstream

RESOLVE_TIMEOUT: Final = 10.0
"""Seconds for one name; longer than any resolver's own retries are worth waiting for."""


class ResolveError(Exception):
    """Names have no address.

    Attributes:
        problems: one line for people about each.

    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


async def resolve_upstreams(config: Config) -> dict[str, UpstreamSpec]:
    """Resolve every endpoint of the configuration; of a name's addresses the first is taken.

    Raises:
        ResolveError: with every name that could not be resolved.

    """
    wanted = {
        (name, endpoint.address): None
        for name, upstream in config.upstream.items()
        if not is_original(upstream)
        for endpoint in upstream.endpoints
    }
    found: dict[tuple[str, HostPort], Address] = {}
    problems: dict[tuple[str, HostPort], str] = {}

    async def resolve(key: tuple[str, HostPort]) -> None:
        try:
            found[key] = await _resolve(f"upstream.{key[0]}", key[1])
        except ResolveError as error:
            problems[key] = str(error)

    async with trio.open_nursery() as nursery:
        for key in wanted:
            nursery.start_soon(resolve, key)
    if problems:
        raise ResolveError(*(problems[key] for key in wanted if key in problems))
    return {
        name: _upstream_spec(
            name, upstream, [(each, found.get((name, each.address))) for each in upstream.endpoints]
        )
        for name, upstream in config.upstream.items()
    }


def _upstream_spec(
    name: str, upstream: Upstream, addresses: list[tuple[Endpoint, Address | None]]
) -> UpstreamSpec:
    source = None
    if upstream.source is not None or upstream.source_ports is not None:
        source = SourceSpec(tuple(upstream.source or ()), upstream.source_ports or ANY_PORT)
    return UpstreamSpec(
        name=name,
        endpoints=tuple(
            EndpointSpec(str(each), found, each.weight, each.backup)
            for each, found in addresses
            if found
        ),
        original=is_original(upstream),
        multicast=MulticastPath(upstream.multicast_interface, upstream.multicast_ttl),
        marks=upstream_marks(upstream),
        copies_dscp=copies_dscp(upstream),
        source=source,
        style=style_of(upstream),
    )


async def _resolve(place: str, endpoint: HostPort) -> Address:
    if isinstance(endpoint, UnixEndpoint):
        return unix_address(endpoint.host)
    if endpoint.is_literal:
        return _literal(place, endpoint)
    try:
        with trio.fail_after(RESOLVE_TIMEOUT):
            found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, type=SOCK_STREAM)
    except (gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResolveError(_message(place, endpoint, str(reason))) from error
    except trio.TooSlowError as error:
        reason = f"no answer within {RESOLVE_TIMEOUT:.0f} s"
        raise ResolveError(_message(place, endpoint, reason)) from error
    host, port = found[0][4][:2]
    return parse_address(str(HostPort(str(host), int(port))))


def _literal(place: str, endpoint: HostPort) -> Address:
    if "%" not in endpoint.host:
        return parse_address(str(endpoint))
    try:
        return scoped(endpoint.host, endpoint.port)
    except OSError as error:
        message = f'{place}: cannot reach "{endpoint}": {error.strerror}; "ip link" lists them'
        raise ResolveError(message) from error


def _message(place: str, endpoint: HostPort, reason: str) -> str:
    return f'{place}: cannot resolve "{endpoint.host}": {reason}; check the name, or use an address'
