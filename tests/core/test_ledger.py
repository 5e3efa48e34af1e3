"""Counters that outlive what they count, against a dictionary that forgets nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.ledger import RETIRED_MAX, Ledger


class Tally:
    def __init__(self, name: object) -> None:
        self.name = name
        self.is_busy = False


NAMES = st.sets(st.sampled_from("abcdef"))


@given(st.lists(st.tuples(NAMES, NAMES), max_size=20))
def test_a_name_has_the_same_counters_whenever_it_comes(
    changes: list[tuple[set[str], set[str]]],
) -> None:
    ledger: Ledger[str, Tally] = Ledger(Tally)
    ever: dict[str, Tally] = {}
    for used, busy in changes:
        ledger.use(sorted(used))
        for name in used:
            assert ever.setdefault(name, ledger[name]) is ledger[name]
        for name, tally in ever.items():
            tally.is_busy = name in busy
        shown = [tally.name for tally in ledger.shown()]
        assert len(shown) == len(set(shown))
        assert set(shown) == used | (busy & ever.keys())


def test_a_name_that_is_named_twice_keeps_its_counters() -> None:
    ledger: Ledger[str, Tally] = Ledger(Tally)
    ledger.use(["a", "a"])
    first = ledger["a"]
    ledger.use(["a", "b", "a"])
    assert ledger["a"] is first
    assert len(ledger) == 2


def test_former_names_are_bounded_and_the_oldest_is_forgotten() -> None:
    ledger: Ledger[int, Tally] = Ledger(Tally)
    ledger.use([0])
    first = ledger[0]
    for name in range(1, RETIRED_MAX + 2):
        ledger.use([name])
    assert len(ledger) == RETIRED_MAX + 1
    ledger.use([0])
    assert ledger[0] is not first


def test_one_that_has_flows_is_not_forgotten() -> None:
    ledger: Ledger[int, Tally] = Ledger(Tally)
    ledger.use([0])
    busy = ledger[0]
    busy.is_busy = True
    for name in range(1, RETIRED_MAX + 3):
        ledger.use([name])
    assert busy in ledger.shown()
    ledger.use([0])
    assert ledger[0] is busy
