from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.balance.ordered import FirstOfAll
from tests.core.balance.endpoints import endpoints_of


@given(st.integers(1, 5), st.data())
def test_the_first_that_has_not_been_tried(count: int, data: st.DataObject) -> None:
    endpoints = endpoints_of([1] * count)
    first = FirstOfAll()
    first.become(endpoints)
    tried = data.draw(st.sets(st.sampled_from(endpoints)))
    left = [each for each in endpoints if each not in tried]
    assert first.pick(tried, "", 0.0) is (left[0] if left else None)
