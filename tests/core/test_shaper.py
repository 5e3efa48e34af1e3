"""Shaping in virtual time: exact, smooth, fair, and nobody who waits is lost.

Wake-ups are late at random, as they are in a loop that has other work too. What a perfect divider
would give is in ``tests.core.fluid``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import pairwise
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.core.ceiling import (
    GRANT_MAX,
    GRANT_MIN,
    PAUSE,
    SLACK,
    ShapeRates,
    piece_of,
    shaping_rate,
)
from proxy.core.lease import Lease
from proxy.core.rate import Rate
from proxy.core.shaper import Shaper
from proxy.core.share import Group, Share
from tests.core.fluid import Gauge, Hungry, tree

BEGIN = 1e5  # a machine that has been up for a day: clocks are not near 0
BITS = 1 / 8
LATE = 0.005


class Lab:
    """A shaper with shares that always want more, and a loop that comes late."""

    def __init__(self, rates: ShapeRates, late: float = LATE) -> None:
        self.now = BEGIN
        self.rates = rates
        self.shaper = Shaper(rates, self.now)
        self.late = late
        self.random = Random(4)  # the lateness only; the same in each run
        self.hungry: set[Share] = set()
        self.moved: Counter[Share] = Counter()
        self.grants: list[tuple[float, Share, int]] = []

    def join(
        self,
        source: Hashable,
        weight: float = 1,
        flow_rate: Rate | None = None,
        hungry: bool = True,
    ) -> Share:
        share = self.shaper.join(source, self.now, weight, flow_rate)
        if hungry:
            self.feed(share)
        return share

    def feed(self, share: Share) -> None:
        """From now on it wants all it can get."""
        self.hungry.add(share)
        while grant := self.shaper.ask(share, self.now):
            self.move(share, grant)

    def rest(self, share: Share) -> None:
        """From now on it wants nothing; the shaper learns it when it grants the next time."""
        self.hungry.discard(share)

    def move(self, share: Share, grant: int) -> None:
        size = grant if share in self.hungry else 0
        self.moved[share] += size
        self.grants.append((self.now, share, size))
        self.shaper.spent(share, size, self.now)

    def serve(self) -> None:
        for share, grant in self.shaper.serve(self.now):
            self.move(share, grant)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := self.shaper.next_at()) < end:
            self.now = min(end, max(self.now, at) + self.random.uniform(0, self.late))
            self.serve()
        self.now = end

    def of_source(self, source: Hashable) -> int:
        return sum(size for share, size in self.moved.items() if share.source.key == source)


def speed(bits: float) -> Rate:
    return shaping_rate(bits * BITS)


@pytest.mark.parametrize("bits", [64e3, 10e6, 1e9])
@pytest.mark.parametrize("level", ["listener", "source", "flow"])
@pytest.mark.parametrize("late", [0.0, LATE, SLACK - PAUSE])
def test_one_flow_gets_its_bandwidth_for_ten_seconds(bits: float, level: str, late: float) -> None:
    lab = Lab(ShapeRates(**{level: speed(bits)}), late)
    share = lab.join("one")
    lab.run(10)
    assert 0.97 <= lab.moved[share] / (10 * bits * BITS) <= 1.01


@pytest.mark.parametrize(
    ("bits", "piece", "apart"), [(64e3, 400, 0.05), (10e6, 12_500, 0.01), (1e9, 125_000, 0.001)]
)
def test_one_flow_is_smooth(bits: float, piece: int, apart: float) -> None:
    lab = Lab(ShapeRates(flow=speed(bits)), late=0)
    lab.join("one")
    lab.run(1)
    times = [at for at, _, _ in lab.grants]
    gaps = [later - at for at, later in pairwise(times)]
    assert {size for _, _, size in lab.grants} <= {piece - 1, piece, piece + 1}
    assert all(gap == pytest.approx(apart, rel=0.01) for gap in gaps)


@pytest.mark.parametrize("bits", [8, 100, 1e3])
def test_the_slowest_rates_move_bytes_too(bits: float) -> None:
    lab = Lab(ShapeRates(flow=speed(bits)))
    share = lab.join("one")
    lab.run(100)
    assert 0.97 <= lab.moved[share] / (100 * bits * BITS) <= 1.02


@pytest.mark.parametrize("bits", [10e6, 1e9])
def test_500_flows_beside_one_get_half(bits: float) -> None:
    lab = Lab(ShapeRates(listener=speed(bits)))
    for _ in range(500):
        lab.join("many")
    lab.join("one")
    lab.moved.clear()  # the first of all found a piece there, and nobody else
    lab.run(2)
    half = bits * BITS
    assert lab.of_source("many") == pytest.approx(half, rel=0.05)
    assert lab.of_source("one") == pytest.approx(half, rel=0.05)
    per_flow = [size for share, size in lab.moved.items() if share.source.key == "many"]
    assert len(per_flow) == 500
    assert max(per_flow) - min(per_flow) <= 2 * max(GRANT_MIN, piece_of(bits * BITS) / 16)


def test_each_has_the_whole_when_the_other_is_quiet() -> None:
    lab = Lab(ShapeRates(listener=speed(10e6)))
    many = [lab.join("many") for _ in range(500)]
    one = lab.join("one")
    lab.run(1)
    seen = []
    for eater, sleeper in (([one], many), (many, [one])):
        for share in sleeper:
            lab.rest(share)
        for share in eater:
            lab.feed(share)
        lab.run(0.1)
        lab.moved.clear()
        lab.run(2)
        seen.append(sum(lab.moved[share] for share in eater))
        assert not any(lab.moved[share] for share in sleeper)
    assert seen == [pytest.approx(2 * 10e6 * BITS, rel=0.03)] * 2


def test_who_was_quiet_has_saved_nothing_up() -> None:
    lab = Lab(ShapeRates(listener=speed(10e6)))
    steady, sleeper = lab.join("steady"), lab.join("sleeper", hungry=False)
    brother = lab.join("steady", hungry=False)
    lab.run(5)
    lab.feed(sleeper)
    lab.moved.clear()
    lab.run(1)
    assert lab.moved[sleeper] == pytest.approx(lab.moved[steady], rel=0.05)
    lab.feed(brother)
    lab.moved.clear()
    lab.run(1)
    assert lab.moved[brother] == pytest.approx(lab.moved[steady], rel=0.1)


def test_a_low_ceiling_is_kept_beside_many_without_one() -> None:
    """A round of all takes half a second here, ten times what the low one's bucket holds."""
    lab = Lab(ShapeRates(listener=speed(10e6)))
    for number in range(500):
        lab.join(number)
    low = lab.join("low", flow_rate=speed(10e3))
    lab.run(4)
    lab.moved.clear()
    lab.run(10)
    assert 0.97 <= lab.moved[low] / (10 * 10e3 * BITS) <= 1.01


