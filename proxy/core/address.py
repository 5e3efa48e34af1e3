"""Addresses, as sockets know them and as people write them.

Inside, an address is exactly what the socket module gives: ``(host, port)`` for IPv4 and
``(host, port, flowinfo, scope)`` for IPv6, where the host of a link-local address has its zone,
``fe80::1%eth0``, because the scope is a number that says nothing to people. That of a Unix socket
is a ``UnixAddress``. No other object of our own is made per flow; the text ``host:port``,
``[host]:port`` or ``unix:/path`` exists only at the edge, where somebody reads it.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from proxy.core.unix import UNIX, UnixAddress, parse_unix_address

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | UnixAddress
"""Of IPv4 ``(host, port)``, of IPv6 ``(host, port, flowinfo, scope)``, or of a Unix socket."""

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

PORT_MAX = 65535

WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to


class Transport(StrEnum):
    """What a listener speaks."""

    TCP = "tcp"
    UDP = "udp"
    UNIX = "unix"  # a stream
    UNIXGRAM = "unixgram"

    @property
    def is_datagram(self) -> bool:
        """Whether it carries datagrams, and not a stream."""
        return self in DATAGRAMS

    @property
    def is_unix(self) -> bool:
        """Whether its sockets are Unix sockets."""
        return self in UNIX_SOCKETS


STREAMS = (Transport.TCP, Transport.UNIX)
DATAGRAMS = (Transport.UDP, Transport.UNIXGRAM)
UNIX_SOCKETS = (Transport.UNIX, Transport.UNIXGRAM)


class SocketPair(NamedTuple):
    """Both ends of one socket: the unique 4-tuple, with its transport."""

    transport: Transport
    local: Address
    remote: Address


class HostPort(NamedTuple):
    """An address as a person wrote it: the host is a literal or a name, not yet resolved."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_literal(self) -> bool:
        """Whether the host is an IP address, which needs no resolver."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


def format_address(address: Address) -> str:
    """Write a socket address the way people do: ``192.0.2.1:80``, ``[2001:db8::1]:80``.

    That of a Unix socket is ``unix:/path``, ``unix:@name`` or, of one without a name, ``unix:``.
    """
    if isinstance(address, UnixAddress):
        return str(address)
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_host_port(text: str, *, lowest_port: int = 1) -> HostPort:
    """Read ``host:port``; an IPv6 host stands in brackets.

    Args:
        text: what the person wrote, for example ``"10.0.0.1:80"`` or ``"[::1]:53"``.
        lowest_port: 0 where the kernel may choose the port, else 1.

    Raises:
        ValueError: with a message for people, that names value and expectation.

    """
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f'"{text}" is not host:port')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        _require_ipv6(host, text)
    elif ":" in host:
        raise ValueError(f'"{text}" is ambiguous: write an IPv6 host in brackets, "[::1]:80"')
    elif not _is_host(host):
        raise ValueError(f'"{host}" in "{text}" is neither an IP address nor a host name')
    return HostPort(host, _parse_port(port_text, text, lowest_port))


def parse_address(text: str) -> Address:
    """Read a literal ``host:port``, or ``unix:/path``, as the socket address it stands for.

    Raises:
        ValueError: when the host is not an IP address, or the port is no port.

    """
    if text.startswith(UNIX):
        return parse_unix_address(text)
    host, port = parse_host_port(text)
    parsed = ipaddress.ip_address(host)
    if parsed.version == 4:
        return (str(parsed), port)
    return (str(parsed), port, 0, 0)


def same_address(one: Address, other: Address) -> bool:
    """Whether two addresses name the same host and port; a zone is compared if both have one."""
    if one[1] != other[1]:
        return False
    if isinstance(one, UnixAddress) or isinstance(other, UnixAddress):
        return _same_unix_address(one, other)
    host, other_host = one[0], other[0]
    if host == other_host:
        return True
    return ("%" in host) != ("%" in other_host) and _zoneless(host) == _zoneless(other_host)


def _same_unix_address(one: Address, other: Address) -> bool:
    """Compare what people see: they cannot write what does not print."""
    return type(one) is type(other) and (one == other or str(one) == str(other))


def _zoneless(host: str) -> str:
    return host.partition("%")[0]


def _require_ipv6(host: str, text: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise ValueError(f'"{host}" in "{text}" is not an IPv6 address') from None


def _is_host(host: str) -> bool:
    """RFC 1123 section 2.1 host names, the underscore of service names, and IPv4 literals."""
    if host.replace(".", "").isdigit():
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return False
        return True
    labels = host.rstrip(".").split(".")
    return len(host) <= 253 and all(_is_label(label) for label in labels)


def _is_label(label: str) -> bool:
    plain = label.replace("-", "").replace("_", "")
    return 0 < len(label) <= 63 and plain.isascii() and plain.isalnum()


def _parse_port(port_text: str, text: str, lowest: int) -> int:
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        raise ValueError(f'"{port_text}" in "{text}" is not a port number')
    port = int(port_text)
    if not lowest <= port <= PORT_MAX:
        raise ValueError(f'port {port} in "{text}" is not between {lowest} and {PORT_MAX}')
    return port
