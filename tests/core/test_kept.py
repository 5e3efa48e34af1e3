"""Sources that are kept as long as they have members or owe something, and not much longer."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from proxy.core.kept import Kept


class Debtor:
    def __init__(self, key: Hashable, until: float) -> None:
        self.key = key
        self.members = 0
        self.until = until

    def owes(self, now: float) -> bool:
        return now < self.until


def join(kept: Kept[Debtor], key: Hashable, now: float, until: float = 0.0) -> Debtor:
    return kept.join(key, now) or kept.enter(Debtor(key, until), now)


def test_who_has_members_or_owes_is_the_same_when_it_comes_again() -> None:
    kept: Kept[Debtor] = Kept()
    debtor = join(kept, "debtor", 0, until=5)
    assert join(kept, "debtor", 1) is debtor
    kept.leave(debtor)
    assert join(kept, "debtor", 9) is debtor, "one member was there all the time"
    kept.leave(debtor)
    kept.leave(debtor)
    assert join(kept, "debtor", 4.9) is debtor
    kept.leave(debtor)
    join(kept, "other", 5)
    assert join(kept, "debtor", 5) is not debtor


def test_who_comes_again_in_time_is_not_forgotten_for_having_been_gone() -> None:
    kept: Kept[Debtor] = Kept()
    debtor = join(kept, "debtor", 0, until=5)
    for now in (1, 2, 3):
        kept.leave(debtor)
        assert join(kept, "debtor", now) is debtor
    join(kept, "other", 10)
    join(kept, "third", 10)
    assert join(kept, "debtor", 10) is debtor


def test_who_is_new_is_not_forgotten_for_one_that_was_called_the_same() -> None:
    kept: Kept[Debtor] = Kept()
    kept.leave(join(kept, "slow", 0, until=5))  # behind it the others wait to be forgotten
    old = join(kept, "name", 0)
    kept.leave(old)
    assert join(kept, "name", 1) is old
    kept.leave(old)  # the second time among those without members
    join(kept, "third", 6)  # now old is forgotten, once
    new = join(kept, "name", 6)
    assert new is not old
    join(kept, "other", 6)
    assert join(kept, "name", 6) is new


def test_those_who_owe_nothing_go_faster_than_others_come() -> None:
    kept: Kept[Debtor] = Kept()
    for debtor in [join(kept, key, 0, until=5) for key in range(100)]:
        kept.leave(debtor)
    assert len(kept) == 100
    for key in range(1000, 1100):
        kept.leave(join(kept, key, 6))
    assert len(kept) <= 3


def test_leaving_twice_is_an_assertion() -> None:
    kept: Kept[Debtor] = Kept()
    debtor = join(kept, "debtor", 0)
    kept.leave(debtor)
    with pytest.raises(AssertionError):
        kept.leave(debtor)
