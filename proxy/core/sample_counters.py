"""What the samples of a listener's flows tell together: running sums, as everywhere.

A sample stands for the flow and the time since it was sampled before. So round trips are counted
once a sample, and the seconds of waiting are those of all flows, however seldom each is looked at.
"""

from __future__ import annotations

from typing import TypedDict

from proxy.core.histogram import RTT_BOUNDS, Histogram, HistogramSnapshot, add_histograms
from proxy.core.sample import Culprit, Waits


class SampleCounters:
    """The sums of one listener.

    Attributes:
        taken: samples.
        client: round trips to clients, in seconds.
        endpoint: round trips to endpoints.
        client_retransmits: segments sent to clients again.
        endpoint_retransmits: segments sent to endpoints again.
        waits: seconds that flows waited for each.

    """

    __slots__ = (
        "client",
        "client_retransmits",
        "endpoint",
        "endpoint_retransmits",
        "taken",
        "waits",
    )

    def __init__(self) -> None:
        self.taken = 0
        self.client = Histogram(RTT_BOUNDS)
        self.endpoint = Histogram(RTT_BOUNDS)
        self.client_retransmits = 0
        self.endpoint_retransmits = 0
        self.waits = Waits()

    def add(self, waits: Waits) -> None:
        """Add who a flow waited for since its sample before."""
        was = self.waits
        self.waits = Waits(
            was.client + waits.client,
            was.endpoint + waits.endpoint,
            was.proxy + waits.proxy,
            was.limit + waits.limit,
            was.nobody + waits.nobody,
        )

    def snapshot(self) -> SamplesSnapshot:
        """Return a copy as plain values."""
        return {
            "taken": self.taken,
            "rtt": {"client": self.client.snapshot(), "endpoint": self.endpoint.snapshot()},
            "retransmits": {
                "client": self.client_retransmits,
                "endpoint": self.endpoint_retransmits,
            },
            "waits": self.waits._asdict(),
        }


class SamplesSnapshot(TypedDict):
    """``SampleCounters`` as plain values, by leg, and by whoever was waited for."""

    taken: int
    rtt: dict[str, HistogramSnapshot]
    retransmits: dict[str, int]
    waits: dict[str, float]


def add_samples(one: SamplesSnapshot, other: SamplesSnapshot) -> SamplesSnapshot:
    """Add what two workers found."""
    return {
        "taken": one["taken"] + other["taken"],
        "rtt": {leg: add_histograms(one["rtt"][leg], other["rtt"][leg]) for leg in one["rtt"]},
        "retransmits": {
            leg: one["retransmits"][leg] + other["retransmits"][leg] for leg in one["retransmits"]
        },
        "waits": {who: one["waits"][who] + other["waits"][who] for who in one["waits"]},
    }


def slowed_by(samples: SamplesSnapshot) -> Culprit | None:
    """Who makes the flows of a listener as slow as they are, since the beginning."""
    return Waits(**samples["waits"]).culprit
