"""Hosts as numbers: what an access list and a source look at is the first bits of an address.

The text comes from the kernel, so it is well formed, and of IPv4 there is one way to write it:
it is read with four look-ups, half a microsecond. That of IPv6 has too many forms to read by hand;
it is read by ``ipaddress``, ten times as slow. Both are done once for each of the ``KNOWN``
addresses of either version that were asked for last, which then cost a seventh of the half.

Anything else than the host of a socket's address is a ``KeyError`` or ``ValueError``: a fault of
the caller.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

V4_BITS: Final = 32
V6_BITS: Final = 128

KNOWN: Final = 4096
"""Addresses, some 200 bytes each: those of a busy server's clients of the last seconds."""

_A, _B, _C, _D = ({str(octet): octet << at for octet in range(256)} for at in (24, 16, 8, 0))


def v4_bits(host: str) -> int:
    """The 32 bits of an IPv4 address, of which nothing is kept.

    Raises:
        KeyError, ValueError: it is not written as the kernel writes one.

    """
    a, b, c, d = host.split(".")
    return _A[a] | _B[b] | _C[c] | _D[d]


@lru_cache(KNOWN)
def v4_number(host: str) -> int:
    """The 32 bits of an IPv4 address."""
    return v4_bits(host)


@lru_cache(KNOWN)
def v6_number(host: str) -> int:
    """The 128 bits of an IPv6 address; of a link-local one, without its zone."""
    return int(IPv6Address(host.partition("%")[0]))
