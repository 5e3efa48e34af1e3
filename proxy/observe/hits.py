"""What was refused, dropped or struck by a limit, in the log, at a bounded rate.

Whoever floods a listener must not flood the log as well. So nothing is logged when it happens: the
counters are read every ``EVERY`` seconds, and a listener gets one line of each kind that says by
how much they have grown since the last reading. The relay pays for a reading and for nothing else,
and several workers are one, as everywhere behind the port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import structlog
import trio

if TYPE_CHECKING:
    from proxy.core.counters import ListenerSnapshot
    from proxy.engine.port import RelayPort

EVERY: Final = 10.0
"""Seconds between two readings: at most so often a listener has a line of a kind."""

Counts: TypeAlias = dict[str, dict[str, int]]
"""By what was counted, and the word of its enum."""

log = structlog.get_logger()


async def log_hits(port: RelayPort, every: float = EVERY) -> None:
    """Write what listeners kept out, until cancelled."""
    before = {_key(row): row for row in (await port.counters())["listeners"]}
    read = trio.current_time()
    while True:
        await trio.sleep(every)
        rows = (await port.counters())["listeners"]
        now = trio.current_time()
        for row in rows:
            _tell(row, grown(before.get(_key(row)), row), round(now - read, 1))
        before |= {_key(row): row for row in rows}
        read = now


def grown(before: ListenerSnapshot | None, row: ListenerSnapshot) -> Counts:
    """By how much the counts of a listener have grown; what has not is left out."""
    return {
        "refused": _more(before["refused"] if before else {}, row["refused"]),
        "hits": _more(before["hits"] if before else {}, row["hits"]),
        "dropped": _more(before["dropped"] if before else {}, row["dropped"]),
        "dry_run_hits": _more(before["dry_run_hits"] if before else {}, row["dry_run_hits"]),
    }


def _more(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    return {
        word: count - before.get(word, 0)
        for word, count in now.items()
        if count > before.get(word, 0)
    }


def _tell(row: ListenerSnapshot, counts: Counts, seconds: float) -> None:
    of = {"listener": row["listener"], "since": seconds}
    hits = {kind: counts[kind] for kind in ("hits", "dry_run_hits") if counts[kind]}
    if "hits" in hits:
        log.warning("limits_hit", **of, **hits)
    elif hits:
        log.info("limits_hit", **of, **hits)
    if counts["refused"]:
        log.warning("flows_refused", **of, refused=counts["refused"])
    if counts["dropped"]:
        log.warning("datagrams_dropped", **of, dropped=counts["dropped"])


def _key(row: ListenerSnapshot) -> tuple[str, str]:
    return row["listener"], row["transport"]