def test_who_comes_and_goes_gains_nothing() -> None:
    lab = Lab(ShapeRates(listener=speed(10e6)), late=0)
    steady = lab.join("steady")
    sly, gained = lab.join("sly"), 0
    for _ in range(2000):
        lab.run(0.001)
        if lab.moved[sly]:  # it has had a grant: away, and back as somebody new
            gained += lab.moved[sly]
            lab.shaper.leave(sly)
            sly = lab.join("sly")
    assert gained <= lab.moved[steady] * 1.05


def test_a_ceiling_of_a_source_is_not_evaded_by_coming_back() -> None:
    lab = Lab(ShapeRates(source=speed(1e6)), late=0)
    for _ in range(1000):
        share = lab.join("sly")
        lab.run(0.001)
        lab.shaper.leave(share)
    assert sum(lab.moved.values()) <= speed(1e6).burst + 1e6 * BITS


def test_newcomers_without_end_do_not_starve_who_waits() -> None:
    lab = Lab(ShapeRates(listener=speed(1e6)), late=0)
    old = lab.join("old")
    lab.run(0.5)
    lab.moved.clear()
    for number in range(4000):  # each wants more than is there in its millisecond
        lab.join(number)
        lab.run(0.001)
    assert lab.moved[old] >= GRANT_MIN


