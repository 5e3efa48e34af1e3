from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.condition import CONDITIONS, Administration, Condition, Health
from proxy.core.counters import DOWN
from proxy.core.endpoint import STEPS, Endpoint
from proxy.core.flow import CloseReason
from proxy.core.original import OriginalUpstream
from proxy.core.upstream import HOME, Upstream


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


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60),
)
def test_a_full_endpoint_is_passed_over_and_is_asked_again_when_it_has_room(
    ceilings: list[int], events: list[tuple[int, bool]]
) -> None:
    upstream = upstream_of(len(ceilings))
    for endpoint, ceiling in zip(upstream.endpoints, ceilings, strict=True):
        endpoint.become(1, backup=False, ceiling=ceiling)
    upstream.become(upstream.endpoints, HOME)
    for index, takes in events:
        endpoint = upstream.endpoints[index % len(ceilings)]
        if takes and not endpoint.is_full:
            endpoint.take()
        elif not takes and endpoint.flows:
            endpoint.leave(0.0)
        free = [each for each in upstream.endpoints if each.flows < each.ceiling]
        picked = upstream.pick((), "", 0.0)
        assert picked in (free or [None])
        assert upstream.has_room_later(free) == (len(free) < len(ceilings))


def test_a_ceiling_below_what_is_live_is_reached_from_above() -> None:
    upstream = upstream_of(1)
    (endpoint,) = upstream.endpoints
    for _ in range(4):
        endpoint.take()
    endpoint.become(1, backup=False, ceiling=2)
    upstream.become([endpoint], HOME)
    for _ in range(2):
        assert upstream.pick((), "", 0.0) is None
        endpoint.leave(0.0)
    assert upstream.pick((), "", 0.0) is None
    endpoint.leave(0.0)
    assert upstream.pick((), "", 0.0) is endpoint


def share_after(upstream: Upstream, endpoint: Endpoint, now: float) -> int:
    taken = Counter(upstream.pick((), "", now) for _ in range(2000))
    return taken[endpoint]


def test_an_endpoint_that_comes_back_starts_slowly() -> None:
    upstream = upstream_of(2)
    back, other = upstream.endpoints
    upstream.become(upstream.endpoints, HOME, slow_start=20.0)
    assert share_after(upstream, back, 0.0) == 1000  # nobody is new at the start
    back.set_health(Health.DOWN, "", 100.0)
    assert share_after(upstream, back, 100.0) == 0
    back.set_health(Health.UP, "", 200.0)
    shares = [share_after(upstream, back, 200.0 + age) for age in range(26)]
    assert shares == sorted(shares)
    assert shares[0] < 150
    assert 550 < shares[10] < 750  # half of the other's
    assert shares[20:] == [1000] * 6
    assert upstream.pick == upstream._picker.pick  # and costs no more than before
    assert other.share == back.share


def test_an_endpoint_that_is_new_starts_slowly_and_one_alone_takes_all() -> None:
    upstream = upstream_of(1)
    (old,) = upstream.endpoints
    new = Endpoint("web", "new", ("192.0.2.9", 1))
    upstream.become([old, new], HOME, slow_start=20.0, now=50.0)
    assert share_after(upstream, new, 50.0) < 150
    old.set_health(Health.DOWN, "", 51.0)
    assert share_after(upstream, new, 51.0) == 2000


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0, 5)), max_size=30))
def test_shares_are_right_at_every_moment_of_a_slow_start(
    events: list[tuple[int, bool, float]],
) -> None:
    upstream = upstream_of(4)
    upstream.become(upstream.endpoints, HOME, slow_start=10.0)
    now, began = 0.0, dict.fromkeys(upstream.endpoints, -100.0)
    for index, up, pause in events:
        now += pause
        endpoint = upstream.endpoints[index]
        if up and endpoint.health is Health.DOWN:
            began[endpoint] = now
        endpoint.set_health(Health.UP if up else Health.DOWN, "", now)
        upstream.pick((), "", now)
        for each in upstream.usable:
            grown = min(1.0, (now - began[each]) / 10.0)
            assert abs(each.share / STEPS - max(grown, 1 / STEPS)) <= 2 / STEPS


def test_kin_are_those_of_the_same_name_and_the_other_ip_version() -> None:
    places = [("a:80", "192.0.2.1"), ("a:80", "2001:db8::1"), ("b:80", "2001:db8::2")]
    places += [("b:80", "2001:db8::3"), ("c:80", "192.0.2.4"), ("a:80", "192.0.2.5")]
    one, six, *others, two = (Endpoint("web", name, (host, 80)) for name, host in places)
    upstream = Upstream("web", [one, six, *others, two])
    assert (one.kin, six.kin, two.kin) == ((six,), (one, two), (six,))
    assert [each.kin for each in others] == [(), (), ()]
    two.set_health(Health.DOWN, "", 1.0)
    assert upstream.usable
    assert six.kin == (one,)


def test_a_backup_stands_in_when_all_others_have_failed_a_flow() -> None:
    upstream = upstream_of(2, backups=2)
    one, two, three, four = upstream.endpoints
    assert upstream.spares == (three, four)
    assert upstream.pick((one, two), "", 0.0) is None
    assert upstream.stand_in((one, two)) is three
    three.take()
    assert upstream.stand_in((one, two)) is four
    assert upstream.stand_in((one, two, three, four)) is None


def test_a_backup_does_not_stand_in_for_one_that_is_full_nor_when_it_is_full_or_down() -> None:
    upstream = upstream_of(2, backups=1)
    one, two, three = upstream.endpoints
    two.become(1, backup=False, ceiling=1)
    three.become(1, backup=True, ceiling=1)
    upstream.become(upstream.endpoints, HOME)
    two.take()
    assert upstream.stand_in((one,)) is None
    assert upstream.has_room_later((one,))
    assert upstream.stand_in((one, two)) is three
    three.take()
    assert upstream.stand_in((one, two)) is None
    three.leave(0.0)
    three.set_health(Health.DOWN, "", 0.0)
    assert upstream.spares == ()


def test_backups_that_are_asked_are_no_spares() -> None:
    upstream = upstream_of(1, backups=1)
    one, two = upstream.endpoints
    one.set_health(Health.DOWN, "", 0.0)
    assert (upstream.usable, upstream.spares) == ((two,), ())
