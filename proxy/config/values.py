"""The kinds of values a configuration holds: how each is written, read and bounded.

A kind is an annotated type. Its reader takes the text of the file to the value that the engine
uses (seconds, bytes, addresses), and raises ``ValueError`` with a message for people; its schema
describes the text, for editors. If a value exists, it is legal.

Values are read from what TOML can hold and from nothing else: a duration is the text "5s", also
for those who build a model in Python. So there is one way in.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

from pydantic import BeforeValidator, PlainValidator, StringConstraints, WithJsonSchema

from proxy.config.problem import shown
from proxy.config.service import SERVICE_PATTERN, parse_service
from proxy.config.unix import (
    SOCKET_PATH_MAX,
    UNIX_PATTERN,
    parse_mode,
    parse_socket_name,
    parse_unix_endpoint,
)
from proxy.core.address import HostPort, Transport, parse_host_port
from proxy.core.steering import WORKERS_MAX
from proxy.core.units import (
    BANDWIDTH_PATTERN,
    DURATION_PATTERN,
    RATE_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_bandwidth,
    parse_duration,
    parse_rate,
    parse_size,
)

TEXT_MAX: Final = 300
"""Characters; a host name has at most 253."""

TIMEOUT_MIN: Final = 0.001
TIMEOUT_MAX: Final = 3650 * 86400.0
"""Seconds; below is not a wait, above is not a bound."""

BUFFER_MIN: Final = 4096
BUFFER_MAX: Final = 2**30 - 1
"""Bytes; the kernel doubles SO_RCVBUF and keeps it in a signed int: socket(7)."""

INTERFACE: Final = re.compile(r"[^\s/:%]{1,15}")
"""IFNAMSIZ less the final NUL, and what the kernel refuses: dev_valid_name, net/core/dev.c."""

NEAR_SCOPES: Final = frozenset({1, 2})
"""Of IPv6 groups: within an interface, within a link (RFC 4291 section 2.7); they have zones."""

LISTEN_PATTERN: Final = f"^((tcp|udp)://.+:[0-9]+|{UNIX_PATTERN})$"
ENDPOINT_PATTERN: Final = f"^(original|{UNIX_PATTERN}|{SERVICE_PATTERN}|.+:[0-9]+)$"
NAME_PATTERN: Final = r"^[A-Za-z0-9_.-]{1,63}$"

ADMIN_HTTP_DEFAULT: Final = "127.0.0.1:9600"
ADMIN_SOCKET_DEFAULT: Final = "/run/sockpair/admin.sock"

HOST_NAME_PATTERN: Final = r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9])?"

ACCOUNT_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?$"

LISTEN_EXAMPLE: Final = '"tcp://0.0.0.0:8080", "udp://[::]:53" or "unix:///run/x.sock"'


class ListenAddress(NamedTuple):
    """Where a listener accepts: a literal address, in its one canonical spelling.

    The host of a Unix socket is its path, or ``@name``, and its port is 0.
    """

    transport: Transport
    host: str
    port: int

    def __str__(self) -> str:
        if self.transport.is_unix:
            return f"{self.transport}://{self.host}"
        return f"{self.transport}://{HostPort(self.host, self.port)}"

    @property
    def is_ipv6(self) -> bool:
        """Whether its socket is of AF_INET6."""
        return ":" in self.host and not self.transport.is_unix

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of the host."""
        return self.host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound


class OriginalDestination(HostPort):
    """Stands for the endpoint that each client meant to reach before it was diverted to us."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.host


ORIGINAL: Final = OriginalDestination("original", 0)


def parse_listen(text: str) -> ListenAddress:
    """Read ``"tcp://0.0.0.0:8080"`` or ``"unix:///run/x.sock"``; port 0: the kernel chooses.

    Raises:
        ValueError: it is no such URL, or the host is not an address we can bind.

    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in set(Transport):
        raise ValueError(f'"{text}" is not an address to listen on: expected {LISTEN_EXAMPLE}')
    transport = Transport(scheme)
    if transport.is_unix:
        return ListenAddress(transport, parse_socket_name(rest, text), 0)
    host, port = parse_host_port(rest, lowest_port=0)
    literal = _literal(host, text)
    if "%" in literal and ipaddress.ip_address(literal).is_multicast:
        raise ValueError(f'"{text}" is a group: listen on "udp://[::]:{port}", with multicast')
    return ListenAddress(transport, literal, port)


def parse_endpoint(text: str) -> HostPort:
    """Read ``"10.0.0.1:80"``, ``"[::1]:80"`` or ``"name:80"``; a literal becomes canonical.

    The word ``"original"`` is the destination that the client meant; ``"unix:///run/x.sock"`` and
    ``"unixgram:///run/x.sock"`` are Unix sockets; ``"srv://_http._tcp.example.org"`` is a service.

    Raises:
        ValueError: it is not host:port, or nothing one can connect to.

    """
    if text == ORIGINAL.host:
        return ORIGINAL
    other = parse_unix_endpoint(text) or parse_service(text)
    if other is not None:
        return other
    endpoint = parse_host_port(text)
    if not endpoint.is_literal:
        return endpoint
    host = _literal(endpoint.host, text)
    if ipaddress.ip_address(host).is_unspecified:
        raise ValueError(f'"{text}" is a wildcard: expected the address of one endpoint')
    return HostPort(host, endpoint.port)


