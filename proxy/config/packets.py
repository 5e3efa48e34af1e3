"""The kinds of values that say what packets of ours look like: their source, their marks.

They follow the rules of ``values``: text of the file in, what the engine uses out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import PlainValidator, WithJsonSchema

from proxy.config.problem import shown
from proxy.core.address import PORT_MAX

SOURCES_MAX: Final = 4096
"""Addresses of one upstream: 260 million TCP flows to each endpoint. They are tried one by one at
the start."""

SOURCE_EXAMPLE: Final = '"192.0.2.7" or "192.0.2.8-192.0.2.15"'

MARK_MAX: Final = 2**32 - 1

PRIORITY_MAX: Final = 15
"""TC_PRIO_MAX, uapi/linux/pkt_sched.h: what a queueing discipline tells apart by itself."""

COPY: Final = "copy"
"""In place of a DSCP: that of the client."""

DSCP_NAMES: Final = {
    "be": 0,  # also cs0; RFC 2474
    "le": 1,  # RFC 8622
    "ef": 46,  # RFC 3246
    "va": 44,  # RFC 5865
    **{f"cs{number}": 8 * number for number in range(8)},  # RFC 2474
    **{f"af{number}{drop}": 8 * number + 2 * drop for number in range(1, 5) for drop in (1, 2, 3)},
}
"""RFC 2597 for af11 to af43."""


_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

_INTERFACE: Final = re.compile(r"(?!\.)[^\s/:%]{1,15}")
"""IFNAMSIZ less the final NUL, and what the kernel refuses: dev_valid_name, net/core/dev.c."""


def parse_source(text: str) -> tuple[str, ...]:
    """Read an address, or a range of them, ``"192.0.2.8-192.0.2.15"``.

    Raises:
        ValueError: it is neither, or no address that flows could leave from.

    """
    first_text, dash, last_text = text.partition("-")
    first = _source_address(first_text.strip(), text)
    last = _source_address(last_text.strip(), text) if dash else first
    if first.version != last.version:
        raise ValueError(f'"{text}" goes from IPv{first.version} to IPv{last.version}')
    count = int(last) - int(first) + 1
    if count < 1:
        raise ValueError(f'"{text}" ends before it begins')
    if count > SOURCES_MAX:
        raise ValueError(f'"{text}" has {count} addresses: expected at most {SOURCES_MAX}')
    return tuple(str(first + offset) for offset in range(count))


def parse_sources(value: object) -> tuple[str, ...]:
    """Read one source, or an array of them.

    Raises:
        ValueError: one is wrong, or an address is there twice.

    """
    written = value if isinstance(value, list) else [value]
    hosts: dict[str, None] = {}
    for item in written:
        if not isinstance(item, str):
            raise ValueError(f"expected text such as {SOURCE_EXAMPLE}, found {shown(item)}")
        for host in parse_source(item):
            if host in hosts:
                raise ValueError(f'"{item}": {host} is already in the list; remove it')
            hosts[host] = None
    if not hosts:
        raise ValueError(f"is empty: expected text such as {SOURCE_EXAMPLE}")
    if len(hosts) > SOURCES_MAX:
        raise ValueError(f"has {len(hosts)} addresses: expected at most {SOURCES_MAX}")
    return tuple(hosts)


def parse_ports(value: object) -> range:
    """Read a range of ports, ``"10000-19999"``, or one port, ``"5000"``.

    Raises:
        ValueError: it is no such text.

    """
    match = _PORTS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'expected text such as "10000-19999", found {shown(value)}')
    first = int(match[1])
    last = int(match[2] or first)
    if not 1 <= first <= last <= PORT_MAX:
        raise ValueError(f'"{value}" is out of range: expected 1 to {PORT_MAX}, the lower first')
    return range(first, last + 1)


def parse_dscp(value: object) -> int:
    """Read a differentiated services code point: its number, or its name.

    Raises:
        ValueError: it is neither.

    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 63:
        return value
    if isinstance(value, str) and value.lower() in DSCP_NAMES:
        return DSCP_NAMES[value.lower()]
    raise ValueError(f'expected 0 to 63, or a name such as "ef" or "af41", found {shown(value)}')


def parse_upstream_dscp(value: object) -> int | Literal["copy"]:
    """Read the DSCP of packets to endpoints, which may be that of the client.

    Raises:
        ValueError: it is none.

    """
    if value == COPY:
        return COPY
    try:
        return parse_dscp(value)
    except ValueError as error:
        raise ValueError(str(error).replace("or a name", f'"{COPY}", or a name')) from None


def parse_interface(value: object) -> str:
    """Read the name of a network interface, which need not exist yet.

    Raises:
        ValueError: no interface can be called that.

    """
    if not isinstance(value, str) or not _INTERFACE.fullmatch(value) or not value.isprintable():
        raise ValueError(f'expected the name of an interface, such as "eth1", found {shown(value)}')
    return value


def _source_address(host: str, text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f'"{text}" is not {SOURCE_EXAMPLE}') from None
    if isinstance(parsed, ipaddress.IPv6Address) and (parsed.scope_id or parsed.ipv4_mapped):
        raise ValueError(
            f'"{text}" is not a plain address: zones and mapped IPv4 are not supported'
        )
    if parsed.is_unspecified or parsed.is_multicast:
        raise ValueError(f'"{text}" is not the address of one host')
    return parsed


def _written(parse: Callable[[Any], Any], schema: dict[str, Any]) -> tuple[Any, ...]:
    return PlainValidator(parse), WithJsonSchema(schema)


def _schemas(texts: str) -> Iterator[dict[str, Any]]:
    yield {"type": "string", "pattern": texts}
    yield {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": texts}}


Sources: TypeAlias = Annotated[
    tuple[str, ...],
    *_written(parse_sources, {"anyOf": list(_schemas("^[0-9a-fA-F.:]+( *- *[0-9a-fA-F.:]+)?$"))}),
]

SourcePorts: TypeAlias = Annotated[
    range, *_written(parse_ports, {"type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"})
]

_DSCP_SCHEMAS: Final = (
    {"type": "integer", "minimum": 0, "maximum": 63},
    {"enum": list(DSCP_NAMES)},
)

Dscp: TypeAlias = Annotated[
    int,
    *_written(parse_dscp, {"anyOf": list(_DSCP_SCHEMAS)}),
]

UpstreamDscp: TypeAlias = Annotated[
    int | Literal["copy"],
    *_written(parse_upstream_dscp, {"anyOf": [*_DSCP_SCHEMAS, {"const": COPY}]}),
]

Interface: TypeAlias = Annotated[
    str, *_written(parse_interface, {"type": "string", "pattern": "^[^\\s/:%]{1,15}$"})
]
