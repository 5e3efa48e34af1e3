"""The ring against a list that forgets nothing: a reader sees every event, or is told otherwise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.events import MICROSECONDS, Ring

STEPS = st.lists(st.one_of(st.just("put"), st.just("lose"), st.integers(0, 5)))


@given(limit=st.integers(1, 6), steps=STEPS, start=st.integers(0, 40))
def test_a_cursor_never_passes_a_hole(limit: int, steps: list[str | int], start: int) -> None:
    ring: Ring[int] = Ring(limit, 0.0)
    story: list[int | None] = []  # every event, by its number less one; None is a hole
    cursor = start
    for step in steps:
        if step == "put":
            ring.put(len(story))
            story.append(len(story))
        elif step == "lose":
            ring.lose()
            story.append(None)
        else:
            assert isinstance(step, int)
            found = ring.after(cursor, step)
            rest = story[cursor:]
            if cursor > len(story) or None in rest or len(rest) > limit:
                assert found is None
                cursor = ring.newest
            else:
                assert found == rest[:step]
                cursor += len(found)
        assert ring.newest == len(story)


def test_numbers_begin_where_no_earlier_life_has_been() -> None:
    assert Ring[int](1, 1_700_000_000.0).newest == 1_700_000_000 * MICROSECONDS


def test_the_last_hole_is_known() -> None:
    ring: Ring[int] = Ring(5, 0.0)
    ring.put(1)
    before = ring.newest
    ring.lose()
    ring.put(2)
    assert before < ring.hole < ring.newest
