"""Hashes that are the same in every process, on every machine, in every version.

Python's own ``hash`` of text is none of that: it is salted anew in each process.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from proxy.core.address import format_address

if TYPE_CHECKING:
    from proxy.core.endpoint import Endpoint
    from proxy.core.sources import SourceKey

WORD: Final = (1 << 64) - 1
"""The greatest number of 64 bits."""


def hash_of(key: SourceKey, salt: bytes = b"") -> int:
    """A number of 64 bits for a key; another one for every salt (16 bytes at most)."""
    data = key.encode() if isinstance(key, str) else key
    return int.from_bytes(blake2b(data, digest_size=8, salt=salt).digest())


def mixed(one: int, other: int) -> int:
    """A number of 64 bits for two of them, with no more to do with either than by chance.

    The finalizer of MurmurHash3 (A. Appleby, public domain), which is a tenth of what ``hash_of``
    costs.
    """
    word = one ^ other
    word = (word ^ word >> 33) * 0xFF51AFD7ED558CCD & WORD
    word = (word ^ word >> 33) * 0xC4CEB9FE1A85EC53 & WORD
    return word ^ word >> 33


def identity_of(endpoint: Endpoint) -> str:
    """What an endpoint is called everywhere: its name, and which of the name's addresses it is."""
    return f"{endpoint.name} {format_address(endpoint.address)}"
