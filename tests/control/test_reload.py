"""A reload that fails leaves everything as it was, whatever it fails at."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import IPPROTO_IP, IPPROTO_TCP, SO_RCVBUF, SOL_SOCKET, TCP_KEEPIDLE, TCP_NODELAY
from socket import socket as Socket
from typing import Any

import pytest
import structlog.testing
import trio

from proxy.config.load import load
from proxy.config.model import Config
from proxy.control.house import House
from proxy.control.opening import open_house
from proxy.control.steward import WAITING_MAX, Steward
from proxy.core.flow import State
from tests.e2e.patience import PATIENCE
from tests.e2e.program import free_port

HEAD = '[admin]\nsocket = ""\nhttp = ""\n'
SAVE_SYN = (IPPROTO_TCP, 27)
TELL = (IPPROTO_IP, 13)  # IP_RECVTOS
AF41_PRIORITY, EF_PRIORITY = 2, 4  # rt_tos2priority, net/ipv4/route.c

UPSTREAM = '[upstream.up]\nendpoints = ["127.0.0.1:9"]\n'


def listener(name: str, listen: str, more: str = "") -> str:
    return f'[listener.{name}]\nlisten = "{listen}"\nupstream = "up"\n{more}\n'


@dataclass
class Town:
    """A house at work, its steward, and its file."""

    house: House
    steward: Steward
    file: Path
    adopted: list[Config]

    async def reload(self, *parts: str, **how: Any) -> Any:
        self.file.write_text("".join([HEAD, *(parts or ()), UPSTREAM]))
        return await self.steward.reload("test", **how)

    def socket(self, name: str) -> Socket:
        (socket,) = self.house._bound[name].sockets
        return socket

    async def next_flow(self) -> Any:
        """The flow that is opened next and has connected; those before it have ended."""
        while True:
            for flow in self.house.worker._relay.table:  # type: ignore[attr-defined]
                if flow.state is State.ESTABLISHED:
                    return flow
            await trio.sleep(0.002)

    async def listening(self) -> dict[str, str]:
        rows = (await self.house.worker.status())["listening"]
        return {row["listener"]: row["local"] for row in rows}


@asynccontextmanager
async def town(folder: Path, *parts: str) -> AsyncIterator[Town]:
    file = folder / "sockpair.toml"
    file.write_text("".join([HEAD, *parts, UPSTREAM]))
    adopted: list[Config] = []
    with structlog.testing.capture_logs(), trio.fail_after(PATIENCE):
        house = await open_house(load(file))
        async with trio.open_nursery() as nursery:
            with house:
                await nursery.start(house.worker.run)
                try:
                    yield Town(house, Steward(house, str(file), adopted.append), file, adopted)
                finally:
                    house.worker.stop()
                    nursery.cancel_scope.cancel()


WEB = listener("web", f"tcp://127.0.0.1:{free_port()}")


NAMES = '[upstream.a]\nendpoints = ["one.invalid:1", "two.invalid:1"]\n'


def files_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ((WEB, "[listener.x]\n"), "sockpair.toml:"),
        (("not toml",), "not valid TOML"),
        (
            (
                WEB,
                listener("new", "tcp://127.0.0.1:0"),
                NAMES,
            ),
            "cannot resolve",
        ),
        (
            (WEB, listener("a", "tcp://127.0.0.1:0"), listener("b", "tcp://192.0.2.1:80")),
            "cannot listen on tcp://192.0.2.1:80",
        ),
        (
            (WEB, listener("a", "unix:///nowhere/at/all")),
            "cannot listen on unix:///nowhere/at/all",
        ),
        (
            (WEB, listener("a", "tcp://127.0.0.1:0", 'interface = "absent0"')),
            "interface",
        ),
        (
            (WEB.replace("\n\n", '\nbacklog = 7\ninterface = "absent0"\n'),),
            "interface",
        ),
    ],
    ids=["check", "syntax", "resolve", "bind", "unix", "option", "live-option"],
)
async def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, parts: tuple[str, ...], problem: str
) -> None:
    async with town(tmp_path, WEB) as here:
        before, files = here.socket("web"), files_open()
        config, listening = here.house.config, await here.listening()
        answer = await here.reload(*parts)
        assert problem in " ".join(answer["problems"])
        assert not answer["reloaded"]
        assert answer["lines"] == []
        assert here.house.config is config
        assert here.adopted == []
        assert here.socket("web") is before
        assert await here.listening() == listening
        assert files_open() == files
        assert not here.steward.last_reload()["successful"]
        answer = await here.reload(WEB)
        assert answer["reloaded"]
        assert here.steward.last_reload()["successful"]


async def test_all_problems_are_told(tmp_path: Path) -> None:
    async with town(tmp_path, WEB) as here:
        answer = await here.reload(WEB, NAMES)
        assert ["one.invalid" in line for line in answer["problems"]] == [True, False]


async def test_a_socket_stays_and_what_is_said_of_it_is_set(tmp_path: Path) -> None:
    tcp, udp = f"tcp://127.0.0.1:{free_port()}", f"udp://0.0.0.0:{free_port()}"
    async with town(tmp_path, listener("t", tcp), listener("u", udp)) as here:
        stream, datagrams = here.socket("t"), here.socket("u")
        size = datagrams.getsockopt(SOL_SOCKET, SO_RCVBUF)
        changed = (
            listener("t", tcp, "backlog = 7\ndscp = 46\n[listener.t.tcp]\nnodelay = false\n"),
            listener("u", udp, 'receive_buffer = "8KiB"\npmtu = "probe"\n'),
        )
        assert (await here.reload(*changed))["problems"] == []
        assert (here.socket("t"), here.socket("u")) == (stream, datagrams)
        assert stream.getsockopt(IPPROTO_TCP, TCP_NODELAY) == 0
        assert stream.getsockopt(IPPROTO_IP, socket.IP_TOS) == 46 << 2
        assert datagrams.getsockopt(SOL_SOCKET, SO_RCVBUF) == 2 * 8192
        assert datagrams.getsockopt(IPPROTO_IP, 10) == 3
        back = listener("u", udp, 'pmtu = "system"')
        assert (await here.reload(listener("t", tcp), back))["problems"] == []
        assert stream.getsockopt(IPPROTO_TCP, TCP_NODELAY) == 1
        assert stream.getsockopt(IPPROTO_IP, socket.IP_TOS) == 0
        assert datagrams.getsockopt(SOL_SOCKET, SO_RCVBUF) == size
        assert datagrams.getsockopt(IPPROTO_IP, 10) == 1


async def test_priorities_and_what_is_copied_follow_the_file(tmp_path: Path) -> None:
    """Without a priority of its own a socket has the one that the kernel makes of its DSCP."""
    tcp, udp = f"tcp://127.0.0.1:{free_port()}", f"udp://0.0.0.0:{free_port()}"

    def both(more: str = "") -> tuple[str, str]:
        return listener("t", tcp, more), listener("u", udp, more)

    def seen(here: Town) -> list[tuple[int, int]]:
        stream, datagrams = here.socket("t"), here.socket("u")
        return [
            (stream.getsockopt(SOL_SOCKET, socket.SO_PRIORITY), stream.getsockopt(*SAVE_SYN)),
            (datagrams.getsockopt(SOL_SOCKET, socket.SO_PRIORITY), datagrams.getsockopt(*TELL)),
        ]

    async with town(tmp_path, *both("dscp = 34")) as here:
        assert seen(here) == [(AF41_PRIORITY, 0)] * 2
        assert (await here.reload(*both("dscp = 34\npriority = 3")))["problems"] == []
        assert seen(here) == [(3, 0)] * 2
        copies = UPSTREAM.replace("up]", 'up]\ndscp = "copy"')
        here.file.write_text("".join([HEAD, *both("dscp = 46\npriority = 3"), copies]))
        assert (await here.steward.reload("test"))["problems"] == []
        assert seen(here) == [(3, 1)] * 2
        assert (await here.reload(*both("dscp = 46")))["problems"] == []
        assert seen(here) == [(EF_PRIORITY, 0)] * 2
        assert (await here.reload(*both("priority = 5")))["problems"] == []
        assert seen(here) == [(5, 0)] * 2
        assert (await here.reload(*both()))["problems"] == []
        assert seen(here) == [(0, 0)] * 2


async def test_flows_follow_what_is_copied_and_how_they_are_prioritized(tmp_path: Path) -> None:
    tcp = f"tcp://127.0.0.1:{free_port()}"
    async with town(tmp_path, listener("t", tcp)) as here:
        with socket.create_server(("127.0.0.1", 0)) as endpoint:
            up = f'[upstream.up]\nendpoints = ["127.0.0.1:{endpoint.getsockname()[1]}"]\n'
            for more, prioritized, copied, priority in [
                ("", 'dscp = "copy"', 46, 0),
                ("priority = 4\n", 'dscp = "copy"\npriority = 2', 46, 4),
                ("priority = 4\n", 'dscp = "af41"', 34, 4),
                ("", "", 0, 0),
            ]:
                here.file.write_text(HEAD + listener("t", tcp, more) + up + prioritized)
                assert (await here.steward.reload("test"))["problems"] == []
                with socket.socket() as client:
                    client.setsockopt(IPPROTO_IP, socket.IP_TOS, 46 << 2)
                    client.connect(here.socket("t").getsockname())
                    flow = await here.next_flow()
                    assert flow.original.socket.getsockopt(SOL_SOCKET, 12) == priority
                    assert flow.reply.socket.getsockopt(IPPROTO_IP, socket.IP_TOS) == copied << 2


async def test_what_was_set_is_taken_back_when_a_later_step_fails(tmp_path: Path) -> None:
    tcp = f"tcp://127.0.0.1:{free_port()}"
    async with town(tmp_path, listener("t", tcp)) as here:
        changed = listener("t", tcp, "[listener.t.tcp]\nnodelay = false\n")
        answer = await here.reload(changed, listener("x", "tcp://192.0.2.1:80"))
        assert len(answer["problems"]) == 1
        assert here.socket("t").getsockopt(IPPROTO_TCP, TCP_NODELAY) == 1


async def test_names_may_be_exchanged_and_sockets_stay(tmp_path: Path) -> None:
    one, two = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    async with town(tmp_path, listener("a", one), listener("b", two)) as here:
        a, b = here.socket("a"), here.socket("b")
        with socket.create_connection(a.getsockname()) as waiting:  # noqa: TID251
            assert (await here.reload(listener("a", two), listener("c", one)))["reloaded"]
            assert (here.socket("a"), here.socket("c")) == (b, a)
            while not (rows := (await here.house.worker.counters())["listeners"]) or not any(
                row["opened"] for row in rows
            ):
                await trio.sleep(0.002)
            assert waiting.fileno() >= 0


@pytest.mark.parametrize("key", ["dual_stack = true", "[listener.w.tcp]\nmptcp = true"])
async def test_a_stream_socket_gives_way_to_one_at_its_own_address(
    tmp_path: Path, key: str
) -> None:
    listen = f"tcp://[::]:{free_port()}"
    async with town(tmp_path, listener("w", listen)) as here:
        before = here.socket("w")
        answer = await here.reload(listener("w", listen, key))
        if "no Multipath TCP" in str(answer["problems"]):
            pytest.skip("this kernel has no Multipath TCP")
        assert answer["problems"] == []
        assert here.socket("w") is not before
        assert before.fileno() == -1


async def test_options_are_set_on_a_living_socket_of_multipath_tcp(tmp_path: Path) -> None:
    """It has no TCP_USER_TIMEOUT, which is no matter to who has not asked for one."""
    listen = f"tcp://127.0.0.1:{free_port()}"
    tcp = "[listener.w.tcp]\nmptcp = true\n"
    async with town(tmp_path, listener("w", listen)) as here:
        answer = await here.reload(listener("w", listen, tcp))
        if "Multipath TCP" in str(answer["problems"]):
            pytest.skip("this kernel has no Multipath TCP")
        before = here.socket("w")
        answer = await here.reload(listener("w", listen, f'{tcp}keepalive_idle = "75s"'))
        assert answer["problems"] == []
        assert here.socket("w") is before
        assert before.getsockopt(IPPROTO_TCP, TCP_KEEPIDLE) == 75


async def test_the_file_of_a_unix_socket_comes_and_goes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    async with town(tmp_path, listener("x", f"unix://{one}")) as here:
        mode = listener("x", f"unix://{one}", 'mode = "0600"')
        assert (await here.reload(mode))["reloaded"]
        assert one.stat().st_mode & 0o777 == 0o600
        assert (await here.reload(listener("x", f"unix://{two}")))["reloaded"]
        assert not one.exists()
        assert two.is_socket()
        failed = await here.reload(
            listener("x", f"unix://{one}"), listener("y", "tcp://192.0.2.1:80")
        )
        assert failed["problems"]
        assert not one.exists()
    assert not two.exists()


async def test_reloads_are_done_one_after_the_other_and_only_so_many_wait(tmp_path: Path) -> None:
    async with town(tmp_path, WEB) as here:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await here.steward.reload("test"))

        async with trio.open_nursery() as nursery:
            for _ in range(WAITING_MAX + 3):
                nursery.start_soon(ask)
        refused = [answer for answer in answers if answer["problems"]]
        assert len(refused) == 2
        assert "waiting already" in refused[0]["problems"][0]


async def test_who_leaves_while_it_is_prepared_changes_nothing(tmp_path: Path) -> None:
    async with town(tmp_path, WEB) as here:
        config = here.house.config
        here.file.write_text(HEAD + WEB + "[engine]\nrecent = 5\n" + UPSTREAM)
        with trio.CancelScope() as scope:
            scope.cancel()
            await here.steward.reload("test")
        assert here.house.config is config
        assert (await here.steward.reload("test"))["lines"] == ["~ engine.recent: 1000 -> 5"]


@pytest.mark.parametrize("file", [None, "-"])
async def test_without_a_file_there_is_nothing_to_reload(tmp_path: Path, file: str | None) -> None:
    async with town(tmp_path, WEB) as here:
        answer = await Steward(here.house, file).reload("test")
        assert "came from no file" in answer["problems"][0]


async def test_nothing_is_reloaded_while_it_stops(tmp_path: Path) -> None:
    async with town(tmp_path, WEB) as here:
        here.house.is_stopping = True
        assert "stopping" in (await here.reload(WEB))["problems"][0]


async def test_a_datagram_socket_does_not_give_way_and_says_so(tmp_path: Path) -> None:
    port = free_port()
    async with town(tmp_path, listener("u", f"udp://127.0.0.1:{port}")) as here:
        answer = await here.reload(listener("u", f"udp://0.0.0.0:{port}"))
        (problem,) = answer["problems"]
        assert problem.startswith(f"listener.u: cannot listen on udp://0.0.0.0:{port}: a socket of")
        assert await here.listening() == {"u": f"127.0.0.1:{port}"}
