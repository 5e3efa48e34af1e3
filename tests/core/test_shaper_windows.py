"""Streams that run dry for a moment after each window: TCP's, when its receiver is read in turns.

Whoever keeps a single stream is out of line again and again, though he could take all he is due;
beside others who have many, and so are always in line.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count

import pytest

from proxy.core.ceiling import ShapeRates
from proxy.core.share import Share
from tests.core.test_shaper import Lab, speed

WINDOW = 64 * 1024


class Windows(Lab):
    """A lab in which a stream has a window of bytes, and the next one a moment after that.

    Args:
        bits: a second, of the listener.
        refill: seconds of the moment.

    """

    def __init__(self, bits: float, refill: float) -> None:
        super().__init__(ShapeRates(listener=speed(bits)), late=0.0)
        self.refill = refill
        self.windows: dict[Share, int] = {}
        self.there: dict[Share, int] = {}
        self.coming: list[tuple[float, int, Share]] = []
        self.numbers = count()

    def enter(self, source: str, weight: float = 1, window: int = WINDOW) -> None:
        share = self.join(source, weight, hungry=False)
        self.windows[share] = window
        self.feed(share)

    def move(self, share: Share, grant: int) -> None:
        there = self.there[share]
        size = min(grant, there)
        self.moved[share] += size
        self.there[share] = there - size
        self.shaper.spent(share, size, self.now)
        if size == there:
            heappush(self.coming, (self.now + self.refill, next(self.numbers), share))

    def feed(self, share: Share) -> None:
        self.there[share] = self.windows[share]
        while self.there[share] and (grant := self.shaper.ask(share, self.now)):
            self.move(share, grant)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            arrives = self.coming[0][0] if self.coming else end
            at = max(self.now, min(self.shaper.next_at(), arrives))
            if at >= end:
                break
            self.now = at
            while self.coming and self.coming[0][0] <= self.now:
                self.feed(heappop(self.coming)[2])
            if self.shaper.next_at() <= self.now:
                self.serve()
        self.now = end


@pytest.mark.parametrize("streams", [1, 10])
@pytest.mark.parametrize(("bits", "refill"), [(10e6, 0.002), (100e6, 0.0002), (100e6, 0.002)])
def test_a_heavy_source_with_one_stream_has_its_weight(
    bits: float, refill: float, streams: int
) -> None:
    lab = Windows(bits, refill)
    lab.enter("heavy", weight=2)
    for peer in ("one", "other"):
        for _ in range(streams):
            lab.enter(peer)
    lab.run(1)
    lab.moved.clear()
    lab.run(8)
    peers = lab.of_source("one") + lab.of_source("other")
    assert 2 * lab.of_source("heavy") / peers == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("streams", [1, 10])
def test_who_runs_dry_with_each_piece_has_no_more_than_its_part(streams: int) -> None:
    """What it is forgiven is a grant at most, and is not forgiven again."""
    lab = Windows(100e6, 0.0002)
    lab.enter("dry", window=7_000)
    for _ in range(streams):
        lab.enter("wet", window=1 << 40)
    lab.run(1)
    lab.moved.clear()
    lab.run(8)
    assert 0 < lab.of_source("dry") <= 1.01 * lab.of_source("wet")
