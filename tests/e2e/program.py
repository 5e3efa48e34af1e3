"""Real programs: started for one test, ready before it goes on, stopped by their own pid.

Each program writes its standard output and error to files of its own, which are quoted when it
does not become ready. It leads a session of its own, so that stopping it for good takes its
children along and nothing else.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from random import SystemRandom
from typing import Final, TypeAlias

import trio

from tests.conftest import PLACES
from tests.e2e.patience import PATIENCE, until

Command: TypeAlias = Sequence[str | Path]

ROOT: Final = Path(__file__).parents[2]
PORTS: Final = count(SystemRandom().randrange(12_000, 28_000))
"""Below the ports that the kernel gives to outgoing connections, so that none of these takes one
between the moment it is found free and the moment it is used."""


def peer(command: str) -> str:
    """The path of a real program; the test must name it in its mark ``peers``."""
    path = shutil.which(command, path=PLACES)
    assert path is not None, f"{command} is not installed, and the test's mark does not name it"
    return path


def free_port() -> int:
    """A port that nobody holds, for TCP and UDP, IPv4 and IPv6."""
    return next(port for port in PORTS if _is_free(port))


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                try:
                    probe.bind((host, port))
                except OSError:
                    return False
    return True


class Program:
    """A program that runs, or has run."""

    def __init__(self, process: trio.Process, output: Path, errors: Path) -> None:
        self.process = process
        self.output = output
        self.errors = errors

    @property
    def pid(self) -> int:
        return self.process.pid

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code, negative for a deadly signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        with trio.move_on_after(PATIENCE):
            return await self.process.wait()
        raise AssertionError(f"{self.process.args!r} did not end after {number.name}")

    async def kill(self) -> None:
        """End it, with all its children, whatever it is doing."""
        with trio.CancelScope(shield=True):
            if self.process.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)
            await self.process.wait()

    def story(self) -> str:
        """All that it said, to be read when something is wrong."""
        return self.output.read_text(errors="replace") + self.errors.read_text(errors="replace")


@asynccontextmanager
async def program(
    command: Command,
    folder: Path,
    ready: Callable[[], bool | Awaitable[bool]],
    *,
    name: str,
) -> AsyncIterator[Program]:
    """Start a program, wait until it is ready, and stop it in the end."""
    started = await start(command, folder, name=name)
    try:
        await _await_ready(started, ready, name)
        yield started
        if started.process.poll() is None:
            await started.stop()
    finally:
        await started.kill()


async def start(
    command: Command, folder: Path, *, name: str, pass_fds: Collection[int] = ()
) -> Program:
    """Start a program and no more; whoever calls this must end it."""
    output, errors = folder / f"{name}.out", folder / f"{name}.err"
    with output.open("wb") as out, errors.open("wb") as err:
        process = await trio.lowlevel.open_process(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=ROOT,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    return Program(process, output, errors)


async def _await_ready(
    started: Program, ready: Callable[[], bool | Awaitable[bool]], name: str
) -> None:
    async def look() -> bool:
        if started.process.poll() is not None:
            raise AssertionError(f"{name} ended before it was ready:\n{started.story()}")
        answer = ready()
        return answer if isinstance(answer, bool) else await answer

    try:
        await until(look, f"{name} to be ready")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{started.story()}") from None


async def output_of(*command: str | Path, status: int | None = 0) -> str:
    """Run a program to its end and return what it printed; it must end with this status."""
    with trio.fail_after(6 * PATIENCE):
        done = await trio.run_process(
            [str(part) for part in command],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=ROOT,
        )
    said = done.stdout.decode() + done.stderr.decode()
    assert status is None or done.returncode == status, f"{command}: {done.returncode}\n{said}"
    return done.stdout.decode()


def accepts(port: int, host: str = "127.0.0.1") -> Callable[[], Awaitable[bool]]:
    """A condition: somebody accepts connections there."""

    async def look() -> bool:
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError:
            return False
        await stream.aclose()
        return True

    return look


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
