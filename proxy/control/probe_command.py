"""A check by a command of the operator's: exit status 0 is well.

The command learns what it is to look at from its environment, is in a process group of its own, and
is killed with all of it when its time is over. Of what it prints the last line is the reason; the
rest is read and thrown away, so that it never waits for us.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from proxy.control.probes import failed, passed
from proxy.core.printable import printable

if TYPE_CHECKING:
    from proxy.control.probes import Sight
    from proxy.core.health import Result

OUTPUT_MAX: Final = 4096
"""Bytes of output that are kept, the last ones."""

REASON_MAX: Final = 200
"""Characters of the last line."""

LAST_OUTPUT: Final = 0.1
"""Seconds for output to be read once the command has ended; a child of its may hold the pipe."""


@dataclass(frozen=True, slots=True)
class CommandProbe:
    """Run a command.

    Attributes:
        argv: its path and arguments.
        upstream: the endpoint's, which the command is told.
        endpoint: the endpoint, as the configuration has it.

    """

    argv: tuple[str, ...]
    upstream: str
    endpoint: str

    async def run(self, sight: Sight) -> Result:
        """Do it."""
        try:
            process = await trio.lowlevel.open_process(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment(sight),
                start_new_session=True,
            )
        except OSError as error:
            return failed(f'"{self.argv[0]}" cannot be run: {error.strerror}')
        output = _Output()
        try:
            with trio.move_on_after(sight.timeout) as waiting:
                await _finish(process, output)
        finally:
            _kill(process)
            with trio.CancelScope(shield=True):
                await process.wait()
            assert process.stdout is not None
            await trio.aclose_forcefully(process.stdout)
        if waiting.cancelled_caught:
            return failed(f"killed: not done within {sight.timeout:g} s")
        return _judge(process.returncode, output.last_line())

    def _environment(self, sight: Sight) -> dict[str, str]:
        return {
            **os.environ,
            "SOCKPAIR_ADDRESS": sight.address[0],
            "SOCKPAIR_PORT": str(sight.address[1]),
            "SOCKPAIR_UPSTREAM": self.upstream,
            "SOCKPAIR_ENDPOINT": self.endpoint,
        }


class _Output:
    """The end of what a command has printed."""

    def __init__(self) -> None:
        self._kept = b""

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        async for data in stream:
            self._kept = (self._kept + data)[-OUTPUT_MAX:]

    def last_line(self) -> str:
        lines = self._kept.decode("utf-8", "replace").strip().splitlines()
        return printable(lines[-1].strip())[:REASON_MAX] if lines else ""


async def _finish(process: trio.Process, output: _Output) -> None:
    """Wait until the command has ended, and read what it prints."""
    assert process.stdout is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.read, process.stdout)
        await process.wait()
        nursery.cancel_scope.deadline = trio.current_time() + LAST_OUTPUT


def _kill(process: trio.Process) -> None:
    """End the command and all that it has started, unless it has ended by itself."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _judge(status: int | None, said: str) -> Result:
    if status == 0:
        return passed(said or "exit status 0")
    how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
    return failed(f"{how}: {said}" if said else how)
