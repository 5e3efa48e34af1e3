"""Programs of the benchmark: pinned to cores, started until ready, stopped by their own pid.

Each leads a session of its own. That is how its processes are found when their CPU is added up,
and how stopping it takes its children along and nothing else. All files are in one folder that the
caller removes.

Waiting is for a condition, with a deadline; nothing here waits for a time to pass.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from random import SystemRandom
from typing import Final, TypeAlias

import trio

PATIENCE: Final = 20.0
"""Seconds until a program that does not become ready, or does not stop, is given up."""

LOOK_AGAIN: Final = 0.02
"""Seconds between two looks at a condition."""

PAYLOAD: Final = b"sockpair" * 8
"""What probes and ping-pong loads send; the echoing origins expect exactly so many bytes."""

LOCAL: Final = "127.0.0.1"

Command: TypeAlias = Sequence[str | Path]
Cores: TypeAlias = Collection[int]

_ports: Final = count(SystemRandom().randrange(12_000, 28_000))
# Below the ports that the kernel gives to outgoing connections, so that none of these takes one
# between the moment it is found free and the moment it is used.


class ProgramError(Exception):
    """A program did not do what it was started for; the text quotes what it said."""


class Program:
    """A program that runs. Stopped by ``running``, which made it."""

    def __init__(self, process: trio.Process, output: Path, name: str) -> None:
        self.process = process
        self.output = output
        self.name = name

    @property
    def pid(self) -> int:
        """Its process, its process group and its session."""
        return self.process.pid

    def said(self) -> str:
        """The end of what it wrote to standard output and error."""
        return self.output.read_text(errors="replace")[-2000:]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds.

        Raises:
            ProgramError: it did not come to hold, or the program ended first.

        """
        with trio.move_on_after(PATIENCE):
            while self.process.poll() is None:
                if await trio.to_thread.run_sync(condition):
                    return
                await trio.sleep(LOOK_AGAIN)
        state = "did not become ready" if self.process.poll() is None else "ended"
        raise ProgramError(f"{self.name} {state}; it said:\n{self.said()}")

    async def stop(self) -> None:
        """Ask it to end, and see to it that nothing of it is left."""
        with trio.CancelScope(shield=True):
            if self.process.poll() is None:
                self.process.terminate()
            with trio.move_on_after(PATIENCE):
                await self.process.wait()
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self.process.wait()


@asynccontextmanager
async def running(
    command: Command, cores: Cores, folder: Path, name: str, ready: Callable[[], bool]
) -> AsyncIterator[Program]:
    """Start a program on these cores, wait until it is ready, and stop it in the end.

    Raises:
        ProgramError: it did not become ready.

    """
    output = folder / f"{name}.out"
    with output.open("wb") as file:
        process = await trio.lowlevel.open_process(
            pinned(command, cores),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    program = Program(process, output, name)
    try:
        await program.until(ready)
        yield program
    finally:
        await program.stop()


async def output_of(command: Command, cores: Cores, seconds: float) -> str:
    """Run a program to its end on these cores, and return what it printed.

    Raises:
        ProgramError: it failed, or took longer than so many seconds and our patience.

    """
    with trio.move_on_after(seconds + PATIENCE):
        done = await trio.run_process(
            pinned(command, cores), capture_stdout=True, capture_stderr=True, check=False
        )
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
            raise ProgramError(f"{command[0]} ended with {done.returncode}; it said:\n{said}")
        return done.stdout.decode()
    raise ProgramError(f"{command[0]} did not end")


def pinned(command: Command, cores: Cores) -> list[str]:
    """The command that runs another on these cores only, threads included."""
    return ["taskset", "-c", ",".join(map(str, sorted(cores))), *map(str, command)]


def first(command: Command) -> Command:
    """The command that runs another before all ordinary programs of its core, where we may."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return command
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return ["chrt", "--fifo", "1", *command]


def free_port() -> int:
    """A port of the loopback address that nobody holds, for TCP and UDP."""
    return next(port for port in _ports if _is_free(port))


def listens(port: int) -> Callable[[], bool]:
    """A condition: somebody listens for connections there.

    The kernel is asked, because a connection that only looks would be the first flow of a proxy,
    and makes iperf3 close its listening socket for a moment.
    """

    def look() -> bool:
        return is_listening(Path("/proc/net/tcp").read_text(), port)

    return look


def is_listening(table: str, port: int) -> bool:
    """Whether a port has a socket in the state LISTEN in this text of /proc/net/tcp (proc(5))."""
    rows = (line.split() for line in table.splitlines()[1:])
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def echoes(port: int) -> Callable[[], bool]:
    """A condition: a datagram sent there comes back."""

    def look() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(0.2)
            probe.connect((LOCAL, port))
            try:
                probe.send(PAYLOAD)
                return probe.recv(len(PAYLOAD)) == PAYLOAD
            except OSError:
                return False

    return look


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((LOCAL, port))
            except OSError:
                return False
    return True
