"""The second machine of the guide, for real: keepalived moves the address, by the guide's own file.

Two machines, an endpoint and a client on one wire, each in a network namespace. The files of
keepalived are cut out of deploy/OPERATIONS.md as they are, so that the text is what is tested.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.patience import PATIENCE, until
from tests.e2e.program import Program, peer, program
from tests.e2e.sockets import echo, expect_reset, say
from tests.engine.udp_network import Network, require_namespaces

pytestmark = pytest.mark.peers("curl", "ip", "keepalived", "sysctl")

GUIDE = (Path(__file__).parents[2] / "deploy" / "OPERATIONS.md").read_text()
(KEEPALIVED,) = re.findall(r"```keepalived\n(.*?)```", GUIDE, re.DOTALL)
CHECKS = 2 * int(KEEPALIVED.split("fall ")[1].split()[0])
"""Twice as many failed checks as move the address; one a second, as the file has it."""

ADDRESS, PORT = "192.0.2.10", 8080
ENDPOINT = "192.0.2.20"
HOSTS = {"one": "192.0.2.1", "two": "192.0.2.2", "client": "192.0.2.99", "endpoint": ENDPOINT}

CONFIG = f"""
[admin]
socket = "{{folder}}/admin.sock"
[engine]
drain_timeout = "1h"
[listener.web]
listen = "tcp://{ADDRESS}:{PORT}"
upstream = "web"
[upstream.web]
endpoints = ["{ENDPOINT}:80"]
"""


class Wire:
    """The network with its hosts, and what runs there."""

    def __init__(self, network: Network, folder: Path, nursery: trio.Nursery) -> None:
        self.network = network
        self.folder = folder
        self.nursery = nursery

    async def lay(self) -> None:
        """Join all hosts, and have the endpoint echo."""
        for host, address in HOSTS.items():
            self.network.add(host)
            self.network.join("wire", host, "eth0", f"{address}/24")
        for host in ("one", "two"):
            self.network.run(host, "sysctl", "-qw", "net.ipv4.ip_nonlocal_bind=1")
            (self.folder / host).mkdir()
        with self.network.inside("endpoint"):
            listening = await trio.open_tcp_listeners(80, host=ENDPOINT)
        self.nursery.start_soon(trio.serve_listeners, echo, listening)

    @asynccontextmanager
    async def sockpair(self, host: str) -> AsyncIterator[Program]:
        """Run sockpair on a machine."""
        file = self.folder / host / "sockpair.toml"
        file.write_text(CONFIG.format(folder=file.parent))
        command = [*self._inside(host), sys.executable, "-m", "proxy", "run", "-c", file]
        async with program(
            command, file.parent, (file.parent / "admin.sock").exists, name="sockpair"
        ) as started:
            yield started

    @asynccontextmanager
    async def keepalived(self, host: str, until_said: str) -> AsyncIterator[Program]:
        """Run keepalived on a machine, by the guide's file, until it has said this."""
        folder = self.folder / host
        (folder / "keepalived.conf").write_text(KEEPALIVED)
        async with program(
            [
                *(*self._inside(host), peer("keepalived"), "--vrrp", "--dont-fork"),
                *("--log-console", "--log-detail", "--use-file", folder / "keepalived.conf"),
                *("--pid", folder / "pid", "--vrrp_pid", folder / "vrrp-pid"),
            ],
            folder,
            lambda: until_said in story(folder),
            name="keepalived",
        ) as started:
            yield started
        assert "SECURITY" not in started.story()

    async def connect(self) -> trio.SocketStream:
        """A connection of the client to the address that moves."""
        with self.network.inside("client"):
            socket = trio.socket.socket()
        with trio.fail_after(PATIENCE):
            await socket.connect((ADDRESS, PORT))
        return trio.SocketStream(socket)

    def has_address(self, host: str) -> bool:
        """Whether a machine has it now."""
        return f"{ADDRESS}/" in self._answer(host, "ip", "-4", "address", "show", "dev", "eth0")

    def flows(self, host: str) -> list[dict[str, Any]]:
        """The table of a machine's sockpair."""
        admin = str(self.folder / host / "admin.sock")
        command = (sys.executable, "-m", "proxy", "flows", "-o", "json", "--admin", admin)
        rows: list[dict[str, Any]] = json.loads(self._answer(host, *command))
        return rows

    def _answer(self, host: str, *command: str) -> str:
        done = subprocess.run(
            [*self._inside(host), *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _inside(self, host: str) -> list[str]:
        return [peer("ip"), "netns", "exec", self.network.name(host)]


def story(folder: Path) -> str:
    """What a machine's keepalived has said."""
    return (folder / "keepalived.out").read_text() + (folder / "keepalived.err").read_text()


@pytest.fixture
def network() -> Iterator[Network]:
    require_namespaces()
    made = Network()
    yield made
    made.close()


@pytest.fixture
async def wire(network: Network, tmp_path: Path, nursery: trio.Nursery) -> Wire:
    laid = Wire(network, tmp_path, nursery)
    await laid.lay()
    return laid


async def test_the_other_machine_takes_the_address_of_one_whose_sockpair_has_died(
    wire: Wire,
) -> None:
    async with (
        wire.sockpair("one") as first,
        wire.sockpair("two"),
        wire.keepalived("one", "Entering MASTER STATE"),
        wire.keepalived("two", "Entering BACKUP STATE"),
    ):
        async with await wire.connect() as client:
            await say(client, b"hello")
            assert [row["client"]["local"] for row in wire.flows("one")] == [f"{ADDRESS}:{PORT}"]
            assert wire.flows("two") == []
        first.process.kill()
        await until(lambda: wire.has_address("two"), "the address to move", 3 * PATIENCE)
        assert not wire.has_address("one")
        async with await wire.connect() as client:
            await say(client, b"hello again")
            (row,) = wire.flows("two")
            assert row["client"]["local"] == f"{ADDRESS}:{PORT}"
            assert row["client"]["remote"].startswith(HOSTS["client"])


@pytest.mark.slow
async def test_the_other_machine_takes_the_address_of_one_that_is_gone(wire: Wire) -> None:
    async with (
        wire.sockpair("one") as first,
        wire.sockpair("two"),
        wire.keepalived("one", "Entering MASTER STATE"),
        wire.keepalived("two", "Entering BACKUP STATE"),
        await wire.connect() as client,
    ):
        await say(client, b"hello")
        wire.network.unplug("wire", "one")
        await until(lambda: wire.has_address("two"), "the address to move", 3 * PATIENCE)
        await client.send_all(b"does anybody know me?")
        await expect_reset(client)
        async with await wire.connect() as other:
            await say(other, b"hello again")
        first.process.kill()  # it would wait for its flow, of which it knows no better


@pytest.mark.slow
async def test_a_stop_lets_flows_end_before_the_address_moves(wire: Wire) -> None:
    async with (
        wire.sockpair("one") as first,
        wire.sockpair("two"),
        wire.keepalived("one", "Entering MASTER STATE"),
        wire.keepalived("two", "Entering BACKUP STATE"),
    ):
        async with await wire.connect() as client:
            await say(client, b"hello")
            first.process.send_signal(signal.SIGTERM)
            for number in range(CHECKS):  # nothing may happen, so nothing can be waited for
                await trio.sleep(1)
                await say(client, b"not finished yet %d" % number)
            assert wire.has_address("one")
        await until(lambda: wire.has_address("two"), "the address to move", 3 * PATIENCE)
