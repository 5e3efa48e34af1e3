"""Who a flow waited for: against a flow that is played moment by moment."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.sample import (
    HALF_LIFE,
    NO_WAITS,
    PATIENCE,
    PAUSE,
    STILL,
    Culprit,
    Sample,
    Stalled,
    TcpInfo,
    Waits,
    retimed,
    under_way,
    unpack,
    waits_between,
)

TICK = 0.01
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**63)
LIFE = st.integers(0, 2**53)  # microseconds; that is 285 years
SECONDS = st.floats(0, 1e6)

infos = st.builds(TcpInfo, U32, st.just(0), st.just(0), U32, U32, U32, U64, LIFE, LIFE, LIFE)
stalls = st.builds(Stalled, SECONDS, SECONDS)
waits = st.builds(Waits, *[st.floats(0, 1000, width=32)] * 5)
samples = st.builds(Sample, SECONDS, U64, U64, stalls, stalls, infos, infos, waits)


@given(samples)
def test_what_is_packed_comes_back(sample: Sample) -> None:
    assert unpack(sample.pack()) == sample
    expected = (sample.when, sample.client.unacked, sample.endpoint.unacked)
    assert under_way(sample.pack()) == expected
    assert len(sample.pack()) < 200


@dataclass
class Play:
    """A flow whose moments are each spent in one way; counts as the kernel and we would."""

    spent: dict[str, int] = field(default_factory=dict)

    def pass_time(self, way: str) -> None:
        self.spent[way] = self.spent.get(way, 0) + 1

    def seconds(self, *ways: str) -> float:
        return sum(self.spent.get(way, 0) for way in ways) * TICK

    def sample(self) -> Sample:
        """Everything that moves does so towards the client and back."""
        now = sum(self.spent.values()) * TICK
        return Sample(
            now,
            0,
            0,
            Stalled(self.seconds("endpoint reads slowly"), self.seconds("limit")),
            Stalled(self.seconds("client reads slowly"), 0.0),
            self._info("client"),
            self._info("endpoint"),
        )

    def _info(self, side: str) -> TcpInfo:
        busy = self.seconds(f"path to {side}", f"window of {side}", f"buffer to {side}")
        return TcpInfo(
            busy=round(busy * 1e6),
            rwnd_limited=round(self.seconds(f"window of {side}") * 1e6),
            sndbuf_limited=round(self.seconds(f"buffer to {side}") * 1e6),
        )


WAYS = {
    "endpoint reads slowly": Culprit.ENDPOINT,
    "path to endpoint": Culprit.ENDPOINT,
    "client reads slowly": Culprit.CLIENT,
    "path to client": Culprit.CLIENT,
    "window of client": Culprit.CLIENT,
    "limit": Culprit.LIMIT,
    "buffer to client": Culprit.PROXY,
    "idle": None,
}


@given(st.lists(st.sampled_from([*WAYS]), min_size=1, max_size=900))
@example(["idle"] * 10)
def test_the_verdict_is_that_of_a_witness(moments: list[str]) -> None:
    play = Play()
    before = play.sample()
    for way in moments:
        play.pass_time(way)
    found = waits_between(before, play.sample(), behind=False)
    # blocked and busy are two signs of one thing: of those of a side, the longer one counts
    seen = {
        Culprit.ENDPOINT: max(
            play.seconds("endpoint reads slowly"), play.seconds("path to endpoint")
        ),
        Culprit.CLIENT: max(
            play.seconds("client reads slowly") - play.seconds("buffer to client"),
            play.seconds("path to client", "window of client"),
        ),
        Culprit.LIMIT: play.seconds("limit"),
        Culprit.PROXY: play.seconds("buffer to client"),
    }
    for party, seconds in seen.items():
        assert getattr(found, party) == pytest.approx(seconds, abs=1e-5)
    longest = max(seen.values())
    idle = len(moments) * TICK - longest
    if longest > 0.1 * (longest + idle) + 1e-5:
        assert found.culprit is not None
        assert seen[found.culprit] == pytest.approx(longest)
    elif longest < 0.1 * (longest + idle) - 1e-5:
        assert found.culprit is None


@given(samples, samples, st.booleans())
def test_nobody_is_waited_for_longer_than_it_took(one: Sample, other: Sample, behind: bool) -> None:
    found = waits_between(one, other, behind=behind)
    seconds = max(other.when - one.when, 0.0)
    assert all(0 <= wait <= seconds + 1e-9 for wait in found)
    assert seconds <= sum(found) + 1e-9


def moved(
    client: TcpInfo,
    *,
    before: tuple[int, int],
    after: tuple[int, int],
    endpoint: int = 0,
    unacked: int = 0,
) -> Waits:
    """A second in which so much moved and nothing stood still."""
    one = Sample(0.0, *before, STILL, STILL, TcpInfo(), TcpInfo())
    info = TcpInfo(unacked, last_received=endpoint)
    return waits_between(one, Sample(1.0, *after, STILL, STILL, client, info), behind=False)


ASKED = TcpInfo(last_received=100, last_sent=300)
ANSWERED = TcpInfo(last_received=300, last_sent=100)
TIED = TcpInfo(last_received=100, last_sent=100)
PAUSED = TcpInfo(last_received=int(PAUSE * 1000), last_sent=int(PAUSE * 1000))
GIVEN_UP = TcpInfo(last_received=int(PATIENCE * 1000), last_sent=int(PATIENCE * 1000) + 1)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (moved(ASKED, before=(5, 5), after=(9, 9)), Waits(endpoint=1.0)),
        (moved(ANSWERED, before=(5, 5), after=(9, 9)), Waits(client=1.0)),
        (moved(ASKED, before=(5, 5), after=(9, 5)), Waits(endpoint=0.1, nobody=0.9)),
        (moved(ASKED, before=(5, 5), after=(5, 5)), Waits(endpoint=1.0)),
        (moved(ANSWERED, before=(5, 5), after=(5, 5)), Waits(client=1.0)),
        (moved(PAUSED, before=(5, 5), after=(5, 5)), Waits(nobody=1.0)),
        (moved(GIVEN_UP, before=(5, 5), after=(5, 5)), Waits(nobody=1.0)),
        # in the same tick
        (moved(TIED, before=(5, 5), after=(9, 9)), Waits(nobody=1.0)),
        (moved(TIED._replace(unacked=1), before=(5, 5), after=(9, 9)), Waits(client=1.0)),
        (moved(TIED, before=(5, 5), after=(9, 9), unacked=1), Waits(endpoint=1.0)),
        # one that only uploads, and one that only downloads
        (moved(ASKED, before=(5, 0), after=(9, 0)), Waits(client=1.0)),
        (moved(PAUSED, before=(5, 0), after=(9, 0)), Waits(nobody=1.0)),
        (moved(ANSWERED, before=(5, 5), after=(5, 9)), Waits(endpoint=1.0)),
        (moved(ANSWERED, before=(5, 5), after=(5, 9), endpoint=1000), Waits(nobody=1.0)),
        (moved(ANSWERED, before=(0, 0), after=(0, 0)), Waits(nobody=1.0)),
    ],
)
def test_who_was_next_to_speak_is_waited_for(found: Waits, expected: Waits) -> None:
    assert found == pytest.approx(expected)


def test_time_that_shall_not_count_does_not() -> None:
    sample = Sample(1.0, 7, 8, Stalled(1.0, 2.0), STILL, ASKED, TcpInfo(), Waits(client=4.0))
    packed = sample.pack()
    assert unpack(retimed(packed, 9.0)) == unpack(packed)._replace(when=9.0)


def test_bytes_that_we_leave_lying_are_our_fault() -> None:
    busy = TcpInfo(busy=900_000)
    before = Sample(0.0, 0, 0, Stalled(), Stalled(), TcpInfo(), TcpInfo())
    after = Sample(1.0, 10**9, 0, Stalled(), Stalled(), TcpInfo(), busy)
    assert waits_between(before, after, behind=True).culprit is Culprit.PROXY
    assert waits_between(before, after, behind=False).culprit is Culprit.ENDPOINT


def test_what_was_long_ago_counts_less() -> None:
    long_ago = Waits(client=10.0).then(NO_WAITS, HALF_LIFE)
    assert long_ago.client == pytest.approx(5.0)
    assert long_ago.then(Waits(endpoint=6.0), 0.0).culprit is Culprit.ENDPOINT


def test_time_that_stands_still_tells_nothing() -> None:
    sample = Sample(1.0, 0, 0, Stalled(), Stalled(), TcpInfo(), TcpInfo())
    assert waits_between(sample, sample, behind=True) == NO_WAITS
    assert NO_WAITS.culprit is None