def test_weights_divide_between_sources() -> None:
    lab = Lab(ShapeRates(listener=speed(10e6)))
    lab.join("heavy", weight=3)
    lab.join("light")
    lab.run(4)
    assert lab.of_source("heavy") / lab.of_source("light") == pytest.approx(3, rel=0.03)


def test_another_weight_holds_at_once_for_a_source_that_waits() -> None:
    lab = Lab(ShapeRates(listener=speed(10e6)))
    share = lab.join("heavy")
    lab.join("light")
    lab.run(2)
    lab.shaper.weigh(share, 3)
    lab.moved.clear()
    lab.run(4)
    assert lab.of_source("heavy") / lab.of_source("light") == pytest.approx(3, rel=0.03)


def test_sources_that_are_gone_are_forgotten() -> None:
    lab = Lab(ShapeRates(source=speed(1e6)))
    for number in range(1000):
        share = lab.join(number)
        lab.run(0.01)
        lab.shaper.leave(share)
    assert len(lab.shaper._sources) < 20
    assert len(lab.shaper._sources._idle) < 20


def test_a_flood_that_goes_leaves_no_places_behind() -> None:
    lab = Lab(ShapeRates(listener=speed(64e3)))
    lab.join("one")
    for _ in range(1000):
        lab.shaper.leave(lab.join("flood"))
        lab.shaper.leave(lab.join("one"))
    assert len(lab.shaper._root.queue.heap) <= 3
    assert len(lab.shaper._sources._known["one"].queue.heap) <= 3


def test_a_new_ceiling_holds_at_once_and_without_a_burst_beyond_it() -> None:
    lab = Lab(ShapeRates(flow=speed(64e3)))
    share = lab.join("one")
    lab.run(1)
    for bits in (10e6, 1e6, 1e9, 64e3):
        share.rate = speed(bits)
        lab.moved.clear()
        lab.run(2)
        assert 0.94 <= lab.moved[share] / (2 * bits * BITS) <= 1.05
    share.rate = None
    assert share.rate == lab.rates.flow
    lab.shaper.become(ShapeRates(flow=speed(10e6)))
    lab.moved.clear()
    lab.run(2)
    assert 0.94 <= lab.moved[share] / (2 * 10e6 * BITS) <= 1.05


def test_without_ceilings_nobody_waits() -> None:
    shaper = Shaper(ShapeRates(), BEGIN)
    share = shaper.join("one", BEGIN)
    for _ in range(1000):
        assert shaper.ask(share, BEGIN) == GRANT_MAX
        shaper.spent(share, GRANT_MAX, BEGIN)
    assert shaper.next_at() == inf


def test_a_ceiling_that_is_lifted_lets_go_of_those_who_wait() -> None:
    lab = Lab(ShapeRates(listener=speed(64e3), source=speed(64e3)))
    share = lab.join("one")
    lab.shaper.become(ShapeRates())
    lab.rest(share)
    lab.run(1)
    assert share.line is None
    assert lab.shaper.ask(share, lab.now) == GRANT_MAX


def test_it_says_which_limit_holds_a_share_back() -> None:
    for level in ("listener", "source", "flow"):
        lab = Lab(ShapeRates(**{level: speed(64e3)}))
        share = lab.join("one", hungry=False)
        assert lab.shaper.held_by(share) is None
        lab.feed(share)
        assert lab.shaper.held_by(share) == f"{level}_bandwidth"


