"""One reading of everything that a scrape tells, and how samples are read from it.

Each function here returns samples, or what reads them: for one line of the catalogue, from plain
values that were copied at one moment. They own no number and ask nobody.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.core.address import Transport
from proxy.core.address_rows import is_up
from proxy.core.condition import Condition, Health
from proxy.core.flow import CloseReason
from proxy.observe.processes import cpu_seconds, memory_bytes

if TYPE_CHECKING:
    from proxy.core.counters import EndpointSnapshot, ListenerSnapshot
    from proxy.core.histogram import HistogramSnapshot
    from proxy.core.queue_counters import QueueSnapshot
    from proxy.engine.port import CheckRow, NameRow, RelayCounters, RelayStatus, ReloadRecord

EVERY: Final = tuple(Transport)

Labels: TypeAlias = tuple[str, ...]
Samples: TypeAlias = "Iterable[tuple[Labels, float | HistogramSnapshot]]"


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that one scrape tells, taken at one moment.

    Attributes:
        wall_offset: Unix time less monotonic time, in seconds.

    """

    counters: RelayCounters
    status: RelayStatus
    admin_refused: int
    reload: ReloadRecord
    wall_offset: float
    names: Sequence[NameRow] = ()
    checks: Sequence[CheckRow] = ()

    @property
    def has_twins(self) -> bool:
        """Whether two sets of counters belong to one listener."""
        rows = self.counters["listeners"]
        return len({row["listener"] for row in rows}) < len(rows)


def whole(read: Callable[[Reading], float]) -> Callable[[Reading], Samples]:
    """One sample without labels."""
    return lambda reading: [((), read(reading))]


def listener(
    read: Callable[[ListenerSnapshot], float | HistogramSnapshot],
    only: Collection[Transport] = EVERY,
) -> Callable[[Reading], Samples]:
    """One sample a listener, or a listener of these transports."""
    return lambda reading: (((row["listener"],), read(row)) for row in _listeners(reading, only))


def listener_by(
    read: Callable[[ListenerSnapshot], Mapping[str, float | HistogramSnapshot]],
    only: Collection[Transport] = EVERY,
) -> Callable[[Reading], Samples]:
    """One sample a listener and word of a closed enum."""
    return lambda reading: (
        ((row["listener"], word), value)
        for row in _listeners(reading, only)
        for word, value in read(row).items()
    )


def _listeners(reading: Reading, only: Collection[Transport]) -> Iterator[ListenerSnapshot]:
    for row in reading.counters["listeners"]:
        if row["transport"] in only:
            yield row


def endpoint(read: Callable[[EndpointSnapshot], float]) -> Callable[[Reading], Samples]:
    """One sample an endpoint."""
    return lambda reading: (
        ((row["upstream"], row["endpoint"]), read(row)) for row in reading.counters["endpoints"]
    )


def queue(read: Callable[[QueueSnapshot], float]) -> Callable[[Reading], Samples]:
    """One sample an upstream in which flows may wait."""
    return lambda reading: (((row["upstream"],), read(row)) for row in reading.counters["queues"])


def routed(reading: Reading) -> Samples:
    """Flows by the route they took, of listeners that count them."""
    return (((row["listener"], row["route"]), row["flows"]) for row in reading.counters["routes"])


def name(read: Callable[[NameRow], float]) -> Callable[[Reading], Samples]:
    """One sample an endpoint that has a name."""
    return lambda reading: [
        ((row["upstream"], row["endpoint"]), read(row)) for row in reading.names
    ]


def name_lookups(reading: Reading) -> Samples:
    """Look-ups of names, by result."""
    return (
        ((row["upstream"], row["endpoint"], result), count)
        for row in reading.names
        for result, count in row["lookups"].items()
    )


def up(reading: Reading) -> Samples:
    """Whether endpoints are up; see ``is_up``."""
    shown: dict[Labels, set[str]] = {}
    for row in reading.checks:
        shown.setdefault((row["upstream"], row["endpoint"]), set()).add(row["health"])
    for endpoint in reading.counters["endpoints"]:
        labels = (endpoint["upstream"], endpoint["endpoint"])
        yield labels, int(is_up(endpoint, shown.get(labels, ())))


def check_results(reading: Reading) -> Samples:
    """Results of checks, those of all addresses of an endpoint together."""
    counts: Counter[Labels] = Counter()
    for row in reading.checks:
        for result, count in row["results"].items():
            counts[row["upstream"], row["endpoint"], result] += count
    return counts.items()


