"""What a crowd tells of its flows: faults, and what each of them has carried."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

ORIGINAL, REPLY = "original", "reply"


class Fault(NamedTuple):
    """Something that must not happen to a flow.

    Attributes:
        side: who has seen it: ``client`` or ``endpoint``.
        group: of the flow.
        flow: its number.
        direction: what it concerns.
        place: byte of a stream, number of a datagram.
        what: in words; ``lost``, and nothing else, is a datagram that did not come, and
            ``WORDLESS`` a connection that an endpoint saw end before its first byte.

    """

    side: str
    group: str
    flow: int
    direction: str
    place: int
    what: str

    def __str__(self) -> str:
        return (
            f"{self.group}, flow {self.flow}, {self.direction} at {self.place}, "
            f"seen by the {self.side}: {self.what}"
        )


LOST = "lost"

WORDLESS = "reset before the first byte"
"""The client of a flow that was connecting is served by the next worker, by another connection."""


def text(address: tuple[str, int]) -> str:
    host, port = address
    return f"{host}:{port}"


class Account(TypedDict):
    """What one end of a flow has done.

    Attributes:
        group: of the flow.
        address: of the client, as it sees itself; of sockpair, as the endpoint sees it.
        sent, received: bytes, or datagrams.
        pause: the longest that it waited for what had to come, in seconds.
        done: it has come to its end in the ordinary way.

    """

    group: str
    address: str
    sent: int
    received: int
    pause: float
    done: bool


def together(one: Account | None, other: Account) -> Account:
    """One account of two flows of a client, the latter after the former."""
    if one is None:
        return other
    return Account(
        group=other["group"],
        address=other["address"],
        sent=one["sent"] + other["sent"],
        received=one["received"] + other["received"],
        pause=max(one["pause"], other["pause"]),
        done=one["done"] and other["done"],
    )