def test_serving_may_stop_at_any_grant() -> None:
    lab = Lab(ShapeRates(listener=speed(100e6)), late=0.002)
    shares = [lab.join(number % 3) for number in range(9)]
    end = lab.now + 2
    while lab.now < end:
        lab.now = max(lab.now, lab.shaper.next_at()) + 0.0001
        for share, grant in lab.shaper.serve(lab.now):
            lab.move(share, grant)
            break  # one each time: the rest is there when it comes back
    parts = [lab.moved[share] for share in shares]
    assert sum(parts) == pytest.approx(2 * 100e6 * BITS, rel=0.03)
    assert max(parts) <= min(parts) * 1.05


RATES = st.one_of(st.none(), st.sampled_from([64e3, 1e6, 10e6, 30e6, 100e6]))
SOURCES = st.lists(
    st.tuples(st.lists(RATES, min_size=1, max_size=6), st.sampled_from([0.5, 1.0, 2.0, 5.0])),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1e6, 10e6, 100e6]), RATES, SOURCES)
def test_the_hungry_get_what_a_perfect_divider_gives(
    listener: float, source: float | None, sources: list[tuple[list[float | None], float]]
) -> None:
    lab = Lab(
        ShapeRates(listener=speed(listener), source=None if source is None else speed(source))
    )
    shares = [
        [lab.join(n, weight, None if one is None else speed(one)) for one in flows]
        for n, (flows, weight) in enumerate(sources)
    ]
    lab.run(0.2)
    lab.moved.clear()
    span = 2.0
    lab.run(span)
    model = tree(
        listener * BITS,
        [
            Hungry([inf if one is None else one * BITS for one in flows], (source or inf) * BITS, w)
            for flows, w in sources
        ],
    )
    for row, parts in zip(shares, model, strict=True):
        for share, part in zip(row, parts, strict=True):
            slack = 0.03 * part * span + 2 * piece_of(listener * BITS) + SLACK * part
            assert lab.moved[share] == pytest.approx(part * span, abs=slack)


class Newcomer:
    """A flow that was let in without a share, and what it has moved since."""

    source: Group
    whole: Lease
    left: int

    def __init__(self, since: float) -> None:
        self.since = since
        self.moved = 0
        self.gauge: Gauge | None = None


class Wanting:
    """A flow of the model: what it still wants, and what watches its ceiling."""

    def __init__(self, share: Share, gauge: Gauge | None) -> None:
        self.share = share
        self.gauge = gauge
        self.wants = 0
        self.asked = False


