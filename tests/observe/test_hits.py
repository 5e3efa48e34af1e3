"""What listeners kept out, in the log: a line for each kind, with what is new in it."""

from __future__ import annotations

import trio
import trio.testing
from structlog.testing import capture_logs

from proxy.core.admission import Limit
from proxy.core.flow import Drop, Refusal
from proxy.observe.hits import EVERY, log_hits
from tests.observe.fake_relay import FakeRelay


async def test_a_listener_has_a_line_of_each_kind_with_what_was_counted_since_the_last(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = FakeRelay()
    relay.web.hit(Limit.SOURCE_FLOWS)
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log_hits, relay)
            await trio.sleep(EVERY / 2)
            for _ in range(1000):
                relay.web.refused[relay.web.hit(Limit.LISTENER_FLOWS)] += 1
            relay.dns.dropped[Drop.LIMITED] += 3
            await trio.sleep(EVERY)
            relay.web.refused[Refusal.ACCESS] += 1
            relay.dns.dry_run_hits[Limit.DATAGRAM_RATE] += 2
            await trio.sleep(3 * EVERY)
            nursery.cancel_scope.cancel()
    assert lines == [
        {
            "event": "limits_hit",
            "log_level": "warning",
            "listener": "web",
            "hits": {"listener_flows": 1000},
            "since": EVERY,
        },
        {
            "event": "flows_refused",
            "log_level": "warning",
            "listener": "web",
            "refused": {"listener_flows": 1000},
            "since": EVERY,
        },
        {
            "event": "datagrams_dropped",
            "log_level": "warning",
            "listener": "dns",
            "dropped": {"limited": 3},
            "since": EVERY,
        },
        {
            "event": "flows_refused",
            "log_level": "warning",
            "listener": "web",
            "refused": {"access": 1},
            "since": EVERY,
        },
        {
            "event": "limits_hit",
            "log_level": "info",
            "listener": "dns",
            "dry_run_hits": {"datagram_rate": 2},
            "since": EVERY,
        },
    ]
