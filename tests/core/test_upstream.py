from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.condition import CONDITIONS, Administration, Condition, Health
from proxy.core.counters import DOWN
from proxy.core.flow import CloseReason
from proxy.core.upstream import HOME, Endpoint, OriginalUpstream, Upstream


def upstream_of(count: int, backups: int = 0) -> Upstream:
    endpoints = [Endpoint("web", f"e{n}", ("192.0.2.1", n + 1)) for n in range(count + backups)]
    for endpoint in endpoints[count:]:
        endpoint.become(1, backup=True)
    return Upstream("web", endpoints)


@given(st.integers(1, 9), st.integers(0, 50))
def test_round_robin_shares_are_even(count: int, picks: int) -> None:
    upstream = upstream_of(count)
    taken = Counter(upstream.pick((), "", 0.0) for _ in range(picks))
    shares = [taken[endpoint] for endpoint in upstream.endpoints]
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 6), st.data())
def test_tried_endpoints_are_left_out(count: int, data: st.DataObject) -> None:
    upstream = upstream_of(count)
    tried = data.draw(st.sets(st.sampled_from(upstream.endpoints)))
    picked = upstream.pick(tried, "", 0.0)
    assert (picked is None) == (len(tried) == count)
    assert picked not in tried


def test_no_endpoint_at_all() -> None:
    assert upstream_of(0).pick((), "", 0.0) is None


def test_the_condition_is_told_for_every_case_and_says_what_it_must() -> None:
    for administration in Administration:
        for health in Health:
            for ejected in (False, True):
                condition = CONDITIONS[administration, health, ejected]
                well = health is not Health.DOWN and not ejected
                enabled = administration is Administration.ENABLED
                assert condition.is_usable == (enabled and well)
                if not enabled:
                    assert condition.value == administration.value


orders = st.one_of(
    st.sampled_from(Administration), st.sampled_from(Health), st.booleans().map(bool)
)


@given(st.integers(1, 4), st.integers(0, 2), st.lists(st.tuples(st.integers(0, 5), orders)))
def test_the_usable_are_those_in_a_usable_condition_and_backups_when_there_are_no_others(
    count: int, backups: int, events: list[tuple[int, Administration | Health | bool]]
) -> None:
    upstream = upstream_of(count, backups)
    for now, (index, order) in enumerate(events):
        endpoint = upstream.endpoints[index % len(upstream.endpoints)]
        match order:
            case Administration():
                endpoint.administer(order, now)
            case Health():
                endpoint.set_health(order, "because", now)
            case _:
                endpoint.eject(now, ejected=order)
        usable = [each for each in upstream.endpoints if each.condition.is_usable]
        expected = [each for each in usable if not each.backup] or usable
        assert list(upstream.usable) == expected
        assert upstream.pick((), "", now) in (expected or [None])


def test_an_endpoint_knows_since_when_it_is_in_its_condition() -> None:
    (endpoint,) = upstream_of(1).endpoints
    endpoint.set_health(Health.DOWN, "connect refused", 5.0)
    endpoint.set_health(Health.DOWN, "no answer", 6.0)
    assert (endpoint.condition, endpoint.since) == (Condition.DOWN, 5.0)
    assert endpoint.reason == "no answer"
    endpoint.administer(Administration.DISABLED, 7.0)
    assert (endpoint.condition, endpoint.since) == (Condition.DISABLED, 7.0)


def test_an_endpoint_that_has_left_is_no_more_usable_whatever_becomes_of_it() -> None:
    upstream = upstream_of(2)
    gone, left = upstream.endpoints
    upstream.become([left], HOME)
    gone.set_health(Health.DOWN, "", 1.0)
    gone.set_health(Health.UP, "", 2.0)
    assert upstream.usable == (left,)


def test_addresses_of_one_name_have_each_their_condition() -> None:
    one, two = (Endpoint("web", "name:80", (f"192.0.2.{n}", 80)) for n in (1, 2))
    upstream = Upstream("web", [one, two])
    two.counters = one.counters
    one.set_health(Health.DOWN, "", 1.0)
    assert upstream.called("name:80") == [one, two]
    assert upstream.usable == (two,)


def test_an_original_destination_is_the_only_one_of_its_flow() -> None:
    upstream = OriginalUpstream("web")
    choice = upstream.towards(("192.0.2.9", 443))
    endpoint = choice.pick((), "", 0.0)
    assert endpoint is not None
    assert endpoint.address == ("192.0.2.9", 443)
    assert endpoint.counters is upstream.endpoints[0].counters
    assert choice.pick((endpoint,), "", 0.0) is None


def test_a_failed_endpoint_is_down_for_a_while_or_until_it_answers() -> None:
    (endpoint,) = upstream_of(1).endpoints
    counters = endpoint.counters
    assert counters.up(0.0)
    counters.attempt_failed(CloseReason.CONNECT_REFUSED, 100.0)
    assert not counters.up(100.0 + DOWN - 0.1)
    assert counters.up(100.0 + DOWN)
    counters.attempt_failed(CloseReason.CONNECT_REFUSED, 200.0)
    counters.answered()
    assert counters.snapshot(200.0)["up"]
    assert counters.snapshot(200.0)["failures"]["connect_refused"] == 2
