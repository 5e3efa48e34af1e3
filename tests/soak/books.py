"""The books of a soak, closed: what clients, sockpair, its log and the endpoints have counted."""

from __future__ import annotations

from collections import Counter
from typing import Final

from tests.e2e.subject import Metrics, Row
from tests.soak.scene import DATAGRAMS, INEXACT, KINDS, Scene

LOUD: Final = frozenset({"worker_lost", "reload_failed"})
"""Errors in the log that a soak brings about itself."""

ANY_END: Final = frozenset({"finished", "client_reset", "endpoint_reset", "internal"})
"""How flows may end whose endpoints, or whose worker, are killed."""


class Books:
    """Compares, and remembers what does not agree.

    Attributes:
        faults: one line each.
        metrics: the last scrape.

    """

    def __init__(
        self, scene: Scene, metrics: Metrics, endpoints: dict[str, Counter[str]], log: list[Row]
    ) -> None:
        self.faults: list[str] = []
        self._scene = scene
        self.metrics = metrics
        self._endpoints = endpoints
        self._log = log

    def check(self) -> None:
        for name in KINDS:
            self._check_flows(name)
            self._check_log(name)
            if name in INEXACT:
                self._check_inexact(name)
            else:
                self._check_bytes(name)
        metrics = self.metrics
        self.same("flows in the table", metrics.sum("sockpair_table_entries"), 0)
        self.same("log lines lost", metrics.sum("sockpair_log_records_dropped_total"), 0)
        loud = [row for row in self._log if row["level"] == "error" and row["event"] not in LOUD]
        self.same("errors in the log", loud, [])

    def closed(self, name: str) -> Counter[str]:
        """How the flows of a listener ended, as sockpair has counted it."""
        return self.metrics.by("sockpair_flows_closed_total", "reason", listener=name)

    def same(self, what: str, seen: object, wanted: object) -> None:
        if seen != wanted:
            self.faults.append(f"{what}: {seen}, not {wanted}")

    def _check_flows(self, name: str) -> None:
        tally, closed = self._scene.tallies[name], self.closed(name)
        opened = self.metrics.sum("sockpair_flows_opened_total", listener=name)
        self.same(f"{name}: flows opened", opened, tally.opened)
        self.same(f"{name}: flows closed", closed.total(), opened)
        refused = self.metrics.sum("sockpair_flows_refused_total", listener=name)
        self.same(f"{name}: flows refused", refused, 0)
        buffered = self.metrics.sum("sockpair_buffered_bytes", listener=name)
        self.same(f"{name}: bytes buffered", buffered, 0)
        if name not in DATAGRAMS:
            self.same(f"{name}: ends counted by clients", tally.ends.total(), opened)
        if name == "doomed":
            self.same(f"{name}: ends", set(+closed) <= ANY_END, True)
            self.same(
                f"{name}: at least what clients finished",
                closed["finished"] >= tally.ends["finished"],
                True,
            )
        elif name in DATAGRAMS:
            self.same(f"{name}: ends", set(+closed) <= {"idle_timeout", "internal"}, True)
        else:
            wanted = Counter(tally.ends)
            wanted["internal"] += wanted.pop("cut", 0)
            self.same(f"{name}: ends", +closed, +wanted)

    def _check_bytes(self, name: str) -> None:
        tally, endpoint = self._scene.tallies[name], self._endpoints[name]
        for who, wanted in (
            ("client_received", tally.sent),
            ("endpoint_sent", tally.sent),
            ("endpoint_received", tally.received),
            ("client_sent", tally.received),
        ):
            seen = self.metrics.sum(f"sockpair_{who}_bytes_total", listener=name)
            self.same(f"{name}: {who} bytes", seen, wanted)
        self.same(f"{name}: bytes at endpoints", endpoint["received"], tally.sent)
        self.same(f"{name}: bytes from endpoints", endpoint["sent"], tally.received)
        if name in DATAGRAMS:
            came = self.metrics.sum("sockpair_client_received_datagrams_total", listener=name)
            self.same(f"{name}: datagrams", came, tally.datagrams)
            lost = self.metrics.sum("sockpair_datagrams_dropped_total", listener=name)
            self.same(f"{name}: datagrams lost", lost, 0)
        else:
            self.same(f"{name}: flows at endpoints", endpoint["flows"], tally.opened)

    def _check_inexact(self, name: str) -> None:
        """What came from clients is at least what was answered; nothing is invented."""
        received = self.metrics.sum("sockpair_client_received_bytes_total", listener=name)
        sent = self.metrics.sum("sockpair_endpoint_sent_bytes_total", listener=name)
        self.same(f"{name}: no more sent than received", sent <= received, True)

    def _check_log(self, name: str) -> None:
        """Each flow has its line, but those a worker took along.

        A datagram flow may have ended by itself in a worker's last half second, when that has been
        logged, but not read.
        """
        told = Counter(
            row["close_reason"]
            for row in self._log
            if row["event"] == "flow" and row["listener"] == name
        )
        closed = self.closed(name)
        lost = closed.pop("internal", 0)
        if name in DATAGRAMS and lost:
            self.same(
                f"{name}: lines", closed.total() <= told.total() <= closed.total() + lost, True
            )
        else:
            self.same(f"{name}: lines of the log", +told, +closed)