class ShaperModel(RuleBasedStateMachine):
    """Flows come, want, stop wanting and go at any moment; rates change; serving comes late."""

    @initialize(rates=st.tuples(RATES, RATES, RATES))
    def begin(self, rates: tuple[float | None, float | None, float | None]) -> None:
        self.now = BEGIN
        self.flows: list[Wanting] = []
        self.newcomers: list[Newcomer] = []
        self.shaper = Shaper(self.told(rates), self.now)
        self.watch_all()

    def told(self, rates: Iterable[float | None]) -> ShapeRates:
        chosen = [None if rate is None else speed(rate) for rate in rates]
        self.rates = ShapeRates(listener=chosen[0], source=chosen[1], flow=chosen[2])
        return self.rates

    def watch(self, rate: Rate | None) -> Gauge | None:
        return None if rate is None else Gauge(rate.per_second, rate.burst, self.now)

    def watch_all(self) -> None:
        self.listener_gauge = self.watch(self.rates.listener)
        self.source_gauges = {key: self.watch(self.rates.source) for key in range(3)}
        for flow in self.flows:
            flow.gauge = self.watch(flow.share.rate)
        for newcomer in self.newcomers:
            newcomer.gauge = self.watch(self.rates.flow)

    @rule(source=st.integers(0, 2), rate=RATES, weight=st.sampled_from([1.0, 4.0]))
    def join(self, source: int, rate: float | None, weight: float) -> None:
        own = None if rate is None else speed(rate)
        share = self.shaper.join(source, self.now, weight, own)
        assert share.rate == (own or self.rates.flow)
        self.flows.append(Wanting(share, self.watch(share.rate)))

    @rule(source=st.integers(0, 2), weight=st.sampled_from([1.0, 4.0]))
    def let_in(self, source: int, weight: float) -> None:
        newcomer = Newcomer(self.now)
        self.shaper.let_in(newcomer, source, self.now, weight)
        newcomer.gauge = self.watch(self.rates.flow)
        self.newcomers.append(newcomer)

    @precondition(lambda self: self.newcomers)
    @rule(data=st.data(), size=st.integers(1, 100_000), times=st.integers(1, 20))
    def move_by_the_first_lease(self, data: st.DataObject, size: int, times: int) -> None:
        newcomer = data.draw(st.sampled_from(self.newcomers))
        for _ in range(times):
            if by_lease(newcomer, size):
                newcomer.moved += size
                self.pass_gauges(newcomer.gauge, newcomer.source.key, size)

    @precondition(lambda self: self.newcomers)
    @rule(data=st.data())
    def take_a_share(self, data: st.DataObject) -> None:
        newcomer = data.draw(st.sampled_from(self.newcomers))
        self.newcomers.remove(newcomer)
        share = self.shaper.share_of(newcomer, newcomer.since, newcomer.moved)
        self.flows.append(Wanting(share, newcomer.gauge))

    @precondition(lambda self: self.newcomers)
    @rule(data=st.data())
    def go_without_a_share(self, data: st.DataObject) -> None:
        newcomer = data.draw(st.sampled_from(self.newcomers))
        self.newcomers.remove(newcomer)
        self.shaper.let_go(newcomer.source)

    @precondition(lambda self: self.flows)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(self.flows))
        self.flows.remove(flow)
        self.shaper.leave(flow.share)

    @precondition(lambda self: self.flows)
    @rule(data=st.data(), more=st.integers(1, 300_000))
    def want(self, data: st.DataObject, more: int) -> None:
        flow = data.draw(st.sampled_from(self.flows))
        flow.wants += more
        while flow.wants and (grant := self.shaper.ask(flow.share, self.now)):
            self.move(flow, grant)
        flow.asked = flow.asked or flow.wants > 0

    @precondition(lambda self: any(not flow.asked for flow in self.flows))
    @rule(data=st.data(), size=st.integers(1, 100_000), times=st.integers(1, 20))
    def move_by_the_lease(self, data: st.DataObject, size: int, times: int) -> None:
        """As legs do: who has the whole of a move left at each level moves without asking."""
        flow = data.draw(st.sampled_from([flow for flow in self.flows if not flow.asked]))
        for _ in range(times):
            if by_lease(flow.share, size):
                self.pass_gauges(flow.gauge, flow.share.source.key, size)

    @precondition(lambda self: self.flows)
    @rule(data=st.data())
    def stop_wanting(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.flows)).wants = 0

    @rule(rates=st.tuples(RATES, RATES, RATES))
    def become(self, rates: tuple[float | None, float | None, float | None]) -> None:
        self.shaper.become(self.told(rates))
        self.watch_all()

    @precondition(lambda self: self.flows)
    @rule(data=st.data(), rate=RATES)
    def change(self, data: st.DataObject, rate: float | None) -> None:
        flow = data.draw(st.sampled_from(self.flows))
        flow.share.rate = None if rate is None else speed(rate)
        flow.gauge = self.watch(flow.share.rate)

    @rule(late=st.floats(0, 0.08), stop=st.integers(0, 30), gone=st.booleans())
    def serve(self, late: float, stop: int, gone: bool) -> None:
        at = self.shaper.next_at()
        self.now = (self.now if at == inf else max(self.now, at)) + late
        for share, grant in self.shaper.serve(self.now):
            flow = next(flow for flow in self.flows if flow.share is share)
            if not stop and gone:
                self.flows.remove(flow)
                self.shaper.leave(share)
                break
            self.move(flow, grant)
            if not stop:
                break
            stop -= 1

    @rule(step=st.floats(0, 3))
    def nothing_happens(self, step: float) -> None:
        self.now += step

    def move(self, flow: Wanting, grant: int) -> None:
        assert 1 <= grant <= GRANT_MAX
        size = min(grant, flow.wants)
        flow.wants -= size
        self.pass_gauges(flow.gauge, flow.share.source.key, size)
        if flow.share.granted and size < grant:
            flow.asked = False  # it has dried up, and has to ask again
        self.shaper.spent(flow.share, size, self.now)

    def pass_gauges(self, own: Gauge | None, source: Hashable, size: int) -> None:
        assert isinstance(source, int)
        for gauge in (own, self.source_gauges[source], self.listener_gauge):
            if gauge is not None:
                gauge.passed(size, self.now)

    @invariant()
    def no_level_lends_while_somebody_waits_for_it(self) -> None:
        for flow in self.flows:
            source = flow.share.source
            assert not (source.queue.heap and source.left)
        if hasattr(self, "shaper"):
            assert not (self.shaper._root.queue.heap and self.shaper._whole.left)

    @invariant()
    def a_source_has_as_many_members_as_flows(self) -> None:
        if hasattr(self, "shaper"):
            sources = [flow.share.source for flow in self.flows]
            sources += [newcomer.source for newcomer in self.newcomers]
            for source in self.shaper._sources._known.values():
                assert source.members == sources.count(source)

    @invariant()
    def who_asked_and_got_nothing_waits(self) -> None:
        for flow in self.flows:
            assert (flow.share.line is not None) == flow.asked

    @invariant()
    def who_waits_will_be_served(self) -> None:
        asked = any(flow.asked for flow in self.flows)
        assert (self.shaper.next_at() < inf) == asked

    @invariant()
    def lines_hold_those_who_wait_and_nobody_else(self) -> None:
        shaper = self.shaper
        groups = [shaper._root, *shaper._sources._known.values()]
        lines = [shaper._clock, *(group.queue for group in groups)]
        waiting = [flow.share for flow in self.flows if flow.asked]
        sources = [group for group in groups[1:] if group.queue.heap]
        assert sum(map(len, lines)) == len(waiting) + len(sources)
        for line in lines:
            alive = [node for _, _, node in line.heap if node.line is line]
            assert len(line) <= len(line.heap) <= 2 * len(line) + 1
            assert not line.heap or line.heap[0][2].place is line.heap[0]
            assert len(line) <= len(alive)

    def teardown(self) -> None:
        """Nobody is lost: all that is still wanted is moved, in the time that it takes."""
        if not hasattr(self, "shaper"):
            return
        end = self.now + 10 + sum(flow.wants for flow in self.flows) / (64e3 * BITS)
        while (at := self.shaper.next_at()) < inf:
            self.now = max(self.now, at)
            assert self.now < end, "starved"
            for share, grant in self.shaper.serve(self.now):
                self.move(next(flow for flow in self.flows if flow.share is share), grant)
        assert not any(flow.asked for flow in self.flows)


