"""Real programs inside the machine: servers, clients of theirs through sockpair, and what these
say in the end.

Each client has its connections from its first moment to its last, and none of them would hide that
it lost one: it ends with an error, or its own books do not come out. Which they are, and how a loss
would show:

* ``bulk``: iperf3 over TCP, both ways. It ends with an error; a stall is intervals without a byte.
* ``datagrams``: iperf3 over UDP, both ways, at a pace that buffers of sockets can hold while a
  flow changes its process. It numbers its datagrams.
* ``ssh``: a session of OpenSSH's client with a Dropbear, because that comes without a service
  which a package would enable. Lines there and back; every packet has a MAC and a number.
* ``session``: redis-cli, lines there and back. It would connect again in silence, which the ids of
  the flows tell.
* ``pipelined``: redis-benchmark, eight requests at a time on each of ten connections.
* ``dns``: dnsperf, asking an NSD. It counts the queries that were not answered.

What can be given a pace has one that leaves processors for what happens to sockpair meanwhile.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Final, NamedTuple

from tests.e2e.patience import SLOWNESS
from tests.e2e.peers import ZONE, many_records, names, nsd_settings, zone_text
from tests.systemd.lab import Lab
from tests.systemd.peer import HOST
from tests.systemd.test_service import PEER

SECONDS: Final = int(int(os.environ.get("SOCKPAIR_CLIENT_SECONDS", "40")) * SLOWNESS)
"""How long each client runs, but redis-benchmark, which runs by number."""

REQUESTS: Final = os.environ.get("SOCKPAIR_CLIENT_REQUESTS", "2000000")
PACE_OF_BULK: Final = ("--bitrate", "1G")
PACE_OF_DNS: Final = ("-Q", "3000")
PACE: Final = ("--bitrate", "1M", "--length", "500")
"""250 datagrams a second, of which a socket's buffer holds 166 (SO_RCVBUF 212,992)."""

FOLDER: Final = "/tmp/clients"

PEERS: Final = ("iperf3", "redis-server", "redis-benchmark", "nsd", "dnsperf", "dropbear", "ssh")

SERVERS: Final = {
    "iperf-bulk": ("iperf3", "--server", "--bind", HOST, "--port", "7101"),
    "iperf-datagrams": ("iperf3", "--server", "--bind", HOST, "--port", "7102"),
    "sshd": ("dropbear", "-F", "-E", "-s", "-p", f"{HOST}:7103", "-r", f"{FOLDER}/host_key"),
    "redis": ("redis-server", "--bind", HOST, "--port", "7104", "--save", "", "--dir", FOLDER),
    "nsd": ("nsd", "-d", "-c", f"{FOLDER}/nsd.conf"),
}

LISTENERS: Final = {
    "bulk": ("tcp", 5101, 7101),
    "control": ("tcp", 5102, 7102),
    "datagrams": ("udp", 5102, 7102),
    "ssh": ("tcp", 5103, 7103),
    "redis": ("tcp", 5104, 7104),
    "dns": ("udp", 5105, 7105),
}
"""The transport, our port and the endpoint's. What iperf3 says over UDP it agrees on over TCP."""

FLOWS: Final = {"bulk": 3, "control": 1, "datagrams": 2, "ssh": 1, "redis": 11, "dns": 8}
"""How many each listener has while the clients run."""


def settings(workers: int, survive: str) -> str:
    """Our configuration."""
    return f'[engine]\nworkers = {workers}\ndrain_timeout = "200ms"\n' + "".join(
        f'[listener.{name}]\nlisten = "{transport}://{HOST}:{port}"\n'
        f'upstream = "{name}"\nsurvive = "{survive}"\n'
        f'[upstream.{name}]\nendpoints = ["{HOST}:{endpoint}"]\n'
        for name, (transport, port, endpoint) in LISTENERS.items()
    )


class Loss(NamedTuple):
    """What a client says of its end.

    Attributes:
        figures: what it moved.
        lost: datagrams that did not come.

    """

    figures: str
    lost: int = 0


class Client(NamedTuple):
    """A client.

    Attributes:
        command: that it is.
        judge: reads what it said; raises AssertionError where a stream was not whole.

    """

    command: tuple[str, ...]
    judge: Callable[[str], Loss]


def judge_bulk(said: str) -> Loss:
    """Of iperf3 over TCP: the bytes each way; no two intervals in a row are empty."""
    report = json.loads(said)
    assert "error" not in report
    for way in ("sum", "sum_bidir_reverse"):
        moved = [row[way]["bytes"] for row in report["intervals"]]
        assert all(sum(pair) for pair in pairwise(moved)), f"a stall: {moved}"
    sent, received = (report["end"][f"sum_{what}"]["bytes"] for what in ("sent", "received"))
    back, came_back = (
        report["end"][f"sum_{what}_bidir_reverse"]["bytes"] for what in ("sent", "received")
    )
    assert 0 < received <= sent
    assert 0 < came_back <= back
    return Loss(f"{received:,} bytes there, {came_back:,} back")


def judge_datagrams(said: str) -> Loss:
    """Of iperf3 over UDP: the datagrams lost each way; none came twice or in another order."""
    report = json.loads(said)
    assert "error" not in report
    ways = report["end"]["sum"], report["end"]["sum_bidir_reverse"]
    assert [row["udp"]["out_of_order"] for row in report["end"]["streams"]] == [0, 0]
    there, back = (way["packets"] for way in ways)
    return Loss(f"{there:,} datagrams there, {back:,} back", sum(w["lost_packets"] for w in ways))


def judge_lines(said: str) -> Loss:
    """Of lines that were said and came back: their bytes."""
    (carried,) = re.findall(r"^carried=(\d+)$", said, re.MULTILINE)
    assert int(carried) > 0
    return Loss(f"{int(carried):,} bytes there and back")


