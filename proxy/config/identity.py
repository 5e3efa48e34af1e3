"""What is wrong between the keys that say who a client is, to us or to endpoints.

Like all of ``whole`` it reads the raw document: what is wrong by itself is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from proxy.config.problem import Path
from proxy.core.address import Transport

Fault: TypeAlias = tuple[Path, str]
Table: TypeAlias = dict[str, Any]


def listener_faults(
    name: str, listener: Table, upstream: Table, transport: Transport
) -> Iterator[Fault]:
    """Check a listener beside its upstream.

    Args:
        name: of the listener.
        listener: its table.
        upstream: that of its upstream; empty if there is none.
        transport: what the listener speaks.

    """
    path = ("listener", name)
    if not listener.get("proxy_from"):
        if listener.get("proxy_only") is True:
            yield (*path, "proxy_only"), "refuses everybody: there is no proxy_from; add that"
    elif upstream.get("endpoints") in (["original"], [{"address": "original"}]):
        message = "hides the destination that its upstream goes to; name endpoints there"
        yield (*path, "proxy_from"), message
    if transport.is_datagram and upstream.get("send_proxy") == "v1":
        message = 'sends PROXY headers of version 1, which datagrams cannot have; send "v2" there'
        yield (*path, "upstream"), message
    if transport.is_datagram and listener.get("proxy_from") and listener.get("transparent") is True:
        yield (*path, "proxy_from"), "has no effect on a transparent UDP listener; remove it"


def upstream_faults(name: str, upstream: Table) -> Iterator[Fault]:
    """Check an upstream by itself."""
    if upstream.get("send_proxy_crc32c") is True and upstream.get("send_proxy") in (None, "v1"):
        path = ("upstream", name, "send_proxy_crc32c")
        yield path, 'needs send_proxy = "v2": other headers have no checksum'
