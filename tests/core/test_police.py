"""Policing in virtual time: exact and fair, without a queue and without measuring.

Senders do not care what is dropped; their datagrams come with jitter. What a perfect divider would
give is in ``tests.core.fluid``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from heapq import heapify, heapreplace
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.admission import Limit
from proxy.core.ceiling import ShapeRates, shaping_rate
from proxy.core.police import Policed, Policer
from proxy.core.rate import Rate
from tests.core.fluid import Gauge, Hungry, tree

BEGIN = 1e5
BITS = 1 / 8
SIZE = 1200


def by_lease(flow: Policed, size: int) -> bool:
    """Pass as a flow does: without asking, if that is left at each level."""
    levels = flow, flow.source, flow.whole
    if min(level.left for level in levels) <= size:
        return False
    for level in levels:
        level.left -= size
    return True


class Lab:
    """A policer with flows that send at constant speeds, in bytes a second."""

    def __init__(self, rates: ShapeRates) -> None:
        self.now = BEGIN
        self.policer = Policer(rates, self.now)
        self.random = Random(4)
        self.speeds: dict[Policed, float] = {}
        self.sizes: dict[Policed, int] = {}
        self.passed: Counter[Policed] = Counter()
        self.offered: Counter[Policed] = Counter()
        self.dropped: Counter[Limit] = Counter()
        self.gauges: list[tuple[Gauge, Hashable]] = []
        self.leased = 0

    def join(
        self,
        source: Hashable,
        speed: float,
        weight: float = 1,
        flow_rate: Rate | None = None,
        size: int = SIZE,
    ) -> Policed:
        flow = self.policer.join(source, self.now, weight, flow_rate)
        self.speeds[flow] = speed
        self.sizes[flow] = size
        return flow

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        flows = [flow for flow, speed in self.speeds.items() if speed]
        coming = [(self.now + self.gap(flow), n) for n, flow in enumerate(flows)]
        heapify(coming)
        while coming and coming[0][0] < end:
            self.now, n = coming[0]
            self.send(flows[n])
            heapreplace(coming, (self.now + self.gap(flows[n]), n))
        self.now = end

    def gap(self, flow: Policed) -> float:
        return self.random.uniform(0.2, 1.8) * self.sizes[flow] / self.speeds[flow]

    def send(self, flow: Policed) -> None:
        size = self.sizes[flow]
        self.offered[flow] += size
        limit = None
        if by_lease(flow, size):
            self.leased += 1
        else:
            limit = self.policer.passes(flow, size, self.now)
        if limit is not None:
            self.dropped[limit] += 1
            return
        self.passed[flow] += size
        for gauge, whose in self.gauges:
            if whose in (None, flow, flow.source.key):
                gauge.passed(size, self.now)

    def watch(self, rate: Rate, whose: Hashable = None) -> None:
        self.gauges.append((Gauge(rate.per_second, rate.burst, self.now), whose))

    def of_source(self, source: Hashable) -> int:
        return sum(size for flow, size in self.passed.items() if flow.source.key == source)


def speed(bits: float) -> Rate:
    return shaping_rate(bits * BITS)


@pytest.mark.parametrize(
    ("bits", "size", "span"),
    [(64e3, 160, 10), (64e3, 700, 50), (64e3, 1400, 100), (10e6, SIZE, 10), (1e9, 8000, 2)],
)
@pytest.mark.parametrize("level", ["listener", "source", "flow"])
def test_one_flow_gets_its_bandwidth(bits: float, size: int, span: float, level: str) -> None:
    rate = speed(bits)
    lab = Lab(ShapeRates(**{level: rate}))
    lab.watch(Rate(rate.per_second, max(rate.burst, size) + size))
    flow = lab.join("one", 2 * bits * BITS, size=size)
    lab.run(0.2)
    lab.passed.clear()
    lab.run(span)
    assert 0.97 <= lab.passed[flow] / (span * bits * BITS) <= 1.01
    assert set(lab.dropped) == {f"{level}_bandwidth"}


@pytest.mark.parametrize("level", ["listener", "source", "flow"])
@pytest.mark.parametrize("size", [500, 700, 1400, 8000])
@pytest.mark.parametrize("times", [1.02, 1.12, 1.25, 1.7, 3])
def test_datagrams_that_come_evenly_get_all_of_a_slow_bandwidth(
    level: str, size: int, times: float
) -> None:
    rate, span = speed(64e3), 200
    policer = Policer(ShapeRates(**{level: rate}), BEGIN)
    gauge = Gauge(rate.per_second, max(rate.burst, size) + size, BEGIN)
    flow = policer.join("one", BEGIN)
    gap = size / (times * rate.per_second)
    passed = 0
    for n in range(int(span / gap)):
        now = BEGIN + n * gap
        if policer.passes(flow, size, now) is None:
            passed += size
            gauge.passed(size, now)
    assert 0.99 <= passed / (span * rate.per_second) <= 1.01


@pytest.mark.parametrize("bits", [1e6, 10e6, 100e6])
def test_500_flows_beside_one_get_half_and_all_when_it_is_quiet(bits: float) -> None:
    lab = Lab(ShapeRates(listener=speed(bits)))
    lab.watch(speed(bits))
    capacity = bits * BITS
    span = max(1.0, 20e6 / bits)
    many = [lab.join("many", 2 * capacity / 500) for _ in range(500)]
    one = lab.join("one", 2 * capacity)
    lab.run(0.5)
    lab.passed.clear()
    lab.run(span)
    assert lab.of_source("many") == pytest.approx(span * capacity / 2, rel=0.05)
    assert lab.of_source("one") == pytest.approx(span * capacity / 2, rel=0.05)

    lab.speeds[one] = 0
    lab.run(0.1)
    lab.passed.clear()
    lab.run(span)
    assert lab.of_source("many") == pytest.approx(span * capacity, rel=0.03)

    lab.speeds.update(dict.fromkeys(many, 0))
    lab.speeds[one] = 2 * capacity
    lab.run(0.1)
    lab.passed.clear()
    lab.run(span)
    assert lab.of_source("one") == pytest.approx(span * capacity, rel=0.03)


@pytest.mark.parametrize("level", ["listener", "source"])
def test_the_flows_of_a_source_have_even_parts_however_much_they_send(level: str) -> None:
    lab = Lab(ShapeRates(**{level: speed(10e6)}))
    capacity = 10e6 * BITS
    greedy, modest, small = (lab.join("one", capacity * part) for part in (4, 1, 0.1))
    lab.run(0.5)
    lab.passed.clear()
    lab.offered.clear()
    lab.run(4)
    assert lab.passed[greedy] == pytest.approx(0.45 * capacity * 4, rel=0.05)
    assert lab.passed[modest] == pytest.approx(0.45 * capacity * 4, rel=0.05)
    assert lab.passed[small] >= 0.98 * lab.offered[small]


def test_who_sends_less_than_its_part_loses_nothing() -> None:
    lab = Lab(ShapeRates(listener=speed(10e6)))
    for n in range(3):
        lab.join(n, 10e6 * BITS)
    quiet = lab.join("quiet", 1e6 * BITS)
    lab.run(5)
    assert lab.passed[quiet] >= 0.99 * lab.offered[quiet]


def test_weights_divide_between_sources() -> None:
    lab = Lab(ShapeRates(listener=speed(10e6)))
    lab.join("heavy", 10e6 * BITS, weight=3)
    lab.join("light", 10e6 * BITS)
    lab.run(5)
    assert lab.of_source("heavy") / lab.of_source("light") == pytest.approx(3, rel=0.05)


def test_another_weight_holds_at_once_for_a_source_that_never_rests() -> None:
    lab = Lab(ShapeRates(listener=speed(10e6)))
    flow = lab.join("heavy", 10e6 * BITS)
    lab.join("light", 10e6 * BITS)
    lab.run(2)
    lab.policer.weigh(flow, 3, lab.now)
    lab.passed.clear()
    lab.run(5)
    assert lab.of_source("heavy") / lab.of_source("light") == pytest.approx(3, rel=0.05)


RATES = st.one_of(st.none(), st.sampled_from([1e6, 3e6, 10e6]))
DEMANDS = st.sampled_from([0.3e6, 2e6, 10e6, 30e6])
SOURCES = st.lists(
    st.tuples(
        st.lists(st.tuples(DEMANDS, RATES), min_size=1, max_size=5),
        st.sampled_from([0.5, 1.0, 2.0]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=30, deadline=None)
@given(RATES, SOURCES)
def test_each_gets_what_a_perfect_divider_gives(
    source: float | None, sources: list[tuple[list[tuple[float, float | None]], float]]
) -> None:
    lab = Lab(ShapeRates(listener=speed(10e6), source=None if source is None else speed(source)))
    lab.watch(speed(10e6))
    flows = [
        [
            lab.join(n, demand * BITS, weight, None if rate is None else speed(rate))
            for demand, rate in row
        ]
        for n, (row, weight) in enumerate(sources)
    ]
    for n in range(len(sources)):
        if source is not None:
            lab.watch(speed(source), n)
    lab.run(0.3)
    lab.passed.clear()
    span = 2.0
    lab.run(span)
    total = 10e6 * BITS
    wanted = [
        Hungry(
            [min(demand, inf if rate is None else rate) * BITS for demand, rate in row],
            (source or inf) * BITS,
            weight,
        )
        for row, weight in sources
    ]
    for row, parts in zip(flows, tree(total, wanted), strict=True):
        for flow, part in zip(row, parts, strict=True):
            slack = 0.06 * part * span + 0.06 * total
            assert lab.passed[flow] == pytest.approx(part * span, abs=slack)


def test_a_datagram_beyond_the_burst_needs_a_full_bucket_and_leaves_a_debt() -> None:
    rate = Rate(1000.0, 100.0)
    policer = Policer(ShapeRates(flow=rate), BEGIN)
    flow = policer.join("one", BEGIN)
    assert policer.passes(flow, 1000, BEGIN) is None
    assert policer.passes(flow, 1, BEGIN + 0.8) is Limit.FLOW_BANDWIDTH
    assert policer.passes(flow, 1000, BEGIN + 0.99) is Limit.FLOW_BANDWIDTH
    assert policer.passes(flow, 1000, BEGIN + 1.001) is None


def test_a_ceiling_of_a_source_is_not_evaded_by_coming_back() -> None:
    policer = Policer(ShapeRates(source=speed(1e6)), BEGIN)
    passed = 0
    for n in range(2000):
        flow = policer.join("sly", BEGIN + n / 1000)
        passed += SIZE * (policer.passes(flow, SIZE, BEGIN + n / 1000) is None)
        policer.leave(flow)
    assert passed <= 2 * 1e6 * BITS + speed(1e6).burst


def test_sources_that_are_gone_are_forgotten() -> None:
    policer = Policer(ShapeRates(source=speed(1e6), listener=speed(1e6)), BEGIN)
    for n in range(1000):
        flow = policer.join(n, BEGIN + n / 100)
        policer.passes(flow, SIZE, BEGIN + n / 100)
        policer.leave(flow)
    assert len(policer._sources) < 30
    assert len(policer._fluid._busy) < 30


def test_who_had_too_much_is_forgotten_too_when_it_is_calm_again() -> None:
    policer = Policer(ShapeRates(listener=speed(10e6)), BEGIN)
    for n in range(100):
        flow = policer.join(n, BEGIN)
        policer.passes(flow, SIZE, BEGIN)
        policer.leave(flow)
    assert len(policer._sources) > 50
    for n in range(1000, 1100):
        policer.leave(policer.join(n, BEGIN + 1))
    assert len(policer._sources) < 5


def test_a_part_is_not_evaded_by_coming_back() -> None:
    policer = Policer(ShapeRates(listener=speed(10e6)), BEGIN)
    steady, passed = policer.join("steady", BEGIN), Counter[str]()
    for n in range(20_000):  # each sends twice the whole
        now = BEGIN + n * SIZE / (2 * 10e6 * BITS)
        sly = policer.join("sly", now)
        for name, flow in (("steady", steady), ("sly", sly)):
            passed[name] += policer.passes(flow, SIZE, now) is None
        policer.leave(sly)
    assert passed["sly"] == pytest.approx(passed["steady"], rel=0.05)


def test_ceilings_change_while_flows_are_there() -> None:
    lab = Lab(ShapeRates(listener=speed(1e6)))
    flow = lab.join("one", 20e6 * BITS)
    lab.join("two", 20e6 * BITS)
    for listener, own in ((10e6, None), (10e6, 1e6), (1e6, 10e6), (None, 3e6)):
        lab.policer.become(ShapeRates(listener=None if listener is None else speed(listener)))
        flow.rate = None if own is None else speed(own)
        lab.run(0.2)
        lab.passed.clear()
        lab.run(2)
        part = min((listener or inf) / 2, own or inf)
        assert lab.passed[flow] / 2 == pytest.approx(part * BITS, rel=0.06)


def test_without_ceilings_everything_passes() -> None:
    policer = Policer(ShapeRates(), BEGIN)
    flow = policer.join("one", BEGIN)
    assert {policer.passes(flow, 65507, BEGIN) for _ in range(1000)} == {None}


@pytest.mark.parametrize("level", ["listener", "source", "flow"])
def test_by_leases_too_nothing_passes_that_a_ceiling_does_not_let_through(level: str) -> None:
    lab = Lab(ShapeRates(**{level: speed(10e6)}))
    flows = [lab.join(n // 2, 0) for n in range(4)]
    watched = {"listener": [None], "source": [0, 1], "flow": flows}[level]
    for whose in watched:
        lab.watch(speed(10e6), whose)
    for _ in range(5):
        for demand in (1e6, 30e6, 0.0):  # below, beyond, and a rest
            lab.speeds = dict.fromkeys(flows, demand * BITS)
            lab.run(0.3)
    assert lab.leased > 200
    assert lab.dropped


@pytest.mark.parametrize("level", ["listener", "source", "flow"])
def test_who_stays_below_a_ceiling_loses_nothing_to_what_was_booked_late(level: str) -> None:
    lab = Lab(ShapeRates(**{level: speed(10e6)}))
    flow = lab.join("one", 0.95 * 10e6 * BITS)
    lab.run(10)
    assert not lab.dropped
    lab.speeds[flow] = 0.5 * 10e6 * BITS
    lab.run(1)
    lab.passed.clear()
    lab.leased = 0
    lab.run(5)
    assert not lab.dropped
    assert lab.leased > 0.7 * lab.passed[flow] / SIZE


@pytest.mark.parametrize("level", ["listener", "source", "flow"])
def test_what_was_free_is_not_charged_to_a_ceiling_that_comes_later(level: str) -> None:
    """A MiB takes two minutes at 64 kbit/s; it passed when that did not hold."""
    policer = Policer(ShapeRates(), BEGIN)
    flow = policer.join("one", BEGIN)
    assert policer.passes(flow, 100, BEGIN) is None
    assert by_lease(flow, 1_000_000)
    policer.become(ShapeRates(**{level: speed(64e3)}))
    policer.passes(flow, 100, BEGIN)  # it may find the bucket empty
    assert policer.passes(flow, 100, BEGIN + 1) is None


def test_what_passed_by_a_lease_is_not_forgotten() -> None:
    """Neither by other ceilings, nor when the last flow of a source goes and comes again."""
    rate = speed(10e6)
    policer = Policer(ShapeRates(listener=rate, source=rate), BEGIN)
    flow = policer.join("one", BEGIN)
    policer.passes(flow, 1, BEGIN)
    assert by_lease(flow, 5000)
    policer.become(ShapeRates(listener=rate, source=rate))
    assert not by_lease(flow, 1)
    policer.leave(flow)
    soon = BEGIN + 0.001
    policer.leave(policer.join("other", soon))
    again = policer.join("one", soon)
    assert again.source is flow.source
    policer.passes(again, 0, soon)
    debt = pytest.approx(5000 / rate.per_second)  # as if it had passed now
    assert policer._full_at - soon == debt
    assert again.source.full_at - soon == debt


def test_another_ceiling_of_a_flow_ends_its_lease() -> None:
    policer = Policer(ShapeRates(), BEGIN)
    flow = policer.join("one", BEGIN)
    policer.passes(flow, 1, BEGIN)
    assert by_lease(flow, 1000)
    flow.rate = speed(1e6)
    assert not by_lease(flow, 1)
    policer.passes(flow, 0, BEGIN)
    assert flow.full_at - BEGIN == pytest.approx(1000 / speed(1e6).per_second)
