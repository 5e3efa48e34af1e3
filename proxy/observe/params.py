"""The query parameters of the API: text from a URL to a ``FlowQuery``.

Strategy: a table says for each parameter how it is read and what is allowed. The names are those
of ``FlowQuery``'s fields, and of the options of ``sockpair flows``, so a filter means the same
thing everywhere.

Invariant: nothing is guessed and nothing is passed over. An unknown name, a value that cannot be
read and a parameter given twice are errors that name the parameter, the value and what is allowed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final
from urllib.parse import parse_qsl

from proxy.core.address import PORT_MAX, Address, Network, Transport, parse_address
from proxy.core.events import EventKind
from proxy.core.flow import State
from proxy.core.live_limit import LimitValues
from proxy.core.query import SORTS, FlowQuery
from proxy.core.server_names import ALPN_MAX, NAME_MAX
from proxy.core.units import (
    BANDWIDTH_UNITS,
    SIZE_UNITS,
    parse_bandwidth,
    parse_duration,
    parse_size,
)
from proxy.core.unix import UnixAddress

FIELDS_MAX: Final = 32
"""Parameters of one URL, at most: twice what exists."""

FORMATS: Final = ("sse", "ndjson")
"""How events are written: for browsers (server-sent events), or one JSON object a line."""

NEWCOMERS: Final = (Transport.TCP.value, Transport.UDP.value)
"""For whom a flow may be evicted: one whose address is proven, or one that may have forged it."""

MAPPED_BITS: Final = 96
"""Of an IPv4 address that is written as IPv6 (``::ffff:192.0.2.7``), those before the IPv4 part."""


@dataclass(frozen=True, slots=True)
class Param:
    """How a parameter is read (ValueError when it cannot be), and what to write instead."""

    read: Callable[[str], object]
    allowed: str


def _one_of(words: Collection[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return read


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError
    return int(text)


def _bytes(text: str) -> int:
    return _natural(text) if text.isdigit() else parse_size(text)


def _place(text: str) -> Network | Address:
    """A prefix, or one address with its port, as flows have them; see ``_host``."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return _address(text)
    mapped = _mapped(network.network_address)
    if mapped is None or network.prefixlen < MAPPED_BITS:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - MAPPED_BITS))


def _address(text: str) -> Address:
    """One address with its port, as flows have it."""
    address = parse_address(text)
    if isinstance(address, UnixAddress):
        return address
    mapped = _mapped(ipaddress.ip_address(address[0]))
    return address if mapped is None else (str(mapped), address[1])


def _host(text: str) -> str:
    """An IP address as flows have it."""
    host = ipaddress.ip_address(text)
    return str(_mapped(host) or host)