def check_duration(reading: Reading) -> Samples:
    """How long the last checks took, of the address that took longest."""
    longest: dict[Labels, float] = {}
    for row in reading.checks:
        labels = (row["upstream"], row["endpoint"])
        longest[labels] = max(longest.get(labels, 0.0), row["duration"])
    return longest.items()


def check_addresses(reading: Reading) -> Samples:
    """Addresses of an endpoint by health."""
    counts: Counter[Labels] = Counter()
    for row in reading.checks:
        for health in Health:
            counts[row["upstream"], row["endpoint"], health.value] += row["health"] == health
    return counts.items()


def live(reading: Reading) -> Samples:
    """Live flows of listeners, by state."""
    return (
        ((row["listener"], row["transport"], state), count)
        for row in reading.counters["listeners"]
        for state, count in row["live"].items()
    )


def buffered(row: ListenerSnapshot) -> dict[str, int]:
    """What waits in our buffers, by direction."""
    return {"original": row["original"]["buffered"], "reply": row["reply"]["buffered"]}


def unsent(row: ListenerSnapshot) -> dict[str, int]:
    """What had not arrived when flows were cut, by direction."""
    return {"original": row["original"]["unsent"], "reply": row["reply"]["unsent"]}


def flow_bytes(row: ListenerSnapshot) -> dict[str, HistogramSnapshot]:
    """Bytes of flows, by direction."""
    return {"original": row["original"]["flow_bytes"], "reply": row["reply"]["flow_bytes"]}


def connect_failures(reading: Reading) -> Samples:
    """Failed connection attempts, by cause."""
    return (
        ((row["upstream"], row["endpoint"], reason), count)
        for row in reading.counters["endpoints"]
        for reason, count in row["failures"].items()
    )


def conditions(reading: Reading) -> Samples:
    """Addresses of endpoints, by condition."""
    for row in reading.counters["endpoints"]:
        found = Counter(each["condition"] for each in row["addresses"])
        for condition in Condition:
            yield (row["upstream"], row["endpoint"], condition.value), found[condition.value]


def weights(reading: Reading) -> Samples:
    """The parts of new flows that endpoints have, those of all their addresses together."""
    for row in reading.counters["endpoints"]:
        parts = (each["weight"] * each["share"] / 100 for each in row["addresses"])
        yield (row["upstream"], row["endpoint"]), sum(parts)


def ceilings(reading: Reading) -> Samples:
    """Flows that endpoints may have at once, of those that have a ceiling."""
    for row in reading.counters["endpoints"]:
        found = [each["ceiling"] for each in row["addresses"] if each["ceiling"] is not None]
        if found:
            yield (row["upstream"], row["endpoint"]), sum(found)


def changes(reading: Reading) -> Samples:
    """When some address of an endpoint last came into another condition."""
    for row in reading.counters["endpoints"]:
        moments = (each["since"] or 0 for each in row["addresses"])
        yield (row["upstream"], row["endpoint"]), max(moments, default=0)


def last_checks(reading: Reading) -> Samples:
    """When the last checks ended, of the address that was checked longest ago."""
    oldest: dict[Labels, float] = {}
    for row in reading.checks:
        labels = (row["upstream"], row["endpoint"])
        oldest[labels] = min(oldest.get(labels, inf), row["last"] or 0)
    return oldest.items()


def build(reading: Reading) -> Samples:
    """The running version, and that of Python."""
    return [((reading.status["version"], platform.python_version()), 1)]


def evictions(reading: Reading) -> float:
    """Flows that went for others."""
    return sum(row["closed"][CloseReason.EVICTED] for row in reading.counters["listeners"])


def silent_workers(reading: Reading) -> float:
    """Workers that do not answer."""
    return sum(row["silent"] is not None for row in reading.status["workers"])


def _pids(reading: Reading) -> list[int]:
    return [row["pid"] for row in reading.status["workers"]]


def cpu(reading: Reading) -> Samples:
    """CPU time of all our processes."""
    return [((), cpu_seconds(_pids(reading)))]


def memory(field: int) -> Callable[[Reading], Samples]:
    """Memory of all our processes: this field of ``statm``."""
    return whole(lambda reading: memory_bytes(_pids(reading), field))
