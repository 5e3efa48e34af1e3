"""A flow's sample as people and programs read it: seconds, bytes a second, and words."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypedDict

from proxy.core.sample import NO_INFO, UNKNOWN

if TYPE_CHECKING:
    from proxy.core.sample import Insight, Sample, Stalled, TcpInfo

STILLNESSES: Final = 64
"""Ways to have stood still that are kept as text: most flows never have."""


class LegRow(TypedDict):
    """What the kernel told of one socket; see tcp(7)."""

    rtt: float
    min_rtt: float | None
    retransmits: int
    unacked: int
    delivery_rate: int
    busy: float
    rwnd_limited: float
    sndbuf_limited: float


class LegsRow(TypedDict):
    """Both sockets, and when it was (Unix seconds); None for one that is not TCP."""

    sampled: float
    client: LegRow | None
    endpoint: LegRow | None


class DirectionStalledRow(TypedDict):
    """Seconds: the other side took no more; a limit held it back."""

    blocked: float
    held: float


class StalledRow(TypedDict):
    """How both directions stood still."""

    original: DirectionStalledRow
    reply: DirectionStalledRow


class InsightRow(TypedDict):
    """The last keys of a flow's row; all None where nothing is known."""

    slowed_by: str | None
    legs: LegsRow | None
    stalled: StalledRow | None


def insight_row(insight: Insight | None, wall_offset: float) -> InsightRow:
    """Describe what is known of how a flow got on.

    Args:
        insight: of the flow.
        wall_offset: Unix time less monotonic time, in seconds.

    """
    if insight is None:
        return {"slowed_by": None, "legs": None, "stalled": None}
    sample = insight.sample
    return {
        "slowed_by": None if sample is None else sample.waits.culprit,
        "legs": None if sample is None else _legs(sample, wall_offset),
        "stalled": {"original": _stalled(insight.original), "reply": _stalled(insight.reply)},
    }


def _legs(sample: Sample, wall_offset: float) -> LegsRow:
    return {
        "sampled": round(sample.when + wall_offset, 6),
        "client": _leg(sample.client),
        "endpoint": _leg(sample.endpoint),
    }


def _leg(info: TcpInfo) -> LegRow | None:
    if info == NO_INFO:
        return None
    return {
        "rtt": info.rtt / 1e6,
        "min_rtt": None if info.min_rtt == UNKNOWN else info.min_rtt / 1e6,
        "retransmits": info.retransmits,
        "unacked": info.unacked,
        "delivery_rate": info.delivery_rate,
        "busy": info.busy / 1e6,
        "rwnd_limited": info.rwnd_limited / 1e6,
        "sndbuf_limited": info.sndbuf_limited / 1e6,
    }


def _stalled(stalled: Stalled) -> DirectionStalledRow:
    return {"blocked": round(stalled.blocked, 6), "held": round(stalled.held, 6)}


def insight_json(insight: Insight, wall_offset: float) -> str:
    """Write the same as further keys of a row in JSON, each after a comma.

    A row in a listing costs three times as much if this is left to the encoder. Of microseconds
    the exponent makes seconds: the same number as a division does, at a third of what it costs to
    find the shortest text for that.
    """
    sample, slowed, legs = insight.sample, "null", "null"
    if sample is not None:
        culprit = sample.waits.culprit
        slowed = "null" if culprit is None else f'"{culprit}"'
        legs = (
            f'{{"sampled":{sample.when + wall_offset:.6f}'
            f',"client":{_leg_json(sample.client)},"endpoint":{_leg_json(sample.endpoint)}}}'
        )
    return (
        f',"slowed_by":{slowed},"legs":{legs}'
        f',"stalled":{{"original":{_stalled_json(insight.original)}'
        f',"reply":{_stalled_json(insight.reply)}}}'
    )


def _leg_json(info: TcpInfo) -> str:
    if info == NO_INFO:
        return "null"
    unacked, _, _, rtt, retransmits, min_rtt, rate, busy, rwnd_limited, sndbuf_limited = info
    return (
        f'{{"rtt":{rtt}e-6,"min_rtt":{"null" if min_rtt == UNKNOWN else f"{min_rtt}e-6"}'
        f',"retransmits":{retransmits},"unacked":{unacked},"delivery_rate":{rate}'
        f',"busy":{busy}e-6,"rwnd_limited":{rwnd_limited}e-6'
        f',"sndbuf_limited":{sndbuf_limited}e-6}}'
    )


@lru_cache(maxsize=STILLNESSES)
def _stalled_json(stalled: Stalled) -> str:
    return f'{{"blocked":{stalled.blocked:.6f},"held":{stalled.held:.6f}}}'
