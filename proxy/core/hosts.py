"""The file of host names that is asked before DNS: /etc/hosts, see hosts(5).

Lines are an address and its names, parted by blanks; ``#`` begins a comment. Of several lines with
one name all addresses count, as with the C library. What is no address is passed over, and so are
zones, which mean nothing to another program than the one that the line was written for.

``localhost``, and names that end in ``.localhost``, are this host even where the file does not say
so (RFC 6761 section 6.3).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final

HOSTS_MAX: Final = 64 * 2**20
"""Bytes of the file that are read; lists of names to block have some megabytes."""

LOOPBACK: Final = ("127.0.0.1", "::1")


def parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """Read the file: the addresses of each name, which is in lower case."""
    found: dict[str, dict[str, None]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        address = _address(words[0]) if words else None
        if address is not None:
            for name in words[1:]:
                found.setdefault(name.lower(), {})[address] = None
    return {name: tuple(addresses) for name, addresses in found.items()}


def hosts_of(name: str, file: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The addresses that a name has without DNS; none if it has to be asked."""
    name = name.lower().removesuffix(".")
    found = file.get(name, ())
    if not found and (name == "localhost" or name.endswith(".localhost")):
        return LOOPBACK
    return found


def _address(word: str) -> str | None:
    try:
        address = ipaddress.ip_address(word)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return None
    return str(address)