def endpoint_texts(value: object) -> list[object]:
    """How the addresses of endpoints are written in a raw document, each alone or in a table."""
    items = value if isinstance(value, list) else []
    return [item.get("address") if isinstance(item, dict) else item for item in items]


def parse_admin_http(text: str) -> HostPort | None:
    """Read where the read-only HTTP server listens; empty text turns it off.

    Raises:
        ValueError: the host is neither an address nor ``localhost``.

    """
    if not text:
        return None
    if ":" not in text:
        raise ValueError(f'"{text}" is not host:port, such as "{ADMIN_HTTP_DEFAULT}"')
    host, port = parse_host_port(text, lowest_port=0)
    return HostPort(host if host == "localhost" else _literal(host, text), port)


def parse_host_name(text: str) -> str:
    """Read a name that browsers may call us by; it is kept in lower case, as they send it.

    Raises:
        ValueError: it is no host name, or has a port, or is an address, which needs no permission.

    """
    if not re.fullmatch(HOST_NAME_PATTERN, text):
        example = 'as "proxy.example.net", without a port'
        raise ValueError(f'"{text}" is not the name of a host: expected it {example}')
    return text.lower()


def parse_socket_path(text: str) -> str:
    """Read where the admin socket lies; empty text turns it off.

    Raises:
        ValueError: the path is relative, too long for a socket, or does not print.

    """
    if text and not (text.startswith("/") and text.isprintable()):
        raise ValueError(f'"{text}" is not an absolute path such as "/run/sockpair/admin.sock"')
    if len(text.encode()) > SOCKET_PATH_MAX:
        raise ValueError(f'"{text}" is too long: a socket\'s path has {SOCKET_PATH_MAX} bytes')
    return text


def parse_timeout(text: str) -> float:
    """Read a duration that bounds a wait, in seconds.

    Raises:
        ValueError: it is no duration, or out of range.

    """
    seconds = parse_duration(text)
    if not TIMEOUT_MIN <= seconds <= TIMEOUT_MAX:
        bounds = f"{format_duration(TIMEOUT_MIN)} to {format_duration(TIMEOUT_MAX)}"
        raise ValueError(f'"{text}" is out of range: expected {bounds}')
    return seconds


def parse_buffer(text: str) -> int:
    """Read the size of a socket buffer, in bytes.

    Raises:
        ValueError: it is no size, or the kernel would not take it.

    """
    size = parse_size(text)
    if not BUFFER_MIN <= size <= BUFFER_MAX:
        bounds = f"{format_size(BUFFER_MIN)} to less than {format_size(BUFFER_MAX + 1)}"
        raise ValueError(f'"{text}" is out of range: expected {bounds}')
    return size


def parse_group(text: str) -> str:
    """Read the address of a multicast group.

    Raises:
        ValueError: it is no such address.

    """
    host = _literal(text, text)
    if not ipaddress.ip_address(host).is_multicast:
        raise ValueError(
            f'"{text}" is no multicast address: they begin with 224. to 239. in IPv4, ff in IPv6'
        )
    return host


def parse_interface(text: str) -> str:
    """Read the name of a network interface, which need not exist yet.

    Raises:
        ValueError: no interface can have that name.

    """
    if not INTERFACE.fullmatch(text):
        raise ValueError(f'"{text}" is no name of an interface: "ip link" lists those there are')
    return text


def _literal(host: str, text: str) -> str:
    """The canonical spelling of an IP address.

    A link-local address needs its zone (``fe80::1%eth0``), ``ff02::1`` may have one. An IPv4-mapped
    address is refused because a socket that is kept to IPv6 cannot be bound to it.
    """
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f'"{host}" in "{text}" is a name: expected an IP address, since it is bound once'
        ) from None
    if isinstance(parsed, ipaddress.IPv6Address):
        _check_zone(parsed, text)
        if parsed.ipv4_mapped is not None:
            raise ValueError(f'"{text}" is IPv4 in IPv6: write {parsed.ipv4_mapped}')
    return str(parsed)


def _check_zone(address: ipaddress.IPv6Address, text: str) -> None:
    """Link-local addresses mean nothing without an interface, most others nothing with one.

    Groups within a link or an interface (RFC 4291 section 2.7) may have it, as routing may choose.
    """
    zone = address.scope_id
    is_near_group = address.is_multicast and address.packed[1] & 0xF in NEAR_SCOPES
    is_named = zone is not None and INTERFACE.fullmatch(zone) is not None
    if address.is_link_local and not is_named:
        raise ValueError(f'"{text}" is link-local: name its interface, as "[fe80::1%eth0]:53"')
    if zone is not None and not (is_named and (address.is_link_local or is_near_group)):
        owners = "link-local addresses have, and groups such as ff01::1 and ff02::1"
        raise ValueError(f'"{text}" names a zone ("%"), which only {owners}')


