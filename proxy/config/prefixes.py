"""Prefixes of addresses, as access lists name them: in the configuration, or in files of their own.

A file has one prefix a line, ``10.0.0.0/8`` or ``2001:db8::/32`` or an address alone; what follows
``#`` is a comment, and empty lines do not count. It is read with the configuration, and again at
each reload; so what is wrong in it is a problem of the configuration.

Such a file may have half a million lines, and a reload reads it beside a relay, in a thread. The
lines of the usual forms are read by a few look-ups, others and wrong ones by ``ipaddress``, which
takes ten times as long. And what a file said is known while a configuration has it: one that has
not changed is not read line by line again, and is kept once, whoever names it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from hashlib import sha256
from io import StringIO
from socket import AF_INET6, inet_pton
from typing import Annotated, Final, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

from pydantic import BeforeValidator, Field

from proxy.config.files import FileError, read_text
from proxy.config.problem import shown
from proxy.config.values import as_array, written
from proxy.core.address import Network
from proxy.core.prefix import V4_BITS, V6_BITS, v4_bits
from proxy.core.prefix_set import PackedPrefix, PrefixSet, prefix_of

FILE_MAX: Final = 32 * 2**20
"""Bytes: some 1,600,000 prefixes; the whole table of routes of the Internet has 1,200,000."""

TOLD_MAX: Final = 5
"""Lines of a file that a message names."""

WRONG_MAX: Final = 1000
"""Wrong lines after which no more are read: it is another file."""

WEIGHT_MAX: Final = 1000
"""Beside one that weighs so much another has a thousandth; less is no part any more."""

EXAMPLE: Final = '"10.0.0.0/8" or "2001:db8::/32"'


V4_SHIFTS: Final = {str(length): V4_BITS - length for length in range(V4_BITS + 1)}
V6_SHIFTS: Final = {str(length): V6_BITS - length for length in range(V6_BITS + 1)}
"""How many bits do not count, by the length as it is written."""

MAPPED: Final = 0xFFFF
"""How the addresses of IPv6 begin, before their last 32 bits, that are IPv4 (RFC 4291, 2.5.5.2)."""


class PrefixFile(NamedTuple):
    """A file of prefixes, and what was in it when it was read."""

    path: str
    prefixes: PrefixSet

    def __str__(self) -> str:
        count = len(self.prefixes)
        return f"{self.path} ({count} {'prefix' if count == 1 else 'prefixes'})"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"


_read: Final[WeakValueDictionary[bytes, PrefixSet]] = WeakValueDictionary()
"""What files said, by the hash of their text."""


def parse_prefix(text: str) -> Network:
    """Read a prefix, or an address alone.

    Raises:
        ValueError: it is neither, or names more of an address than its length says.

    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{shown(text)} is no prefix: expected {EXAMPLE}") from None
    address = text.partition("/")[0]
    if ipaddress.ip_address(address) != network.network_address:
        raise ValueError(f'"{text}" has bits beyond its length: write "{network}"')
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            raise ValueError(f'"{text}" is IPv4 in IPv6: write {mapped}/{network.prefixlen - 96}')
    return network


def parse_prefix_file(path: str) -> PrefixFile:
    """Read the file at an absolute path.

    Raises:
        ValueError: it cannot be read, or lines of it are wrong, which the message names.

    """
    if not (path.startswith("/") and path.isprintable()):
        raise ValueError(f"expected an absolute path, found {shown(path)}")
    try:
        text = read_text(path, FILE_MAX)
    except FileError as exc:
        place = f"{path}:{exc.line}" if exc.line else path
        raise ValueError(f"{place} {exc}") from exc
    digest = sha256(text.encode()).digest()
    prefixes = _read.get(digest)
    if prefixes is None:
        prefixes = _read[digest] = _parse_lines(text, path)
    return PrefixFile(path, prefixes)


def _parse_lines(text: str, path: str) -> PrefixSet:
    problems: list[str] = []
    prefixes = PrefixSet(_packed(text, path, problems))
    if problems:
        more = f"; and {len(problems) - TOLD_MAX} more" if len(problems) > TOLD_MAX else ""
        if len(problems) == WRONG_MAX:
            more += ", after which no line was read: is it the right file?"
        raise ValueError("; ".join(problems[:TOLD_MAX]) + more)
    return prefixes


def _packed(text: str, path: str, problems: list[str]) -> Iterator[PackedPrefix]:
    for line, whole in enumerate(StringIO(text, newline=None), start=1):
        prefix = whole.partition("#")[0].strip()
        if not prefix:
            continue
        packed = _usual(prefix)
        if packed is not None:
            yield packed
            continue
        try:
            yield prefix_of(parse_prefix(prefix))
        except ValueError as exc:
            problems.append(f"{path}:{line}: {exc}")
            if len(problems) == WRONG_MAX:
                return


def _usual(text: str) -> PackedPrefix | None:
    """Read a prefix that is right and written as they mostly are; else None, and nobody can tell.

    The standard library says what a prefix is: what is read here is what it reads.
    """
    address, slash, length = text.partition("/")
    try:
        if ":" in address:
            bits, number = V6_BITS, int.from_bytes(inet_pton(AF_INET6, address), "big")
            shift = V6_SHIFTS[length] if slash else 0
            if number >> 32 == MAPPED:
                return None
        else:
            bits, number = V4_BITS, v4_bits(address)
            shift = V4_SHIFTS[length] if slash else 0
    except (KeyError, ValueError, OSError):
        return None
    first = number >> shift
    return (bits, shift, first) if first << shift == number else None


Prefix: TypeAlias = Annotated[
    Network,
    *written(parse_prefix, f"text such as {EXAMPLE}", minLength=2, pattern="^[0-9a-fA-F.:/]+$"),
]

Prefixes: TypeAlias = Annotated[tuple[Prefix, ...], BeforeValidator(as_array)]

Weights: TypeAlias = dict[Prefix, Annotated[int, Field(ge=1, le=WEIGHT_MAX)]]

PrefixesFile: TypeAlias = Annotated[
    PrefixFile, *written(parse_prefix_file, "an absolute path", pattern="^/.+$")
]
