"""Prefixes of addresses, as access lists name them: in the configuration, or in files of their own.

A file has one prefix a line, ``10.0.0.0/8`` or ``2001:db8::/32`` or an address alone; what follows
``#`` is a comment, and empty lines do not count. It is read with the configuration, and again at
each reload; so what is wrong in it is a problem of the configuration.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple, TypeAlias

from pydantic import BeforeValidator, Field

from proxy.config.files import FileError, read_text
from proxy.config.problem import shown
from proxy.config.values import as_array, written
from proxy.core.address import Network

FILE_MAX: Final = 16 * 2**20
"""Bytes: some 800,000 prefixes; the whole table of routes of the Internet has 1,200,000."""

TOLD_MAX: Final = 5
"""Lines of a file that a message names."""

WEIGHT_MAX: Final = 1000
"""Beside one that weighs so much another has a thousandth; less is no part any more."""

EXAMPLE: Final = '"10.0.0.0/8" or "2001:db8::/32"'


class PrefixFile(NamedTuple):
    """A file of prefixes, and what was in it when it was read."""

    path: str
    networks: tuple[Network, ...]

    def __str__(self) -> str:
        count = len(self.networks)
        return f"{self.path} ({count} {'prefix' if count == 1 else 'prefixes'})"


def parse_prefix(text: str) -> Network:
    """Read a prefix, or an address alone.

    Raises:
        ValueError: it is neither, or names more of an address than its length says.

    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f'"{text}" is no prefix: expected {EXAMPLE}') from None
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
    networks: list[Network] = []
    problems: list[str] = []
    for line, prefix in _lines(text):
        try:
            networks.append(parse_prefix(prefix))
        except ValueError as exc:
            problems.append(f"{path}:{line}: {exc}")
    if problems:
        more = f"; and {len(problems) - TOLD_MAX} more" if len(problems) > TOLD_MAX else ""
        raise ValueError("; ".join(problems[:TOLD_MAX]) + more)
    return PrefixFile(path, tuple(networks))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for line, whole in enumerate(text.splitlines(), start=1):
        prefix = whole.partition("#")[0].strip()
        if prefix:
            yield line, prefix


Prefix: TypeAlias = Annotated[
    Network,
    *written(parse_prefix, f"text such as {EXAMPLE}", minLength=2, pattern="^[0-9a-fA-F.:/]+$"),
]

Prefixes: TypeAlias = Annotated[tuple[Prefix, ...], BeforeValidator(as_array)]

Weights: TypeAlias = dict[Prefix, Annotated[int, Field(ge=1, le=WEIGHT_MAX)]]

PrefixesFile: TypeAlias = Annotated[
    PrefixFile, *written(parse_prefix_file, "an absolute path", pattern="^/.+$")
]
