"""The crowd finds what is wrong: every lie of a relay is told, at its place, and no honest one is.

All relays lie at the same time, each to a group of its own of the same crowd; so this takes no
longer than one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import trio

from tests.e2e.patience import SLOWNESS, until
from tests.e2e.program import free_port
from tests.handover import liar
from tests.handover.crowd import Place
from tests.handover.crowds import Crowds, crowds
from tests.handover.told import LOST, Fault

STUCK: Final = 1.5 * SLOWNESS
LAST_WORDS: Final = 2 * SLOWNESS


def group(kind: str, count: int = 2) -> Place:
    return Place(kind=kind, count=count, listener=free_port(), endpoint=free_port())


def of(both: Crowds, name: str) -> list[Fault]:
    return [fault for fault in both.faults if fault.group == name]


def words(both: Crowds, name: str) -> str:
    """All that is told of a group; one end that breaks off is noticed by the other, too."""
    return "; ".join(f"{each.what} at {each.place}" for each in of(both, name))


@contextmanager
def told(both: Crowds) -> Iterator[None]:
    """Have all that was found shown if something is missing."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *map(str, both.faults)])) from None


async def test_each_lie_about_a_stream_is_found(nursery: trio.Nursery) -> None:
    groups, wanted = {}, {}
    for lie, change in liar.LIES.items():
        for direction in ("original", "reply"):
            name = f"{direction} {lie}"
            place = groups[name] = group("chatty")
            at = liar.AT - (liar.HEADER.size if direction == "original" else 0)
            wanted[name] = direction, range(at, at + liar.PIECE)
            relay = liar.lying(change, direction)
            nursery.start_soon(liar.serve_streams, place["listener"], place["endpoint"], relay)
    groups["honest"] = place = group("chatty")
    honest = liar.lying(lambda data: data, "original")
    nursery.start_soon(liar.serve_streams, place["listener"], place["endpoint"], honest)
    async with crowds(groups, stuck=STUCK) as both:
        await both.open()
        with told(both):
            await until(lambda: {each.group for each in both.faults} >= set(wanted), "all lies")
        await both.stop(LAST_WORDS)
    for name, (direction, places_) in wanted.items():
        told_of = [(each.direction, each.place in places_) for each in of(both, name)]
        assert (direction, True) in told_of, "\n".join(map(str, of(both, name)))
    assert of(both, "honest") == []
    nursery.cancel_scope.cancel()


async def test_each_wrong_end_of_a_stream_is_found(nursery: trio.Nursery) -> None:
    groups = {}
    for name, deed in (liar.STREAM_DEEDS | liar.URGENT_DEEDS).items():
        place = groups[name] = group("urgent" if name in liar.URGENT_DEEDS else "chatty")
        nursery.start_soon(liar.serve_streams, place["listener"], place["endpoint"], deed)
    groups["honest"] = place = group("urgent")
    honest = liar.lying(lambda data: data, "original")
    nursery.start_soon(liar.serve_streams, place["listener"], place["endpoint"], honest)
    async with crowds(groups, stuck=STUCK) as both:
        await both.open()
        late = set(groups) - {"honest", "swallows the end"}
        with told(both):
            await until(lambda: {each.group for each in both.faults} >= late, "all deeds")
        assert of(both, "swallows the end") == []
        await both.stop(LAST_WORDS)
    assert "FIN" in words(both, "ends early")
    assert "reset" in words(both, "resets")
    assert "nothing came" in words(both, "falls asleep")
    assert "mark" in words(both, "levels urgent data")
    assert "1 bytes lost at 500" in words(both, "loses urgent data")
    assert "it did not come to its end" in words(both, "swallows the end")
    assert of(both, "honest") == []
    nursery.cancel_scope.cancel()


async def test_each_lie_about_datagrams_is_found(nursery: trio.Nursery) -> None:
    groups = {}
    for name, lie in liar.DATAGRAM_LIES.items():
        place = groups[name] = group("oneway")
        nursery.start_soon(liar.serve_datagrams, place["listener"], place["endpoint"], lie)
    for name in ("original", "reply"):
        place = groups[name] = group("talk")
        serve = partial(liar.serve_datagrams, moves=name)
        nursery.start_soon(serve, place["listener"], place["endpoint"], None)
    groups["honest"] = place = group("talk")
    nursery.start_soon(liar.serve_datagrams, place["listener"], place["endpoint"], None)
    async with crowds(groups, stuck=STUCK) as both:
        await both.open()
        with told(both):
            await until(
                lambda: {each.group for each in both.faults} >= set(groups) - {"honest"}, "all lies"
            )
        await both.stop(LAST_WORDS)
    assert {each.what for each in of(both, "drops one")} == {LOST}
    assert "twice" in words(both, "repeats one")
    assert [each.what == LOST for each in of(both, "exchanges two")] == [True, False]
    assert "too late" in of(both, "exchanges two")[1].what
    assert "changed" in words(both, "changes one")
    assert "changed" in words(both, "cuts one short")
    assert "now, before from" in words(both, "original")
    assert "it came from" in words(both, "reply")
    assert of(both, "honest") == []
    assert {each.group for each in both.hard_faults()} == set(groups) - {"honest", "drops one"}
    nursery.cancel_scope.cancel()
