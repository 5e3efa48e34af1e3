"""From the keys about sources and marks to what the engine does with them, tried out beforehand.

What needs a privilege, an address or an interface that is not there fails here, before anything
runs, with one line that says what to do.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from proxy.config.packets import COPY
from proxy.config.values import ORIGINAL
from proxy.core.source import ANY_PORT, SourcePool
from proxy.engine.marks import MarkError, Marks
from proxy.engine.outbound import Outbound

if TYPE_CHECKING:
    from proxy.config.model import Config, Listener
    from proxy.config.upstream import Upstream

REMEDIES: Final = {
    ("transparent", errno.EPERM): "it needs CAP_NET_ADMIN or CAP_NET_RAW",
    ("mark", errno.EPERM): "it needs CAP_NET_ADMIN",
    ("priority", errno.EPERM): "above 6 it needs CAP_NET_ADMIN",
    ("interface", errno.EPERM): "it needs CAP_NET_RAW",
    ("interface", errno.ENODEV): 'this host has no such interface; "ip link" lists those it has',
    ("tcp.mptcp", errno.EPROTONOSUPPORT): "this kernel has no Multipath TCP; set mptcp = false",
    ("tcp.mptcp", errno.ENOPROTOOPT): 'see "sysctl net.mptcp.enabled", or set mptcp = false',
    ("tcp.user_timeout", errno.ENOPROTOOPT): (
        "this kernel has no TCP_USER_TIMEOUT for Multipath TCP; remove it, or mptcp"
    ),
    ("source", errno.EADDRNOTAVAIL): 'this host has no such address; "ip address" lists those',
    ("source", errno.EACCES): "ports below 1024 need root or CAP_NET_BIND_SERVICE",
}


class OptionError(Exception):
    """A socket option, or a source, is not to be had. Its text is one line for people."""

    def __init__(self, place: str, error: MarkError) -> None:
        reason = error.strerror or "refused"
        remedy = REMEDIES.get((error.key, error.errno or 0))
        super().__init__(
            f"{place}.{error.key}: cannot be used: {reason}{'; ' + remedy if remedy else ''}"
        )


def listener_marks(listener: Listener) -> Marks:
    """The marks of the sockets on the client's side."""
    return Marks(
        listener.mark, listener.dscp, listener.priority, listener.interface, listener.transparent
    )


def upstream_marks(upstream: Upstream) -> Marks:
    """The marks of the sockets on the endpoints' side; a DSCP that is copied is not among them."""
    dscp = upstream.dscp if isinstance(upstream.dscp, int) else None
    return Marks(upstream.mark, dscp, upstream.priority, upstream.interface)


def copies_dscp(upstream: Upstream) -> bool:
    """Whether its flows have the DSCP of their clients."""
    return upstream.dscp == COPY


def outbounds(config: Config) -> dict[tuple[str, str], Outbound]:
    """How the flows of each listener leave for the endpoints of each upstream, by both names.

    Raises:
        OptionError: the kernel would refuse it.

    """
    pools = {name: _pool(upstream) for name, upstream in config.upstream.items()}
    ways = [(name, to) for name, listener in config.listener.items() for to in listener.upstreams]
    found: dict[tuple[str, str], Outbound] = {}
    for name, to in ways:
        upstream, pool = config.upstream[to], pools[to]
        as_client = config.listener[name].transparent and pool is None
        marks = upstream_marks(upstream)._replace(transparent=as_client)
        outbound = found[name, to] = Outbound(marks, pool, as_client, copies_dscp(upstream))
        try:
            outbound.rehearse()
        except MarkError as error:
            side = "listener" if error.key == "transparent" else "upstream"
            raise OptionError(f"{side}.{name if side == 'listener' else to}", error) from error
    return found


def check_outbound(upstream: Upstream) -> Outbound:
    """How health checks leave for the endpoints of an upstream: as flows of no client do."""
    return Outbound(upstream_marks(upstream), _pool(upstream))


def is_original(upstream: Upstream) -> bool:
    """Whether its flows go where their clients meant to go."""
    return any(each.address == ORIGINAL for each in upstream.endpoints)


def _pool(upstream: Upstream) -> SourcePool | None:
    if upstream.source is None and upstream.source_ports is None:
        return None
    return SourcePool(upstream.source or (), upstream.source_ports or ANY_PORT)