TestShaperModel = ShaperModel.TestCase
TestShaperModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("level", ["listener", "source", "flow"])
@pytest.mark.parametrize("bits", [10e6, 100e6, 1e9])
def test_who_stays_below_a_ceiling_never_waits_for_what_was_booked_late(
    bits: float, level: str
) -> None:
    lab = Lab(ShapeRates(**{level: speed(bits)}))
    share = lab.join("one", hungry=False)
    lab.now += 1
    size, asked, moved = 1000, 0, 0
    while moved < 5 * bits * BITS:
        lab.now += lab.random.uniform(0, 2) * size / (0.95 * bits * BITS)
        moved += size
        if by_lease(share, size):
            continue
        asked += 1
        assert lab.shaper.ask(share, lab.now) >= size
        lab.shaper.spent(share, size, lab.now)
    assert asked < moved / size / 10


def by_lease(who: Share | Newcomer, size: int) -> bool:
    """Move as a leg does: without asking, if the whole of a move is left at each level."""
    levels = who, who.source, who.whole
    if min(level.left for level in levels) <= size:
        return False
    for level in levels:
        level.left -= size
    return True


@pytest.mark.parametrize("level", ["listener", "source", "flow"])
def test_by_leases_and_by_grants_nobody_has_more_than_burst_and_rate(level: str) -> None:
    rate = speed(100e6)
    lab = Lab(ShapeRates(**{level: rate}))
    shares = [lab.join(n // 2, hungry=False) for n in range(4)]
    parts = {
        "listener": [shares],
        "source": [shares[:2], shares[2:]],
        "flow": [[s] for s in shares],
    }
    gauges = [(Gauge(*rate, lab.now), part) for part in parts[level]]
    leased = 0
    for n in range(20_000):
        lab.now += lab.random.uniform(0, 2) * 1000 / (50e6 * BITS)  # a third more than there is
        if n % 5000 == 0:
            lab.now += 1  # a rest, after which there are leases again
        share, size = shares[n % 4], 6000 if n % 3 == 0 else 1000
        granted = 0
        if by_lease(share, size):
            leased += 1
            granted = size
        elif share.line is None and (granted := min(size, lab.shaper.ask(share, lab.now))):
            lab.shaper.spent(share, granted, lab.now)
        served = [(share, granted)]
        for other, grant in lab.shaper.serve(lab.now):
            served.append((other, min(grant, 1000)))
            lab.shaper.spent(other, min(grant, 1000), lab.now)
        for who, moved in served:
            for gauge, part in gauges:
                if who in part:
                    gauge.passed(moved, lab.now)
    assert leased > 100


@pytest.mark.parametrize("level", ["listener", "source", "flow"])
def test_what_was_free_is_not_charged_to_a_ceiling_that_comes_later(level: str) -> None:
    """A MiB takes two minutes at 64 kbit/s; it was moved when that did not hold."""
    lab = Lab(ShapeRates())
    share = lab.join("one", hungry=False)
    lab.move(share, lab.shaper.ask(share, lab.now))
    assert by_lease(share, 1_000_000)
    lab.shaper.become(ShapeRates(**{level: speed(64e3)}))
    lab.feed(share)
    lab.run(1)
    assert lab.moved[share] >= 0.9 * 64e3 * BITS


@pytest.mark.parametrize("has_share", [True, False])
def test_who_comes_after_a_change_does_not_go_by_what_its_source_had_before(
    has_share: bool,
) -> None:
    shaper = Shaper(ShapeRates(), BEGIN)
    shaper.join("one", BEGIN)
    shaper.become(ShapeRates(source=speed(1e6)))
    other = shaper.join("other", BEGIN)
    shaper.spent(other, shaper.ask(other, BEGIN), BEGIN)  # now the listener lends again
    if has_share:
        late: Share | Newcomer = shaper.join("one", BEGIN)
    else:
        late = Newcomer(BEGIN)
        shaper.let_in(late, "one", BEGIN)
    assert not by_lease(late, 20_000)


def test_what_was_moved_by_a_lease_is_not_forgotten() -> None:
    """Neither by a reload, nor when the last flow of a source goes and comes again."""
    rate = speed(1e9)
    shaper = Shaper(ShapeRates(listener=rate, source=rate), BEGIN)
    share = shaper.join("one", BEGIN)
    assert by_lease(share, 100_000)
    shaper.become(ShapeRates(listener=rate, source=rate))
    assert not by_lease(share, 1)
    shaper.leave(share)
    soon = BEGIN + 0.0001
    shaper.leave(shaper.join("other", soon))
    again = shaper.join("one", soon)
    assert again.source is share.source
    shaper.spent(again, 0, soon)
    debt = 100_000 / rate.per_second + speed_new(1e9)
    assert shaper._root.full_at - BEGIN == pytest.approx(debt)
    assert again.source.full_at - BEGIN == pytest.approx(debt)
    later = BEGIN + 1
    shaper.spent(again, 0, later)
    assert by_lease(again, 100_000)
    shaper.spent(again, 0, later)  # as tolls do, without asking
    assert again.source.full_at - later == pytest.approx(100_000 / rate.per_second)


def test_nothing_is_lent_while_somebody_waits_even_if_there_is_enough() -> None:
    lab = Lab(ShapeRates(listener=speed(100e6)))
    lab.join("hungry")
    other = lab.join("other", hungry=False)
    lab.now += 1  # the bucket is full, and nobody has served yet
    lab.shaper.spent(other, 0, lab.now)
    assert not by_lease(other, 1)


def test_a_new_flow_need_not_ask_for_what_a_new_bucket_holds() -> None:
    shaper = Shaper(ShapeRates(listener=speed(1e9), source=speed(1e9), flow=speed(1e9)), BEGIN)
    share, newcomer = shaper.join("one", BEGIN), Newcomer(BEGIN)
    shaper.let_in(newcomer, "one", BEGIN)
    piece = piece_of(1e9 * BITS)
    for who in (share, newcomer):
        assert (who.source, who.whole) == (share.source, shaper._whole)
        for left in (who.left, who.source.left, who.whole.left):
            assert 0.9 * piece <= left <= piece


def test_a_share_that_is_made_late_is_as_if_it_had_been_there() -> None:
    rates = ShapeRates(listener=speed(1e9), source=speed(1e9), flow=speed(1e9))
    early, late = Shaper(rates, BEGIN), Shaper(rates, BEGIN)
    share, newcomer = early.join("one", BEGIN), Newcomer(BEGIN)
    late.let_in(newcomer, "one", BEGIN)
    for _ in range(3):
        assert by_lease(share, 30_000)
        assert by_lease(newcomer, 30_000)
    made = late.share_of(newcomer, BEGIN, 90_000)
    assert not by_lease(made, 1)
    for now in (BEGIN + 0.001, BEGIN + 0.0012):
        assert early.ask(share, now) == late.ask(made, now)
        early.spent(share, 100, now)
        late.spent(made, 100, now)
        for one, other in ((share, made), (share.source, made.source), (early._root, late._root)):
            assert one.full_at == other.full_at
    late.leave(made)
    assert not made.source.members


def test_another_ceiling_ends_first_leases_too() -> None:
    shaper = Shaper(ShapeRates(flow=speed(1e9)), BEGIN)
    newcomer = Newcomer(BEGIN)
    shaper.let_in(newcomer, "one", BEGIN)
    shaper.become(ShapeRates(flow=speed(64e3)))
    other = shaper.join("one", BEGIN)
    shaper.spent(other, 0, BEGIN)  # the source lends anew
    assert not by_lease(newcomer, 1)


def test_another_ceiling_of_a_flow_ends_its_lease() -> None:
    shaper = Shaper(ShapeRates(flow=speed(1e9)), BEGIN)
    share = shaper.join("one", BEGIN)
    share.left -= 1000
    share.rate = speed(1e6)
    assert share.left == 0
    shaper.ask(share, BEGIN)
    assert share.full_at - BEGIN == pytest.approx(share.ceiling.cost * 1000 + speed_new(1e9))


def speed_new(bits: float) -> float:
    """Seconds that a new bucket of this ceiling lacks."""
    rate = speed(bits)
    return (rate.burst - piece_of(rate.per_second)) / rate.per_second


def test_a_grant_that_is_not_settled_is_an_assertion() -> None:
    lab = Lab(ShapeRates(listener=speed(64e3)))
    lab.join("one")
    lab.join("two")
    lab.now += 1
    with pytest.raises(AssertionError, match="not settled"):
        list(lab.shaper.serve(lab.now))


def test_leaving_twice_is_an_assertion() -> None:
    shaper = Shaper(ShapeRates(), BEGIN)
    share = shaper.join("one", BEGIN)
    shaper.leave(share)
    with pytest.raises(AssertionError):
        shaper.leave(share)
