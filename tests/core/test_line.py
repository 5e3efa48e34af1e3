"""The line against a naive model: a list that is sorted at every look."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.line import Line, Waiter

STEPS = st.lists(st.tuples(st.sampled_from(["push", "drop", "next"]), st.integers(0, 9)))


@given(STEPS)
def test_the_first_is_who_is_least_and_came_first(steps: list[tuple[str, int]]) -> None:
    line: Line[Waiter] = Line(count())
    model: list[tuple[int, int, Waiter]] = []
    for number, (step, key) in enumerate(steps):
        if step == "push":
            who = Waiter()
            model.append((key, number, who))
            line.push(key, who)
        elif model:
            model.sort(key=lambda entry: entry[:2])
            entry = model.pop(0 if step == "next" else key % len(model))
            line.drop(entry[2])
            assert entry[2].line is None
        assert len(line) == len(model)
        assert bool(line.heap) == bool(model)
        assert len(line.heap) <= 2 * len(model) + 1
        if model:
            assert line.first is min(model, key=lambda entry: entry[:2])[2]
        assert all(who.line is line for _, _, who in model)


def test_who_goes_from_the_middle_is_let_go_of() -> None:
    line: Line[Waiter] = Line(count())
    line.push(0, first := Waiter())
    for _ in range(1000):
        line.push(1, who := Waiter())
        line.drop(who)
    assert line.first is first
    assert len(line.heap) <= 3
