"""Names of endpoints by the servers of /etc/resolv.conf, and a DNS server that is not there.

sockpair is started in a mount namespace where that is another file. The server is a real one, at
port 53 of a loopback address.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import PATIENCE
from tests.e2e.peers import ZONE, Origin, nsd
from tests.e2e.program import Command, free_port
from tests.e2e.reloading import command, reload, rewrite
from tests.e2e.sockets import connect, echo, listen, say
from tests.e2e.subject import Forward
from tests.engine.udp_network import require_namespaces

NAME = f"local.{ZONE}"
UNKNOWN = f"ns.{ZONE}"
SERVER = f"127.0.53.{os.getpid() % 250 + 1}"

pytestmark = [pytest.mark.peers("nsd")]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Origin]:
    """A DNS server that knows NAME."""
    require_namespaces()
    folder = tmp_path / "nsd"
    folder.mkdir()
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(nsd(folder, SERVER, 53))
        try:
            yield origin
        finally:
            await origin.program.kill()


def asking(folder: Path, options: str) -> Command:
    """Have a program ask our server for names."""
    file = folder / "resolv.conf"
    file.write_text(f"nameserver {SERVER}\nsearch {ZONE}\noptions {options}\n")
    script = 'mount --bind "$0" /etc/resolv.conf; exec "$@"'
    return ["unshare", "--mount", "sh", "-ec", script, file]


async def named(stage: Stage) -> Forward:
    """A listener whose endpoint is a name."""
    port = (await listen(stage.nursery, echo)).rpartition(":")[2]
    return Forward("web", "tcp", [f"{NAME}:{port}"])


WAYS = pytest.mark.parametrize(
    ("number", "options"),
    [
        pytest.param(signal.SIGKILL, "timeout:5", id="nobody is there"),
        pytest.param(signal.SIGSTOP, "timeout:1 attempts:1", id="nobody answers"),
        pytest.param(
            signal.SIGSTOP,
            "timeout:30 attempts:5",
            id="nobody answers a patient resolver",
            marks=pytest.mark.slow,
        ),
    ],
)


@WAYS
async def test_a_reload_changes_nothing_and_says_why(
    stage: Stage, server: Origin, number: signal.Signals, options: str
) -> None:
    web = await named(stage)
    sockpair = await stage.sockpair(web, wrapper=asking(stage.folder, options))
    async with await connect(web.address) as client:
        await say(client, b"hello")
        os.killpg(server.program.pid, number)
        other = replace(web, name="other", port=free_port(), endpoints=[f"{UNKNOWN}:80"])
        rewrite(sockpair, replace(web, limits={"idle": "1s"}), other)
        with trio.fail_after(2 * PATIENCE):  # a name is waited for 5 s at most
            done = await command(sockpair, "reload", status=1)
        assert f'upstream.other: cannot resolve "{UNKNOWN}": no answer within 5 s' in done.stderr
        assert NAME not in done.stderr
        assert done.stdout == ""
        await say(client, b"still here")
        async with await connect(web.address) as late:
            await say(late, b"and new ones, too")
        (row,) = await sockpair.flows(limit=1)
        assert row["limits"]["idle"] == 7440.0
        assert {row["listener"] for row in (await sockpair.status())["listening"]} == {"web"}
        assert (await sockpair.metrics()).sum("sockpair_config_last_reload_successful") == 0


async def test_a_reload_goes_on_with_the_names_that_are_known(stage: Stage, server: Origin) -> None:
    web = await named(stage)
    sockpair = await stage.sockpair(web, wrapper=asking(stage.folder, "timeout:1"))
    os.killpg(server.program.pid, signal.SIGKILL)
    more = replace(web, name="more", port=free_port())
    assert "+ listener more" in await reload(sockpair, web, more)
    async with await connect(more.address) as client:
        await say(client, b"hello")


async def test_it_comes_back_and_a_reload_works_again(stage: Stage, server: Origin) -> None:
    web = await named(stage)
    options = "timeout:1 attempts:1"
    sockpair = await stage.sockpair(web, wrapper=asking(stage.folder, options))
    os.killpg(server.program.pid, signal.SIGSTOP)
    port = web.endpoints[0].rpartition(":")[2]
    more = replace(web, name="more", port=free_port(), endpoints=[f"local:{port}"])
    rewrite(sockpair, web, more)
    await command(sockpair, "reload", status=1)
    os.killpg(server.program.pid, signal.SIGCONT)
    assert "+ listener more" in await reload(sockpair, web, more)
    async with await connect(more.address) as client:
        await say(client, b"hello")
