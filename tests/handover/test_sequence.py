"""What stands where, and what is said when something else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.handover.sequence import NEAR, PERIOD, Sequence

PLACES = st.integers(0, 3 * PERIOD)
ONE = Sequence(1, "one")


@given(PLACES, st.integers(1, 5000), st.integers(1, 5000))
def test_pieces_follow_on_each_other(place: int, first: int, second: int) -> None:
    whole = ONE.piece(place, first + second)
    assert whole == ONE.piece(place, first) + ONE.piece(place + first, second)
    assert ONE.fault(place, whole) is None


@given(PLACES, st.integers(0, 3000), st.integers(1, NEAR - 1))
def test_what_is_lost_or_repeated_is_named(place: int, before: int, size: int) -> None:
    head = ONE.piece(place, before)
    for shift, what in ((size, f"{size} bytes lost"), (-size, f"{size} bytes repeated")):
        found = ONE.fault(place, head + ONE.piece((place + before + shift) % PERIOD, 100))
        assert found is not None
        first, said = found
        # The byte at the fault may be the same by chance: then it is seen one later.
        assert (first - place - before in range(5), said) == (True, what)


def test_bytes_of_something_else_are_named() -> None:
    other = Sequence(1, "another flow")
    assert ONE.fault(7, other.piece(7, 100)) == (7, "bytes of another place or flow")
    assert ONE.fault(7, bytes(100)) == (7, f"bytes that are nowhere in it: {bytes(24).hex()}")
    assert ONE.fault(7, b"?") == (7, "other bytes: 3f")


@pytest.mark.parametrize("seed", [1, 2])
def test_flows_have_sequences_of_their_own(seed: int) -> None:
    pieces = {Sequence(seed, str(number)).piece(0, 24) for number in range(1000)}
    assert len(pieces) == 1000
