from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.condition import Condition, Health
from proxy.core.ejection import EjectionTerms, Record
from proxy.core.endpoint import Endpoint
from proxy.core.upstream import HOME, Upstream

TERMS = EjectionTerms(failures=3, time=10.0, time_max=60.0)

events = st.lists(st.sampled_from(["reached", "missed", "was_reset", "served"]), max_size=40)


def tell(record: Record, event: str, now: float) -> str:
    return record.served() or "" if event == "served" else getattr(record, event)(now) or ""


@given(events)
def test_failures_of_one_kind_in_a_row(events: list[str]) -> None:
    record, told = Record(TERMS), list[str]()
    for event in events:
        told.append(event)
        verdict = tell(record, event, 0.0)
        connects = [each for each in told if each in {"reached", "missed"}][-3:]
        answers = [each for each in told if each in {"served", "was_reset"}][-3:]
        expected = (event == "missed" and connects == ["missed"] * 3) or (
            event == "was_reset" and answers == ["was_reset"] * 3
        )
        assert bool(verdict) == expected


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=60),
    st.integers(1, 100),
    st.integers(1, 10),
)
def test_the_part_of_a_window(flows: list[tuple[bool, float]], percent: int, volume: int) -> None:
    terms = EjectionTerms(failures=0, failure_percent=percent, volume=volume, window=10.0)
    record, now, began, window = Record(terms), 0.0, 0.0, list[bool]()
    for good, pause in flows:
        now += pause
        if now >= began + 10.0:
            began, window = now, []
        window.append(good)
        verdict = tell(record, "reached" if good else "missed", now)
        failed = 100 * window.count(False) // len(window)
        assert bool(verdict) == (not good and len(window) >= volume and failed >= percent)


def test_nobody_is_ejected_where_nothing_is_set() -> None:
    record = Record(EjectionTerms(failures=0, failure_percent=0))
    assert [record.missed(0.0) for _ in range(1000)] == [""] * 1000


def test_silence_counts_only_of_one_that_has_answered() -> None:
    record = Record(TERMS)
    assert [record.unanswered(0.0) for _ in range(9)] == [""] * 9
    record.reached(0.0)
    assert [bool(record.unanswered(0.0)) for _ in range(3)] == [False, False, True]


@given(st.lists(st.floats(0, 200), max_size=12))
def test_time_doubles_while_ejections_follow_soon_upon_each_other(pauses: list[float]) -> None:
    record, now, length, until = Record(TERMS), 0.0, 0.0, 0.0
    for pause in pauses:
        now = max(now, until) + pause
        length = min(60.0, 2 * length) if length and now <= until + length else 10.0
        record.eject("because", now)
        until = now + length
        assert record.until == until


def test_who_comes_back_is_on_probation() -> None:
    record = Record(TERMS)
    record.come_back()
    assert record.missed(0.0)
    record.come_back()
    record.reached(0.0)
    assert [bool(record.missed(0.0)) for _ in range(3)] == [False, False, True]


def upstream_of(count: int, terms: EjectionTerms = TERMS) -> Upstream:
    upstream = Upstream(
        "web", [Endpoint("web", f"e{n}", ("192.0.2.1", n + 1)) for n in range(count)]
    )
    upstream.judge_by(terms)
    upstream.become(upstream.endpoints, HOME)
    return upstream


@given(st.integers(1, 9), st.integers(0, 100))
def test_never_are_more_ejected_than_may_be(count: int, most: int) -> None:
    upstream = upstream_of(count, TERMS._replace(most_percent=most, panic_percent=0))
    ejected = sum(each.try_eject("because", 0.0) for each in upstream.endpoints)
    assert ejected == count * most // 100
    assert len(upstream.usable) == count - ejected


def test_an_endpoint_comes_back_when_a_flow_comes_after_its_time_or_somebody_looks() -> None:
    for look in (lambda up: up.pick((), "", 110.0), lambda up: up.refresh(110.0)):
        upstream = upstream_of(2)
        one, two = upstream.endpoints
        assert one.try_eject("because", 100.0)
        assert not one.try_eject("again", 100.0)
        assert (one.condition, upstream.usable) == (Condition.EJECTED, (two,))
        assert upstream.pick((), "", 109.9) is two
        look(upstream)
        assert (one.condition, upstream.usable) == (Condition.UNKNOWN, (one, two))
        assert upstream.pick == upstream._picker.pick


def test_ejections_are_not_heeded_when_too_few_are_left() -> None:
    upstream = upstream_of(4, TERMS._replace(panic_percent=30))
    one, two, three, four = upstream.endpoints
    one.try_eject("because", 0.0)
    two.try_eject("because", 0.0)
    assert upstream.usable == (three, four)
    three.set_health(Health.DOWN, "", 0.0)
    assert upstream.usable == (one, two, four)
    assert one.condition is Condition.EJECTED
    three.set_health(Health.UP, "", 0.0)
    assert upstream.usable == (three, four)


def test_who_is_judged_no_more_is_back_at_once() -> None:
    upstream = upstream_of(2)
    upstream.endpoints[0].try_eject("because", 0.0)
    upstream.judge_by(None)
    upstream.become(upstream.endpoints, HOME, now=1.0)
    assert len(upstream.usable) == 2


def test_backups_stand_in_when_all_others_fail_however_few_may_be_ejected() -> None:
    upstream = upstream_of(4, TERMS._replace(failures=2, most_percent=25, panic_percent=30))
    one, two, three, four = upstream.endpoints
    four.become(1, backup=True)
    upstream.become(upstream.endpoints, HOME)
    assert one.try_eject("because", 0.0)
    assert not two.try_eject("three is well", 0.0)
    fail(three, 2)
    assert two.try_eject("three fails, too", 0.0)
    assert three.try_eject("nobody is left but the backup", 0.0)
    assert upstream.usable == (four,)
    assert not four.try_eject("nobody stands in for it", 0.0)
    upstream.refresh(110.0)
    assert upstream.usable == (one, two, three)


def test_one_that_may_not_be_ejected_is_shunned_for_a_time_while_somebody_else_is_left() -> None:
    upstream = upstream_of(3, TERMS._replace(failures=2, most_percent=40, panic_percent=0))
    one, two, three = upstream.endpoints
    assert one.try_eject("because", 100.0)
    fail(two, 2)
    assert not two.try_eject("one is out", 100.0)
    assert upstream.usable == (two, three)
    assert upstream.shunned(109.9) == (two,)
    assert upstream.shunned(110.0) == ()
    assert two.record is not None
    two.record.reached(105.0)
    assert upstream.shunned(105.0) == ()
    fail(two, 2)
    fail(three, 2)
    assert not three.try_eject("one is out", 105.0)
    assert upstream.shunned(106.0) == ()


def fail(endpoint: Endpoint, times: int) -> None:
    assert endpoint.record is not None
    for _ in range(times):
        endpoint.record.missed(0.0)
