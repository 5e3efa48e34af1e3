"""What a will says is what was written into it, whatever else was, and is gone."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engine.survival import deposit as deposit_module
from proxy.engine.survival import ways as ways_module
from proxy.engine.survival import will as will_module
from proxy.engine.survival.shared import (
    BUFFER_SIZE,
    LOW,
    MARK,
    Mark,
    place_of,
    read_mark,
    take_mark,
)
from proxy.engine.survival.ways import Way
from proxy.engine.survival.will import (
    DATAGRAMS,
    FINISHED,
    FREE,
    NO_FILE,
    STREAM,
    TEXT_SIZE,
    Record,
    Suspect,
    Will,
)

WAY = Way("web", "tcp", "origin", "10.0.0.1:80")


@pytest.fixture
def will() -> Will:
    return Will(3)


def write(will: Will, id: int, **parts: object) -> int:
    number = will.begin()
    assert number is not None
    way = will.ways.number_of(WAY)
    assert way is not None
    wanted = {"files": (10, 11), "offsets": (0, 0), "note": b""} | parts
    assert will.write(number, STREAM, id, 1.5, way, **wanted)  # type: ignore[arg-type]
    return number


async def test_a_record_is_read_as_it_was_written(will: Will) -> None:
    number = write(will, 7, files=(20, 21), offsets=(107, 28), note=b"more")
    (record,) = will.records()
    assert record[:7] == (number, STREAM, 7, 1.5, WAY, (20, 21), (107, 28))
    assert record.note == b"more"
    assert [(bytes(leg.pending), leg.is_urgent, leg.pipe) for leg in record.legs] == [
        (b"", False, None)
    ] * 2
    assert will.next_id >= 8
    will.set_kind(number, FINISHED)
    assert [each.kind for each in will.records()] == [FINISHED]
    will.set_kind(number, FREE)
    assert list(will.records()) == []


async def test_what_is_pending_and_a_pipe_are_of_their_direction(will: Will) -> None:
    number = write(will, 1)
    kept = will.deposit(number, 1, b"rest")
    assert kept is not None
    assert bytes(kept) == b"rest"
    assert will.deposit(number, 0, b"!", urgent=True) is not None
    will.set_pipe(number, 0, (30, 31))
    (record,) = will.records()
    assert [bytes(leg.pending) for leg in record.legs] == [b"!", b"rest"]
    assert [leg.is_urgent for leg in record.legs] == [True, False]
    assert [leg.pipe for leg in record.legs] == [(30, 31), None]
    del record, kept
    will.withdraw(number, 1)
    will.set_pipe(number, 0)
    (record,) = will.records()
    assert [bytes(leg.pending) for leg in record.legs] == [b"!", b""]
    assert record.legs[0].pipe is None


async def test_a_record_that_is_used_again_has_nothing_of_the_former(
    will: Will, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(will_module, "RESTING", 0)
    number = write(will, 1, note=b"x" * (TEXT_SIZE + 1))
    will.deposit(number, 0, b"pending")
    will.set_pipe(number, 1, (5, 6))
    will.close(number, FREE, 0, 0)
    assert write(will, 2) == number
    (record,) = will.records()
    assert (record.id, record.note) == (2, b"")
    assert all(not leg.pending and leg.pipe is None for leg in record.legs)


async def test_a_record_rests_for_a_round_before_it_is_used_again(will: Will) -> None:
    first = write(will, 1)
    will.close(first, FINISHED, 0, 0)
    for id in range(2, will_module.RESTING + 2):
        number = write(will, id)
        assert number != first
        will.set_kind(number, FREE)
        will.release(number)
    assert [record.kind for record in will.records()] == [FINISHED]
    assert write(will, 9999) == first


async def test_a_note_of_any_length_is_kept(will: Will) -> None:
    notes = [b"a" * TEXT_SIZE, b"b" * (TEXT_SIZE + 1), b"c" * 5000]
    for id, note in enumerate(notes, 1):
        write(will, id, note=note)
    assert [record.note for record in will.records()] == notes


async def test_a_long_note_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deposit_module, "AREA", 8192)
    will = Will()
    for id in (1, 2):  # of which there is room for one
        number = write(will, id, note=b"n" * 5000)
        will.set_kind(number, FREE)
        will.release(number)


async def test_what_flows_have_moved_is_summed_by_their_ways(will: Will) -> None:
    other = WAY._replace(endpoint="10.0.0.2:80")
    way = will.ways.number_of(other)
    assert way is not None
    elsewhere = will.begin()
    assert elsewhere is not None
    assert will.write(elsewhere, STREAM, 1, 0.0, way, (1, 2), bases=(10, 20))
    will.close(elsewhere, FREE, 15, 27)
    for id in (2, 3):
        number = write(will, id)
        will.close(number, FINISHED, 100, 1000)
    assert dict(will.ways.totals()) == {other: (5, 7, 0), WAY: (200, 2000, 2)}


async def test_flows_of_datagrams_are_known_by_their_ids(will: Will) -> None:
    will.remember(DATAGRAMS, 5, 2.0, WAY, (8, NO_FILE), b"state")
    will.become(5, 99)
    (record,) = will.records()
    assert (record.kind, record.files, record.note) == (99, (8, NO_FILE), b"state")
    will.forget(5)
    will.forget(5)
    will.become(5, 1)
    assert list(will.records()) == []


async def test_nothing_is_left_behind_for_which_there_is_no_room(
    will: Will, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(will_module, "RECORDS", 1)
    monkeypatch.setattr(ways_module, "NAMES_SIZE", 100)
    number = write(will, 1)
    assert will.begin() is None
    will.remember(DATAGRAMS, 2, 0.0, WAY, (1, NO_FILE), b"")
    assert [record.id for record in will.records()] == [1]
    assert will.ways.number_of(WAY._replace(endpoint="e" * 100)) is None
    monkeypatch.setattr(deposit_module, "LARGEST", 10)
    assert will.deposit(number, 0, b"x" * 2000) is None
    (record,) = will.records()
    assert not record.legs[0].pending


async def test_head_tells_the_suspect_and_whether_it_is_over(will: Will) -> None:
    assert will.suspect == Suspect(0, 0, 0.0)
    will.suspect = Suspect(9, 2, 4.5)
    assert will.suspect == Suspect(9, 2, 4.5)
    assert not will.is_over
    will.say_over()
    assert will.is_over
    assert will.suspect == Suspect(9, 2, 4.5)


@given(st.randoms(use_true_random=False))
async def test_deposits_do_not_overlap(random: Random) -> None:
    """Deposit and withdraw at random; all that is there must be what a dictionary says."""
    will = Will()
    numbers = [write(will, id) for id in range(1, 6)]
    model: dict[tuple[int, int], bytes] = {}
    for step in range(40):
        place = random.choice(numbers), random.randrange(2)
        if place in model:
            will.withdraw(*place)
            del model[place]
        else:
            size = random.choice([1, 511, 512, 513, 4096, 5000, BUFFER_SIZE])
            data = bytes([step]) * size
            assert will.deposit(*place, data) is not None
            model[place] = data
        found = {
            (record.number, leg): bytes(each.pending)
            for record in will.records()
            for leg, each in enumerate(record.legs)
            if each.pending
        }
        assert found == model


@given(st.integers(0, 1 << 62), st.integers(0, BUFFER_SIZE), st.integers(0, 1 << 17), st.booleans())
async def test_mark_tells_how_much_was_received_before(
    before: int,
    size: int,
    record: int,
    is_reply: bool,
) -> None:
    take_mark(4)
    assert read_mark() == Mark(4, -1, 1, 0)
    MARK[0] = place_of(record, int(is_reply)) | (before & LOW)
    mark = read_mark()
    assert (mark.will, mark.record, mark.leg) == (4, record, int(is_reply))
    assert mark.before_of(before + size) == before
    take_mark(0)


async def test_a_record_has_room_for_all_of_it() -> None:
    end_of_note = will_module.NOTE_AT + will_module.NOTE.size
    assert will_module.BODY_AT + will_module.BODY.size == end_of_note
    assert will_module.ENDING.size == end_of_note
    assert will_module.TEXT_AT + TEXT_SIZE == will_module.RECORD_SIZE
    assert TEXT_SIZE > 0
    assert Record._fields[-1] == "note"