def judge_pipelined(said: str) -> Loss:
    """Of redis-benchmark, which ends at the first error."""
    (rate,) = re.findall(r'^"ECHO.*?","([\d.]+)"', said, re.MULTILINE)
    return Loss(f"{int(REQUESTS):,} requests, {float(rate):,.0f} a second")


def judge_dns(said: str) -> Loss:
    """Of dnsperf: the queries that had no answer; all others had the right one."""
    sent, completed, lost = (
        int(re.findall(rf"Queries {what}:\s+(\d+)", said)[0])
        for what in ("sent", "completed", "lost")
    )
    assert sent == completed + lost
    assert f"NOERROR {completed} (100.00%)" in said, said
    return Loss(f"{completed:,} queries", lost)


def converse(prefix: str, *command: str) -> tuple[str, ...]:
    return (*PEER, "converse", str(SECONDS), prefix, *command)


def port(listener: str) -> str:
    return str(LISTENERS[listener][1])


def iperf3(listener: str, *more: str) -> tuple[str, ...]:
    place = ("--client", HOST, "--port", port(listener))
    return ("iperf3", *place, "--time", str(SECONDS), "--bidir", "--json", *more)


CLIENTS: Final = {
    "bulk": Client(iperf3("bulk", *PACE_OF_BULK), judge_bulk),
    "datagrams": Client(iperf3("datagrams", "--udp", *PACE), judge_datagrams),
    "ssh": Client(
        converse(
            *("", "ssh", "-F", "none", "-i", f"{FOLDER}/key", "-p", port("ssh")),
            *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"),
            *("-o", f"UserKnownHostsFile={FOLDER}/known", f"root@{HOST}", "cat"),
        ),
        judge_lines,
    ),
    "session": Client(
        converse("ECHO ", "stdbuf", "-oL", "redis-cli", "-h", HOST, "-p", port("redis")),
        judge_lines,
    ),
    "pipelined": Client(
        (
            *("redis-benchmark", "-h", HOST, "-p", port("redis"), "-n", REQUESTS, "-c", "10"),
            *("-P", "8", "--csv", "ECHO", "x" * 512),
        ),
        judge_pipelined,
    ),
    "dns": Client(
        (
            *("dnsperf", "-s", HOST, "-p", port("dns"), "-d", f"{FOLDER}/questions"),
            *("-l", str(SECONDS), "-c", "8", "-T", "1", *PACE_OF_DNS),
        ),
        judge_dns,
    ),
}


@contextmanager
def servers(lab: Lab) -> Iterator[None]:
    """Have all servers run, with a key that opens the SSH one."""
    lab.run("rm", "-rf", FOLDER)
    lab.write(f"{FOLDER}/nsd.conf", nsd_settings(FOLDER, f"{HOST}@7105"))
    lab.write(f"{FOLDER}/zone", zone_text(many_records()))
    lab.write(f"{FOLDER}/questions", "".join(f"{name}.{ZONE} A\n" for name in names()))
    lab.run("dropbearkey", "-t", "ed25519", "-f", f"{FOLDER}/host_key")
    lab.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{FOLDER}/key")
    lab.run("install", "-D", "-m", "600", f"{FOLDER}/key.pub", "/root/.ssh/authorized_keys")
    lab.run("chmod", "go-w", "/root", "/root/.ssh")
    try:
        for name, command in SERVERS.items():
            lab.run("systemd-run", f"--unit=server-{name}", *command)
        yield
    finally:
        lab.run("systemctl", "stop", "server-*")


def unit_of(client: str) -> str:
    return f"client-{client}.service"


class Clients:
    """All clients, at work in a machine."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.outlived: Counter[str] = Counter(dict.fromkeys(CLIENTS, 0))
        """How often each has been seen at work after something happened."""

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have them work; those that have not ended in the end are stopped."""
        for name, client in CLIENTS.items():
            place = f"--property=StandardOutput=truncate:{FOLDER}/{name}.said"
            staying = (
                "--property=RemainAfterExit=yes",
                "--nice=10",
                place,
            )  # others get their turn
            self._lab.run("systemd-run", f"--unit={unit_of(name)}", *staying, *client.command)
        try:
            self._lab.until(lambda: self.flows() == FLOWS, "the flows of all clients")
            yield
        finally:
            self._lab.run("systemctl", "stop", "client-*")

    def flows(self) -> Counter[str]:
        """The flows of each listener."""
        return Counter(listener for listener, _ in self.ids())

    def ids(self) -> set[tuple[str, int]]:
        """Listener and id of every flow."""
        rows = map(json.loads, self._lab.run("sockpair", "flows", "-o", "ndjson").splitlines())
        return {(row["listener"], row["id"]) for row in rows}

    def working(self) -> list[str]:
        """Who has not ended yet; raises AssertionError for who has ended badly."""
        units = map(unit_of, CLIENTS)
        told = self._lab.run("systemctl", "show", "--value", "--property=SubState", *units)
        states = dict(zip(CLIENTS, told.split(), strict=True))
        for name, state in states.items():
            assert state in {"running", "exited"}, f"{name}: {state}\n{self._said(name)}"
        return [name for name, state in states.items() if state == "running"]

    def outlive(self, happen: Callable[[], None], ids: set[tuple[str, int]]) -> None:
        """Have things happen until all have ended; none of them may open another flow."""
        while self.working():
            happen()
            assert self.ids() <= ids, "somebody has connected again"
            self.outlived.update(self.working())

    def judge(self) -> dict[str, Loss]:
        """What each says of its end."""
        return {name: client.judge(self._said(name)) for name, client in CLIENTS.items()}

    def _said(self, name: str) -> str:
        return self._lab.run("cat", f"{FOLDER}/{name}.said")
