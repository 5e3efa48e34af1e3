"""What sockpair tells of a crowd's flows must be the same before and after its process has changed.

The table has the same rows: id, socket pairs, time of opening; bytes and states only go on. No
counter goes backwards, and none says that a flow was opened or closed.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from tests.e2e.subject import Metrics, Row, Sockpair
from tests.handover.crowd import Place
from tests.handover.kinds import DATAGRAMS, STREAMS
from tests.handover.streams import HEADER
from tests.handover.told import Account

SAME_TIME: Final = 0.05
"""Seconds that two processes may see the wall clock apart."""

ANSWERS: Final = 10
"""A busy machine may need longer for thousands of rows than an answer may take."""

COURSE: Final = {
    state: place
    for place, state in enumerate(
        ["connecting", "unreplied", "established", "assured", "client_closed", "endpoint_closed"]
    )
}
"""States in the order in which a flow may have them; it may not go back."""

OF_A_PROCESS: Final = ("process_", "python_")
COUNTER: Final = re.compile(r"^(\w+(?:_total|_count|_sum|_bucket))(\{.*\})? (\S+)$", re.MULTILINE)


Rows: TypeAlias = dict[int, Row]


@dataclass(frozen=True)
class Reading:
    """What was told at one time.

    Attributes:
        rows: by group, of those that were listed.

    """

    rows: dict[str, Rows]
    metrics: Metrics
    counters: dict[str, float]


def is_lasting(place: Place) -> bool:
    """Whether the flows of a group live as long as the crowd."""
    kind = place["kind"]
    return not (STREAMS[kind].fresh if kind in STREAMS else DATAGRAMS[kind].fresh)


async def read(sockpair: Sockpair, listed: Iterable[str]) -> Reading:
    """Read the metrics, and the rows of these groups."""
    metrics = await sockpair.metrics()
    rows = {name: await _listing(sockpair, name) for name in listed}
    return Reading(rows, metrics, counters_of(metrics.text))


async def _listing(sockpair: Sockpair, name: str) -> Rows:
    """All rows; asked for again where the answer broke off, as it does when it takes too long."""
    for _ in range(ANSWERS - 1):
        with suppress(http.client.IncompleteRead):
            return {row["id"]: row for row in await sockpair.flows(limit=0, listener=name)}
    return {row["id"]: row for row in await sockpair.flows(limit=0, listener=name)}


def counters_of(text: str) -> dict[str, float]:
    """What of a scrape must never go back, by name and labels."""
    return {
        f"{name}{labels}": float(value)
        for name, labels, value in COUNTER.findall(text)
        if not name.startswith(OF_A_PROCESS)
    }


def compare(before: Rows, after: Rows) -> list[str]:
    """What of the rows of a group has changed that must not; one line each."""
    faults = [f"{_of(before[flow])} is not in the table" for flow in before.keys() - after.keys()]
    faults += [f"{_of(after[flow])} is new in the table" for flow in after.keys() - before.keys()]
    for flow in before.keys() & after.keys():
        faults += _changes(before[flow], after[flow])
    return faults


def gone_back(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Which counters are less than they were, or are not told any more."""
    faults = []
    for name, value in before.items():
        now = after.get(name)
        if now is None:
            faults.append(f"{name} is gone; it was {value:g}")
        elif now < value - 1e-6:
            faults.append(f"{name} went back from {value:g} to {now:g}")
    return faults


def _of(row: Row) -> str:
    return f"flow {row['id']}, {row['listener']} {row['state']} {row['client']['remote']},"


def _changes(before: Row, after: Row) -> list[str]:
    """What of one row has changed that must not."""
    who = f"flow {before['id']}, {before['listener']}"
    faults = [
        f"{who}: {key} was {before[key]}, is {after[key]}"
        for key in ("listener", "upstream", "transport", "client", "endpoint", "source")
        if before[key] != after[key]
    ]
    if abs(before["opened"] - after["opened"]) > SAME_TIME:
        faults.append(f"{who}: opened was {before['opened']}, is {after['opened']}")
    for direction in ("original", "reply"):
        for what, value in before[direction].items():
            if value is not None and after[direction][what] < value:
                faults.append(
                    f"{who}: {direction} {what} went back to {after[direction][what]} from {value}"
                )
    if COURSE[after["state"]] < COURSE[before["state"]]:
        faults.append(f"{who}: its state was {before['state']}, is {after['state']}")
    return faults


def count(reading: Reading, groups: Mapping[str, Place]) -> list[str]:
    """Where the metrics do not say that all flows of all groups live, and that no other did."""
    faults = []
    for name, place in groups.items():
        if is_lasting(place):
            metrics, lost = reading.metrics, lost_of(reading.metrics, name)
            wanted = place["count"]
            said = {
                "opened": metrics.sum("sockpair_flows_opened_total", listener=name),
                "live": metrics.sum("sockpair_flows", listener=name),
                "closed": metrics.sum("sockpair_flows_closed_total", listener=name),
            }
            if said != {"opened": wanted, "live": wanted - lost, "closed": lost}:
                faults.append(f"{name}: {wanted} flows, {lost} lost; the metrics say {said}")
    return faults


def lost_of(metrics: Metrics, name: str) -> int:
    """Flows of a group that a killed worker took along, as sockpair has counted them."""
    if "sockpair_flows_lost_total" not in metrics.text:
        return 0
    return metrics.sum("sockpair_flows_lost_total", listener=name)


def balance(
    metrics: Metrics, groups: Mapping[str, Place], accounts: Mapping[str, Mapping[int, Account]]
) -> list[str]:
    """Where, when all has ended, the metrics do not have the bytes that the crowd has counted."""
    faults = []
    for name, place in groups.items():
        if place["kind"] in STREAMS:
            clients, endpoints = (
                [each for each in accounts[side].values() if each["group"] == name]
                for side in ("clients", "endpoints")
            )
            to_endpoint = sum(each["sent"] for each in clients) + HEADER.size * len(clients)
            to_client = sum(each["sent"] for each in endpoints)
            for who, wanted in (
                ("client_received", to_endpoint),
                ("endpoint_sent", to_endpoint),
                ("endpoint_received", to_client),
                ("client_sent", to_client),
            ):
                seen = metrics.sum(f"sockpair_{who}_bytes_total", listener=name)
                if seen != wanted:
                    faults.append(f"{name}: {seen} bytes {who}, not {wanted}")
            finished = metrics.by("sockpair_flows_closed_total", "reason", listener=name)
            if finished["finished"] != sum(each["done"] for each in clients):
                faults.append(f"{name}: flows ended so: {dict(+finished)}")
    return faults


def dropped(groups: Mapping[str, Place]) -> dict[str, int]:
    """Datagrams for which the kernel had no room, by group: at listeners, and anywhere else."""
    ports = {place[end]: name for name, place in groups.items() for end in ("listener", "endpoint")}  # type: ignore[literal-required]
    found: dict[str, int] = {}
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        _, local, remote, *_, drops = line.split()
        for address in (local, remote):
            name = ports.get(int(address.rpartition(":")[2], 16))
            if name is not None and int(drops):
                found[name] = found.get(name, 0) + int(drops)
                break
    return found
