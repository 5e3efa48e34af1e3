"""What is known of a client beyond its address: by whom it comes, and what was said of it.

A flow has an identity only where something is known, so that all others need no room for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from proxy.core.proxy_block import CRC32C, NOOP, TLV_HEAD, TLV_NAMES

if TYPE_CHECKING:
    from proxy.core.address import Address
    from proxy.core.client_hello import Hello
    from proxy.core.proxy_header import Tlv

TLVS_MAX: Final = 512
"""Bytes of TLVs that a flow keeps, their heads included: a hundred thousand flows keep 50 MB."""


class Arrival(NamedTuple):
    """The client's side of a flow as our socket has it."""

    remote: Address
    local: Address


class Identity(NamedTuple):
    """What is known of a client.

    Attributes:
        via: who connected to us in its name, and where; None if it came by itself.
        tlvs: what its header said beside addresses, as far as it is kept.
        hello: what it asked for in TLS; None if it did not, or nobody looked.
        upstream: the one that it was routed to; None where there are no routes.

    """

    via: Arrival | None = None
    tlvs: tuple[Tlv, ...] = ()
    hello: Hello | None = None
    upstream: str | None = None


class TlvRow(TypedDict):
    """A TLV for people and programs: ``text`` is its value where that is printable."""

    type: int
    name: str | None
    text: str | None
    hex: str


def kept_tlvs(tlvs: Iterable[Tlv]) -> tuple[Tlv, ...]:
    """Those that say something, in their order, and as many as fit into ``TLVS_MAX``."""
    kept: list[Tlv] = []
    size = 0
    for tlv in tlvs:
        size += TLV_HEAD.size + len(tlv.value)
        if tlv.type in {CRC32C, NOOP} or size > TLVS_MAX:
            size -= TLV_HEAD.size + len(tlv.value)
        else:
            kept.append(tlv)
    return tuple(kept)


def tlv_row(tlv: Tlv) -> TlvRow:
    """Describe a TLV."""
    return {
        "type": tlv.type,
        "name": TLV_NAMES.get(tlv.type),
        "text": _text(tlv.value),
        "hex": tlv.value.hex(),
    }


def _text(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None
