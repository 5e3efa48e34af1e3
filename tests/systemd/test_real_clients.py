"""Real programs go on through restarts and kills of the real unit, with all its confinement.

Things happen again and again, one after the other, until every client has ended by itself; see
``clients`` for what they are and how a loss would show. How long they run is told by
SOCKPAIR_CLIENT_SECONDS, and SOCKPAIR_CLIENT_REQUESTS.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Final

import pytest

from proxy.engine.survival.executor import SHORT_LIFE
from tests.systemd.clients import PEERS, Clients, servers, settings
from tests.systemd.lab import Lab
from tests.systemd.test_faults import metric
from tests.systemd.test_service import DROP_INS, FILE, at_rest, pid_of

pytestmark = [pytest.mark.slow, pytest.mark.peers(*PEERS)]

BATCH: Final = 64
"""Datagrams that a worker may have in hand when it is killed, of each listener."""


@pytest.fixture
def lab(machine: Lab, reinstall: Callable[[Lab], None]) -> Iterator[Lab]:
    """The machine with all servers, and no service that runs; a killed one comes back soon."""
    with at_rest(machine, reinstall), servers(machine):
        machine.write(f"{DROP_INS}/quick.conf", "[Service]\nRestartSec=100ms\n")
        machine.run("systemctl", "daemon-reload")
        yield machine


def workers_of(lab: Lab) -> list[int]:
    """The process of each worker, that with the most flows first; 0 for one that is not there."""
    rows = json.loads(lab.run("sockpair", "status", "-o", "json"))["workers"]
    return [row["pid"] for row in sorted(rows, key=lambda row: -row["flows"])]


def overflowed(lab: Lab) -> int:
    """Datagrams that found a socket's buffer full, whoever's: a busy machine empties it late."""
    snmp = lab.run("cat", "/proc/net/snmp")
    names, values = re.findall(r"^Udp: (.*)$", snmp, re.MULTILINE)
    return int(dict(zip(names.split(), values.split(), strict=True))["RcvbufErrors"])


def restart(lab: Lab) -> None:
    lab.start(verb="restart")


def kill_worker(lab: Lab, number: str = "KILL") -> None:
    """Kill the worker that has the most flows, and wait until another has them.

    It has lived for longer than what is taken for the fault of a flow.
    """
    lab.run("sleep", str(SHORT_LIFE))
    before = workers_of(lab)
    lab.run("kill", f"-{number}", str(before[0]))

    def is_replaced() -> bool:
        now = workers_of(lab)
        return len(now) == len(before) and before[0] not in now

    lab.until(is_replaced, "the next worker")


def kill_service(lab: Lab) -> None:
    """Kill the process that systemd knows, and wait for its next life."""
    before = pid_of(lab)
    lab.run("kill", "-KILL", str(before))
    lab.until(lambda: pid_of(lab) not in {0, before}, "the next life")
    lab.start()  # it is starting; this waits for it


def upgrade(lab: Lab) -> None:
    lab.run("sockpair", "upgrade")


def abort_worker(lab: Lab) -> None:
    kill_worker(lab, "ABRT")


HAPPENINGS: Final = {
    "restarts": ("restart", [restart]),
    "kills of workers": ("crash", [kill_worker, abort_worker]),
    "everything": ("crash", [restart, kill_worker, kill_service, upgrade, kill_worker]),
}
"""What listeners are to survive, and what happens in turn."""

KILLS: Final = (kill_worker, abort_worker)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("survive", "things"), HAPPENINGS.values(), ids=HAPPENINGS)
def test_no_client_notices(
    lab: Lab,
    workers: int,
    survive: str,
    things: list[Callable[[Lab], None]],
    measured: Callable[[str], None],
) -> None:
    lab.write(FILE, settings(workers, survive))
    lab.start()
    full = overflowed(lab)
    turns, clients = cycle(things), Clients(lab)
    happened = Counter[Callable[[Lab], None]]()

    def happen() -> None:
        thing = next(turns)
        thing(lab)
        happened[thing] += 1

    with clients.at_work():
        clients.outlive(happen, clients.ids())
        losses = clients.judge()
    measured(", ".join(f"{thing.__name__} {times} times" for thing, times in happened.items()))
    for name, loss in losses.items():
        measured(f"{name} outlived {clients.outlived[name]}: {loss.figures}, {loss.lost} lost")
    assert min(clients.outlived.values()) > 0, clients.outlived
    kills = sum(happened[thing] for thing in KILLS)
    full = overflowed(lab) - full
    measured(f"{full} datagrams found a full buffer")
    assert sum(loss.lost for loss in losses.values()) <= kills * BATCH + full
    assert lab.journal().count('"event":"survived"') == kills
    assert metric(lab, "sockpair_flows_lost_total") == 0
    for reason in ("internal", "drained", "killed"):
        assert metric(lab, f'sockpair_flows_closed_total.*reason="{reason}"') == 0
    if not happened[abort_worker]:  # it tells where it was
        assert "Traceback" not in lab.journal()
