"""What is wrong between keys about where flows come from and where they are meant to go.

Like all of ``whole`` it reads the raw document: what is wrong by itself is passed over.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from proxy.config.packets import COPY, parse_sources
from proxy.config.problem import Path, shown
from proxy.config.values import endpoint_texts

if TYPE_CHECKING:
    from proxy.config.values import ListenAddress

Fault: TypeAlias = tuple[Path, str]
Table: TypeAlias = dict[str, Any]

ORIGINAL: Final = "original"
LISTENER_KEYS: Final = ("transparent", "mark", "dscp", "priority", "interface")
UPSTREAM_KEYS: Final = ("source", "source_ports", "mark", "dscp", "priority", "interface")


def upstream_faults(name: str, upstream: Table) -> Iterator[Fault]:
    """Check the endpoints of an upstream against its sources, and against each other."""
    path = ("upstream", name)
    endpoints = _texts(upstream.get("endpoints"))
    if ORIGINAL in endpoints and len(endpoints) > 1:
        message = f"{shown(ORIGINAL)} is where the client meant to go, and stands alone"
        yield (*path, "endpoints", endpoints.index(ORIGINAL)), f"{message}; remove the others"
    if endpoints and all(map(_is_unix, endpoints)):
        for key in UPSTREAM_KEYS:
            if key in upstream:
                yield (*path, key), "has no effect on Unix sockets; remove it"
        return
    yield from _unreachable_from(path, upstream, endpoints)


def listener_faults(
    name: str, listener: Table, upstream: Table, address: ListenAddress | None, *, dual: bool
) -> Iterator[Fault]:
    """Check a listener against the upstream it names.

    Args:
        name: of the listener.
        listener: its table.
        upstream: the table of its upstream; empty if there is none.
        address: where it listens, if that can be read as an IP address.
        dual: whether an IPv6 address serves IPv4 too.

    """
    path = ("listener", name)
    endpoints = _texts(upstream.get("endpoints"))
    if upstream.get("dscp") == COPY:
        yield from _nothing_to_copy(path, listener)
    if _is_unix(listener.get("listen")):
        for key in LISTENER_KEYS:
            if listener.get(key, False) is not False:
                yield (*path, key), "has no effect on a Unix socket; remove it"
        if ORIGINAL in endpoints:
            yield (*path, "upstream"), "goes to original destinations, which a Unix socket has not"
    elif address is not None:
        is_transparent = listener.get("transparent") is True
        if ORIGINAL in endpoints and address.transport == "udp" and not is_transparent:
            message = "goes to original destinations, which UDP tells transparent listeners only"
            yield (*path, "upstream"), f"{message}; set transparent = true"
        for key in ("broadcast", "multicast") if is_transparent else ():
            if listener.get(key):
                yield (*path, key), "has no effect on a transparent listener; remove it"
        if is_transparent and not {"source", "source_ports"} & upstream.keys():
            yield from _no_client_reaches(path, endpoints, address, dual)


def _nothing_to_copy(path: Path, listener: Table) -> Iterator[Fault]:
    """Listeners whose sockets do not tell the DSCP of a client."""
    if _is_unix(listener.get("listen")):
        yield (*path, "upstream"), "copies the DSCP of clients, which those of a Unix socket lack"
    tcp = listener.get("tcp")
    if isinstance(tcp, dict) and tcp.get("mptcp") is True:
        message = "hides the DSCP of clients, which its upstream copies; remove one of the two"
        yield (*path, "tcp", "mptcp"), message


def _unreachable_from(path: Path, upstream: Table, endpoints: list[str]) -> Iterator[Fault]:
    """Literal endpoints of an IP version that no source has."""
    if "source" not in upstream:
        return
    try:
        hosts = parse_sources(upstream["source"])
    except ValueError:
        return
    versions = {6 if ":" in host else 4 for host in hosts}
    for endpoint in endpoints:
        version = _version(endpoint)
        if version is not None and version not in versions:
            yield (*path, "source"), f'has no IPv{version} address to reach "{endpoint}" from'
            return


def _no_client_reaches(
    path: Path, endpoints: list[str], address: ListenAddress, dual: bool
) -> Iterator[Fault]:
    versions = {6, 4} if dual else {6} if address.is_ipv6 else {4}
    for endpoint in endpoints:
        version = _version(endpoint)
        if version is not None and version not in versions:
            message = f'"{endpoint}" of its upstream cannot be reached from the address of a client'
            yield (*path, "transparent"), f"{message} of IPv{min(versions)}"
            return


def _version(endpoint: str) -> int | None:
    """The IP version of a literal endpoint."""
    try:
        return ipaddress.ip_address(endpoint.rpartition(":")[0].strip("[]")).version
    except ValueError:
        return None


def _is_unix(text: object) -> bool:
    return isinstance(text, str) and text.startswith(("unix:", "unixgram:"))


def _texts(value: object) -> list[str]:
    return [item if isinstance(item, str) else "" for item in endpoint_texts(value)]
