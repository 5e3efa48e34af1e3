"""What workers tell each other in shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import inf

import pytest

from proxy.core.parts import Want
from proxy.engine.commons import SLOTS, Commons, make_commons


@pytest.fixture
def commons() -> Iterator[Commons]:
    fd = make_commons(3)
    mapped = Commons(fd, 3)
    os.close(fd)
    yield mapped
    mapped.close()


async def test_each_sees_what_the_others_tell_and_not_itself(commons: Commons) -> None:
    rows = [commons.row(SLOTS - 1, index) for index in range(3)]
    for index, row in enumerate(rows):
        row.tell(10**index, 2 * 10**index)
    assert [row.flows() for row in rows] == [110, 101, 11]
    assert [row.admitted() for row in rows] == [220, 202, 22]
    assert commons.row(SLOTS - 2, 0).flows() == 0


async def test_the_first_of_the_others_who_waits_is_known_until_he_is_lost(
    commons: Commons,
) -> None:
    rows = [commons.row(3, index) for index in range(3)]
    assert rows[0].waits_since(0) == inf
    for row, since in zip(rows, (1.5, 3.25, 2.000001), strict=True):
        row.tell_waiting(since)
    assert [row.waits_since(0) for row in rows] == [2.000001, 1.5, 1.5]
    assert rows[2].waits_since(2) == 3.25
    commons.leave(3, 0)
    assert rows[2].waits_since(0) == 3.25
    rows[1].tell_waiting(inf)
    assert rows[2].waits_since(0) == inf


async def test_who_is_lost_has_no_flows_but_has_admitted(commons: Commons) -> None:
    commons.row(5, 1).tell(7, 70)
    commons.leave(5, 1)
    assert (commons.row(5, 0).flows(), commons.row(5, 0).admitted()) == (0, 70)


async def test_a_cleared_slot_knows_nothing(commons: Commons) -> None:
    commons.row(5, 1).tell(7, 70)
    commons.clear(5)
    assert (commons.row(5, 0).flows(), commons.row(5, 0).admitted()) == (0, 0)


async def test_another_mapping_is_the_same_memory() -> None:
    fd = make_commons(2)
    one, other = Commons(fd, 2), Commons(fd, 2)
    os.close(fd)
    one.row(0, 0).tell(3, 4)
    assert (other.row(0, 1).flows(), other.row(0, 1).admitted()) == (3, 4)
    one.close()
    other.close()


async def test_wants_are_told_by_direction_and_forgotten_with_who_is_lost(commons: Commons) -> None:
    rows = [commons.row(3, index) for index in range(3)]
    rows[0].tell_wants((Want(2, 100), Want(0, 7)))
    rows[1].tell_wants((Want(1, 50), Want(3, 9)))
    assert rows[2].wants(0) == [Want(2, 100), Want(1, 50)]
    assert rows[2].wants(1) == [Want(0, 7), Want(3, 9)]
    assert rows[0].wants(0) == [Want(1, 50), Want(0, 0)]
    commons.leave(3, 0)
    assert rows[2].wants(0) == [Want(0, 0), Want(1, 50)]
    commons.clear(3)
    assert rows[2].wants(1) == [Want(0, 0), Want(0, 0)]
