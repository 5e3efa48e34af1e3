"""Ejection: an endpoint that fails flows gets no new ones for a while.

What counts is what flows met with, so it costs no checks, and sees what those do not: a connection
that is refused or not answered, one that the endpoint resets before its first byte, a datagram that
draws an ICMP error, a datagram flow without an answer. The last only of an endpoint that has
answered some flow: where nobody ever answers (syslog, netflow), silence says nothing.

An endpoint is ejected by either of two rules:

- so many failures of one kind *in a row*. Connections, and resets of those that were made, are
  counted apart: an endpoint that accepts everything and resets it again has a success with each.
- such a *share* of the flows of a window, if those are enough to tell.

It is out for ``time``, doubled with each ejection that follows soon upon the last, up to
``time_max``. Then it is asked again, on probation: one failure ejects it anew.

Never are more ejected than ``most_percent`` of the upstream's endpoints: when all seem ill, the
fault is more likely ours, and the rest would be crushed. And if, with those that are down for
other reasons, fewer than ``panic_percent`` are left, ejections are not heeded at all. Both give way
to backups: when nobody is well for whom they stand in, all others are ejected, and those are asked.

One that is spared so is *shunned* for ``time``: streams are still sent there, as they go on to the
next endpoint where that fails them, and datagrams, which cannot, only while nobody else is left.

Everything is of one process: workers judge by their own flows. Times are monotonic seconds.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class EjectionTerms(NamedTuple):
    """When endpoints are ejected, and for how long.

    Attributes:
        failures: in a row; 0 is never.
        failure_percent: of the flows of a window; 0 is never.
        volume: flows in a window from which on they tell anything.
        window: seconds.
        time: seconds, the first time.
        time_max: seconds.
        most_percent: of the endpoints that operators have enabled.
        panic_percent: of them; if fewer are usable, ejections are not heeded.

    """

    failures: int = 5
    failure_percent: int = 0
    volume: int = 20
    window: float = 10.0
    time: float = 10.0
    time_max: float = 300.0
    most_percent: int = 50
    panic_percent: int = 30


MISSES: Final = "failures to reach it"
RESETS: Final = "resets before a byte"


class Record:
    """What flows met with at one endpoint, and its ejections.

    Attributes:
        terms: by which it is judged.
        until: when the last ejection ends, or ended.
        shunned_until: the same, where it was not ejected for the sake of others.
        times: ejections that followed upon each other.
        reason: for the last one; empty if there was none.

    """

    __slots__ = (
        "_answers",
        "_bad",
        "_good",
        "_length",
        "_misses",
        "_resets",
        "_window_from",
        "reason",
        "shunned_until",
        "terms",
        "times",
        "until",
    )

    def __init__(self, terms: EjectionTerms) -> None:
        self.terms = terms
        self.until = 0.0
        self.shunned_until = 0.0
        self.times = 0
        self.reason = ""
        self._length = 0.0
        self._misses = 0  # in a row
        self._resets = 0  # in a row
        self._answers = False
        self._window_from = 0.0
        self._good = 0
        self._bad = 0

    @property
    def verdict(self) -> str:
        """Why it is to be ejected, were it not for others; empty if it is not."""
        return self._verdict(self._misses, MISSES) or self._verdict(self._resets, RESETS)

    def reached(self, now: float) -> None:
        """A flow was connected, or had an answer."""
        self._answers = True
        self._misses = 0
        self._roll(now)
        self._good += 1

    def served(self) -> None:
        """A flow ended that had a byte from it."""
        self._resets = 0

    def missed(self, now: float) -> str:
        """A flow could not be connected, or drew an ICMP error; why it is to be ejected, or ""."""
        self._misses += 1
        self._roll(now)
        self._bad += 1
        return self._verdict(self._misses, MISSES)

    def unanswered(self, now: float) -> str:
        """A datagram flow ended without an answer; the same, unless nobody ever answers."""
        return self.missed(now) if self._answers else ""

    def was_reset(self, now: float) -> str:
        """It reset a flow before its first byte; that it was reached has been counted."""
        self._resets += 1
        self._roll(now)
        self._good = max(0, self._good - 1)
        self._bad += 1
        return self._verdict(self._resets, RESETS)

    def eject(self, reason: str, now: float) -> None:
        """Begin an ejection."""
        if now > self.until + self._length:  # it was well for as long as it had been out
            self.times = 0
        self.times += 1
        doubled = self.terms.time * 2 ** min(self.times - 1, 30)
        self._length = max(self.terms.time, min(doubled, self.terms.time_max))
        self.until = now + self._length
        self.reason = reason

    def shun(self, now: float) -> float:
        """Be spared an ejection; tell until when datagrams pass it over."""
        self.shunned_until = now + self.terms.time
        return self.shunned_until

    def come_back(self) -> None:
        """Be asked again, on probation; an endpoint that does well has forgotten its failures."""
        self._misses = self._resets = max(0, self.terms.failures - 1)
        self._good = self._bad = 0

    def _roll(self, now: float) -> None:
        if now >= self._window_from + self.terms.window:
            self._window_from = now
            self._good = self._bad = 0

    def _verdict(self, run: int, what: str) -> str:
        terms = self.terms
        if terms.failures and run >= terms.failures:
            return f"{run} {what} in a row"
        flows = self._good + self._bad
        if terms.failure_percent and flows >= terms.volume:
            percent = 100 * self._bad // flows
            if percent >= terms.failure_percent:
                return f"{percent} % of {flows} flows failed"
        return ""
