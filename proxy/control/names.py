"""From the upstreams of the configuration to upstreams with socket addresses.

Names are resolved once, at the start, each with a bound; the resolver runs in a thread, so it never
blocks the relay.
"""

from __future__ import annotations

from socket import SOCK_STREAM, gaierror
from typing import TYPE_CHECKING, Final

import trio

from proxy.config.unix import UnixEndpoint
from proxy.control.outbound import is_original
from proxy.core.address import Address, HostPort, parse_address
from proxy.core.unix import unix_address
from proxy.core.upstream import Endpoint, MulticastPath, OriginalUpstream, Upstream
from proxy.engine.sockaddr import scoped

if TYPE_CHECKING:
    from proxy.config.model import Config

RESOLVE_TIMEOUT: Final = 10.0
"""Seconds for one name; longer than any resolver's own retries are worth waiting for."""


class ResolveError(Exception):
    """A name has no address. Its text is one line for people."""


async def resolve_upstreams(config: Config) -> dict[str, Upstream]:
    """Resolve every endpoint of the configuration; of a name's addresses the first is taken.

    Raises:
        ResolveError: a name could not be resolved.

    """
    return {
        name: OriginalUpstream(name)
        if is_original(upstream)
        else Upstream(
            name,
            [
                Endpoint(name, str(endpoint), await _resolve(f"upstream.{name}", endpoint))
                for endpoint in upstream.endpoints
            ],
            MulticastPath(upstream.multicast_interface, upstream.multicast_ttl),
        )
        for name, upstream in config.upstream.items()
    }


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