def _mapped(
    host: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | None:
    """The IPv4 address that is written as IPv6, as dual-stack servers log it; flows have IPv4."""
    return host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None


def _server_name(text: str) -> str:
    name = text.lower().removesuffix(".")
    if not name or len(name) > NAME_MAX or not name.isascii() or not name.isprintable():
        raise ValueError
    return name


def _protocols(text: str) -> tuple[str, ...]:
    protocols = tuple(text.split(","))
    if not all(0 < len(each) <= ALPN_MAX for each in protocols):
        raise ValueError
    return protocols


def explained_client(text: str) -> Address:
    """A client, with its port or without (then 0).

    Raises:
        ParamError: it is neither.

    """
    try:
        try:
            host, port = _host(text), 0
        except ValueError:
            literal = parse_address(text)
            host, port = _host(literal[0]), literal[1]
    except ValueError:
        reason = f'"{text}" is not allowed; write "192.0.2.7" or "192.0.2.7:51000"'
        raise ParamError("client", reason) from None
    return (host, port, 0, 0) if ":" in host else (host, port)


def _port(text: str) -> int:
    port = _natural(text)
    if not 0 < port <= PORT_MAX:
        raise ValueError
    return port


def _lasting(text: str) -> float:
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError
    return seconds


def _state(text: str) -> State:
    return State(text.lower())


def _transport(text: str) -> Transport:
    return Transport(text.lower())


def _newcomer(text: str) -> Transport:
    return Transport(_one_of(NEWCOMERS)(text.lower()))


def _kinds(text: str) -> frozenset[EventKind]:
    return frozenset(EventKind(word) for word in text.lower().split(","))


def _flag(text: str) -> bool:
    return _one_of(("true", "1", "false", "0"))(text) in {"true", "1"}


_PLACE: Final = (
    "an IP address, a prefix or an address with its port, "
    'such as "10.0.0.0/8", "2001:db8::/32" or "192.0.2.1:80"'
)
_BANDWIDTH: Final = (
    f'a bandwidth such as "1MiB/s" or "10Mbit/s"; units: {", ".join(BANDWIDTH_UNITS)}'
)
_SIZE: Final = f'bytes, such as "4096" or "10MiB"; units: {", ".join(SIZE_UNITS)}'

PARAMS: Final[dict[str, Param]] = {
    "listener": Param(str, "the name of a listener"),
    "client": Param(_place, _PLACE),
    "endpoint": Param(_place, _PLACE),
    "state": Param(_state, ", ".join(State)),
    "transport": Param(_transport, ", ".join(Transport)),
    "min_bytes": Param(_bytes, _SIZE),
    "address": Param(
        _address, 'an IP address with its port, "192.0.2.1:80" or "[::1]:53", or "unix:/path"'
    ),
    "port": Param(_port, f"a port number, 1 to {PORT_MAX}"),
    "recent": Param(_flag, "true or false"),
    "evictable": Param(_flag, "true or false"),
    "newcomer": Param(_newcomer, ", ".join(NEWCOMERS)),
    "sort": Param(_one_of(SORTS), ", ".join(SORTS)),
    "limit": Param(_natural, "a whole number; 0 is no limit"),
    "all": Param(_flag, "true or false"),
    "dry_run": Param(_flag, "true or false"),
    "upstream": Param(str, "the name of an upstream"),
    "id": Param(_natural, "the id of a flow, a whole number"),
    "bandwidth": Param(parse_bandwidth, _BANDWIDTH),
    "flow_bandwidth": Param(parse_bandwidth, _BANDWIDTH),
    "flows": Param(_natural, "a whole number"),
    "bytes": Param(_bytes, _SIZE),
    "for": Param(_lasting, 'a duration such as "10m", more than nothing'),
    "event": Param(_kinds, f"some of {', '.join(EventKind)}, with commas between them"),
    "snapshot": Param(_flag, "true or false"),
    "counters": Param(_flag, "true or false"),
    "after": Param(_natural, 'a "seq", a whole number'),
    "format": Param(_one_of(FORMATS), ", ".join(FORMATS)),
    "via": Param(_host, 'an IP address, such as "192.0.2.1"'),
    "server_name": Param(_server_name, 'a server name, such as "www.example.org"'),
    "alpn": Param(_protocols, 'protocols, such as "h2,http/1.1", the best first'),
    "timeout": Param(parse_duration, 'a duration such as "30s"; "0s" is at once'),
}

FILTERS: Final = (
    "listener",
    "client",
    "endpoint",
    "state",
    "transport",
    "server_name",
    "min_bytes",
    "address",
    "port",
)
LISTING: Final = (*FILTERS, "recent", "evictable", "newcomer", "sort", "limit")
KILLING: Final = (*FILTERS, "all")
RELOADING: Final = ("dry_run",)
LIMITED: Final = ("listener", "client", "endpoint", "id")
LIMITING: Final = (*LIMITED, *LimitValues._fields, "for")
ADMINISTERING: Final = ("endpoint", "upstream")
DRAINING: Final = ("listener", "endpoint", "upstream", "timeout")
EXPLAINING: Final = ("transport", "client", "listener", "via", "server_name", "alpn")
FINDING: Final = ("address", "port", "limit")
STREAMED: Final = tuple(name for name in FILTERS if name != "state")
"""A state is not for long; a flow that leaves it would vanish from the stream without a word."""

STREAMING: Final = (
    *STREAMED,
    "event",
    "snapshot",
    "counters",
    "after",
    "sort",
    "limit",
    "format",
)


class ParamError(ValueError):
    """A parameter whose value is not allowed; ``reason`` says so without naming the parameter.

    The command knows it by another name, that of an option.
    """

    def __init__(self, parameter: str, reason: str) -> None:
        super().__init__(f'parameter "{parameter}": {reason}')
        self.parameter = parameter
        self.reason = reason


def read_params(
    query: str, known: Collection[str], verbatim: Collection[str] = ()
) -> dict[str, Any]:
    """Read the query part of a URL.

    Args:
        query: without its question mark, percent-encoded.
        known: the parameters of this path.
        verbatim: those that are taken as they stand, because they name something here.

    Raises:
        ParamError: a value is not allowed.
        ValueError: with a message for people.

    """
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True, max_num_fields=FIELDS_MAX):
        if name not in known:
            raise ValueError(_unknown(name, known))
        if name in values:
            raise ValueError(f'parameter "{name}" is given twice')
        values[name] = text if name in verbatim else _read(name, text)
    return values


def flow_query(values: dict[str, Any], **more: Any) -> FlowQuery:
    """Make a query of parameters that were read."""
    return FlowQuery(**{**values, **more})


def _read(name: str, text: str) -> object:
    param = PARAMS[name]
    try:
        return param.read(text)
    except ValueError:
        reason = f'"{text}" is not allowed; write {param.allowed}'
        raise ParamError(name, reason) from None


def _unknown(name: str, known: Collection[str]) -> str:
    if not known:
        return f'unknown parameter "{name}": there are none here'
    nearest = get_close_matches(name, known, 1)
    hint = f'did you mean "{nearest[0]}"? ' if nearest else ""
    return f'unknown parameter "{name}"; {hint}known here: {", ".join(known)}'