def written(parse: Callable[[str], Any], expected: str, **schema: Any) -> tuple[Any, ...]:
    """What annotates a type that is written as text: its reader and its JSON Schema."""

    def read(value: object) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"expected {expected}, found {shown(value)}")
        if len(value) > TEXT_MAX:
            raise ValueError(f"expected {expected}, found {len(value)} characters")
        return parse(value)

    return PlainValidator(read), WithJsonSchema({"type": "string", **schema})


AUTO: Final[Literal["auto"]] = "auto"


def _workers(value: object) -> int | str:
    if value == AUTO:
        return AUTO
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= WORKERS_MAX:
        raise ValueError(f'expected 1 to {WORKERS_MAX}, or "{AUTO}", found {shown(value)}')
    return value


def as_array(value: object) -> tuple[object, ...]:
    """Take an array of TOML, and nothing that stands for one.

    Raises:
        ValueError: it is none.

    """
    if not isinstance(value, list):
        raise ValueError(f"expected an array, found {shown(value)}; write [{shown(value)}]")
    return tuple(value)


Name: TypeAlias = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""Of a listener or upstream; also its metric label."""

Timeout: TypeAlias = Annotated[
    float, *written(parse_timeout, 'text such as "30s"', pattern=f"^{DURATION_PATTERN}$")
]
"""Seconds."""

Rate: TypeAlias = Annotated[
    float, *written(parse_rate, 'text such as "500/s"', pattern=f"^{RATE_PATTERN}$")
]
"""Per second."""

Bandwidth: TypeAlias = Annotated[
    float, *written(parse_bandwidth, 'text such as "10MiB/s"', pattern=f"^{BANDWIDTH_PATTERN}$")
]
"""Bytes per second."""

Size: TypeAlias = Annotated[
    int, *written(parse_size, 'text such as "10GiB"', pattern=f"^({SIZE_PATTERN})$")
]
"""Bytes."""

Workers: TypeAlias = Annotated[
    int | Literal["auto"],
    PlainValidator(_workers),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": WORKERS_MAX}, {"const": AUTO}]}
    ),
]
"""Processes."""

BufferSize: TypeAlias = Annotated[
    int, *written(parse_buffer, 'text such as "4MiB"', pattern=f"^({SIZE_PATTERN})$")
]
"""Bytes."""

Listen: TypeAlias = Annotated[
    ListenAddress,
    *written(parse_listen, f"text such as {LISTEN_EXAMPLE}", pattern=LISTEN_PATTERN),
]

ENDPOINT_KIND: Final = written(
    parse_endpoint, 'text such as "10.0.0.1:80"', pattern=ENDPOINT_PATTERN
)

EndpointAddress: TypeAlias = Annotated[HostPort, *ENDPOINT_KIND]

Group: TypeAlias = Annotated[
    str, *written(parse_group, 'a multicast address such as "239.255.255.250"', minLength=1)
]

AdminHttp: TypeAlias = Annotated[
    HostPort | None,
    *written(parse_admin_http, 'text such as "127.0.0.1:9600"', pattern="^(.+:[0-9]+)?$"),
]

SocketPath: TypeAlias = Annotated[
    str, *written(parse_socket_path, "an absolute path", pattern="^(/.+)?$")
]

FileMode: TypeAlias = Annotated[
    int, *written(parse_mode, 'text such as "0660"', pattern="^0?[0-7]{3}$")
]

Account: TypeAlias = Annotated[str, StringConstraints(pattern=ACCOUNT_PATTERN)]
"""A user or a group, by name or number."""

Accounts: TypeAlias = Annotated[tuple[Account, ...], BeforeValidator(as_array)]

HostName: TypeAlias = Annotated[
    str, *written(parse_host_name, 'a host name such as "proxy.example.net"')
]

HostNames: TypeAlias = Annotated[tuple[HostName, ...], BeforeValidator(as_array)]

Groups: TypeAlias = Annotated[tuple[Group, ...], BeforeValidator(as_array)]

Interface: TypeAlias = Annotated[
    str,
    *written(
        parse_interface, 'the name of an interface such as "eth0"', pattern="^[^\\s/:%]{1,15}$"
    ),
]

PmtuPolicy: TypeAlias = Literal["allow", "system", "forbid", "probe"]
Balance: TypeAlias = Literal["round_robin", "least_flows", "random", "first", "source", "maglev"]
SendProxy: TypeAlias = Literal["v1", "v2"]
NameFamily: TypeAlias = Literal["any", "ipv4", "ipv6"]
OnDown: TypeAlias = Literal["keep", "close"]
Survive: TypeAlias = Literal["restart", "crash", "off"]
WhenFull: TypeAlias = Literal["refuse", "wait"]
LogFormat: TypeAlias = Literal["auto", "json", "text"]
LogFlows: TypeAlias = Literal["all", "errors", "off"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
