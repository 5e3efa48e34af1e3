"""Tells the service manager, again and again, that the relay moves, and how much.

The sign of life is the pump's own: it is asked for a round, and only then does the watchdog get
its food. A relay that hangs, wherever it does, asks for nothing more, and is killed and started
anew (WatchdogSec= of the unit).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from proxy.control.notify import Notifier
    from proxy.engine.port import RelayCounters, RelayPort


async def keep_telling(port: RelayPort, notifier: Notifier) -> None:
    """Say that we are ready, then feed the watchdog and say live numbers, until cancelled.

    Ready is when the pump has turned for the first time. By then the task that starts this one
    waits for signals, so that a stop that comes at once finds somebody who hears it.

    Args:
        port: the relay; its silence is what the watchdog is for, so no bound is set to it here.
        notifier: the line to the manager; if nobody listens this returns at once.

    """
    if not notifier:
        return
    await port.alive()
    notifier.ready()
    while True:
        notifier.alive(status_line(await port.counters()))
        await trio.sleep(notifier.interval)
        await port.alive()


def status_line(counters: RelayCounters) -> str:
    """How the relay is, as ``systemctl status`` shows it."""
    listeners = counters["listeners"]
    opened = sum(listener["opened"] for listener in listeners)
    refused = sum(sum(listener["refused"].values()) for listener in listeners)
    down = [endpoint["endpoint"] for endpoint in counters["endpoints"] if not endpoint["up"]]
    parts = [
        f"{counters['table_entries']} of {counters['table_limit']} flows",
        f"{opened} opened, {refused} refused so far",
        _count(len({listener["listener"] for listener in listeners}), "listener"),
    ]
    if down:
        parts.append(f"{_count(len(down), 'endpoint')} down")
    return "; ".join(parts)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
