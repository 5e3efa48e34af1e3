from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.responders import RESPONDERS, Responders


def test_answers_are_counted_by_who_sent_them() -> None:
    responders = Responders()
    for host, size in (("192.0.2.2", 10), ("192.0.2.1", 5), ("192.0.2.2", 1)):
        responders.count((host, 1900), size)
    assert responders.rows() == [
        {"remote": "192.0.2.2:1900", "packets": 2, "bytes": 11},
        {"remote": "192.0.2.1:1900", "packets": 1, "bytes": 5},
    ]


@given(st.lists(st.tuples(st.integers(1, 3 * RESPONDERS), st.integers(0, 9)), max_size=400))
def test_however_many_answer_the_table_is_bounded_and_the_sums_are_right(
    answers: list[tuple[int, int]],
) -> None:
    responders = Responders()
    for port, size in answers:
        responders.count(("192.0.2.1", port), size)
    rows = responders.rows()
    assert len(rows) <= RESPONDERS + 1
    assert len([row for row in rows if row["remote"] is None]) <= 1
    assert sum(row["packets"] for row in rows) == len(answers)
    assert sum(row["bytes"] for row in rows) == sum(size for _, size in answers)
