"""An upgrade: a successor is started while everything runs, and takes over when it is ready.

The new process gets one end of a wire (``engine.wire``) in the environment, see ``newcomer``; by it
go all listening sockets, those of the admin too, and a channel to each worker (``succession``).
Until it says that it is ready nothing has been given away: whatever it dies of, everything here
goes on. It is given ``READY`` seconds. It knows only the workers that were there when it began: so
all must be then, and still be there when it is ready, themselves or their standbys.

Then we stand down: nothing is changed here any more, nor ordered, and the service manager hears
whose the service is. It is told to go on, and takes the flows over from our workers, and what was
ordered and counted. When it has, we let nobody in any more by the admin's sockets, and close the
wire; only then it does. So nobody is told by the one what the other knows better, and no order is
given to one that does not stay.

If it dies in the middle of that we serve again, and our workers take back what it had got; see
``engine.handover.custody``. They do so until it has told them that it is settled, which it does
last: when we have heard that it is done, and it has heard that we know. If it dies between the two
we are out of office, so what our workers took back drains.

What cannot go drains here, and we end when it has.

Not the LISTEN_FDS protocol of systemd: that wants descriptors from 3 on, where ours are, and the
process id of who is not there yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog
import trio

from proxy.config.load import STDIN
from proxy.control.inherited import ADMIN_HTTP, ADMIN_SOCKET
from proxy.control.newcomer import PREDECESSOR, VERSION
from proxy.control.predecessor import Total
from proxy.control.store import channel_label, labels
from proxy.control.unix import UnixListenSocket
from proxy.engine.handover.succession import Succession, channel
from proxy.engine.specs import EVERYTHING
from proxy.engine.wire import Wire, WireError, wire_pair
from proxy.engine.worker import Worker

if TYPE_CHECKING:
    from socket import SocketType
    from socket import socket as Socket

    from proxy.control.crew import Crew
    from proxy.control.house import House
    from proxy.engine.port import UpgradeAnswer

READY: Final = 60.0
"""Seconds until the new process has to be ready, which costs nobody anything: so many that it comes
up on a machine that is busy with the flows themselves."""

DONE: Final = 120.0
"""Seconds for it to take everything over; each step of that has bounds of its own."""

REPLACED: Final = 20.0
"""Seconds for a worker to be there again; one that hangs is replaced within ``crew.HUNG``."""

CHECK: Final = 30.0
"""Seconds for the new version to read the file."""

LOGGED: Final[tuple[Literal["pid", "version", "flows", "stayed", "pause"], ...]] = (
    "pid",
    "version",
    "flows",
    "stayed",
    "pause",
)

COMING_BACK: Final = 5.0
"""Seconds until our workers have what a dead successor had got: its own workers end when they miss
it, and ours take everything back then."""

LETTING_GO: Final = 3
"""Turns of the scheduler until the admin's sockets are let go, once that is wanted: one to hear of
it, one to stop, and one to spare."""

LINES_MAX: Final = 100
"""Problems that are passed on."""

log = structlog.get_logger()


class UpgradeError(Exception):
    """The successor did not take over; everything goes on here.

    Attributes:
        problems: why, one line for people each.

    """

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


NOTHING: Final = Total()


class Upgrader:
    """Starts successors of a house.

    Args:
        house: that is at work.
        file: where its configuration came from; None if from no file.

    """

    def __init__(self, house: House, file: str | None) -> None:
        self._house = house
        self._file = file
        self._turn = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._succession: Succession | None = None  # of the worker in this process
        self._known = frozenset[int]()  # channels of workers that the new process knows

    async def run(self) -> None:
        """Keep what goes on after an upgrade going, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    async def upgrade(self, by: str, *, dry_run: bool = False) -> UpgradeAnswer:
        """Start the program anew, and leave everything to that.

        Args:
            by: who asks, for the log.
            dry_run: only have the new version check the file.

        """
        try:
            return await self._begin(by, dry_run=dry_run)
        except UpgradeError as error:
            problems = list(error.problems[:LINES_MAX])
            if not dry_run:
                log.error("upgrade_failed", by=by, problems=problems, remedy="all goes on here")
            return _answer(dry_run=dry_run, problems=problems)

    async def _begin(self, by: str, *, dry_run: bool) -> UpgradeAnswer:
        if self._turn.locked():
            raise UpgradeError("an upgrade is under way already; wait for it to end")
        async with self._turn:
            await self._check()
            answer = _answer(dry_run=True)
            if not dry_run:
                log.info("upgrade_begun", by=by)
                with trio.CancelScope(shield=True):
                    answer = await self._upgrade()
            return answer

    async def _check(self) -> None:
        """Have the program, as it is installed now, read the file."""
        if self._house.is_stopping:
            raise UpgradeError("sockpair is stopping, or has a successor already")
        if self._file is None or self._file == STDIN:
            raise UpgradeError("the configuration came from no file; name one with -c to upgrade")
        command = _command("check")
        try:
            with trio.fail_after(CHECK):
                done = await trio.run_process(
                    command, capture_stdout=True, capture_stderr=True, check=False
                )
        except OSError as error:
            raise UpgradeError(f"{command[0]} cannot be started: {error.strerror}") from error
        except trio.TooSlowError as error:
            text = f"{' '.join(command)} has not ended within {CHECK:g} s"
            raise UpgradeError(text) from error
        if done.returncode:
            raise UpgradeError(*done.stderr.decode(errors="replace").splitlines())

    async def _upgrade(self) -> UpgradeAnswer:
        wire, theirs = wire_pair()
        with closing(wire), ExitStack() as ours:
            with theirs:
                process = await _start(theirs.fileno())
            try:
                ready = await self._until_ready(wire, process, ours)
            except UpgradeError:
                await _end(process)
                raise
            total = _total(await self._give_way(wire, process))
            self._house.hand_on()
            for _ in range(LETTING_GO):
                await trio.lowlevel.checkpoint()
        assert self._nursery is not None
        self._nursery.start_soon(self._outlive, process)
        answer = _answer(pid=process.pid, version=str(ready.get("program")), total=total)
        log.info("upgraded", **{key: answer[key] for key in LOGGED})
        return answer

    async def _outlive(self, process: trio.Process) -> None:
        """Have what is here drain if the successor dies, who may not have told our workers to."""
        if await process.wait():
            await trio.sleep(COMING_BACK)
            log.error("successor_died", pid=process.pid, remedy="what is left here drains")
            await self._house.drain(EVERYTHING)

    async def _until_ready(
        self, wire: Wire, process: trio.Process, ours: ExitStack
    ) -> dict[str, Any]:
        """Give the new process everything that it may need, and wait until it is ready."""
        await self._house.entrust()
        await self._wait_for_workers()
        sockets = self._bequest(ours)
        notifier = self._house.notifier
        bequest = {
            "version": VERSION,
            "names": [name for name, _ in sockets],
            "notify": notifier.address,
            "watchdog": notifier.watchdog,
        }
        try:
            with trio.fail_after(READY):
                files = [socket.fileno() for _, socket in sockets]
                await wire.send(json.dumps(bequest).encode(), files, whole=False)
                return await _hear(wire, process, "ready")
        except trio.TooSlowError as error:
            text = f"the new process was not ready within {READY:g} s, and was ended"
            raise UpgradeError(f"{text}; its log may tell why") from error
        except WireError as error:
            raise UpgradeError("the new process takes nothing; is it an older version") from error

    async def _wait_for_workers(self) -> None:
        """Wait until all are there: of one that is just replaced the new process would not know."""
        worker = self._house.worker
        if not isinstance(worker, Worker):
            with trio.move_on_after(REPLACED) as waiting:
                await worker.wait_whole()
            if waiting.cancelled_caught:
                raise UpgradeError("a worker is not running, and its log may tell why")
            self._known = _channels_of(worker)

    def _bequest(self, ours: ExitStack) -> list[tuple[str, SocketType]]:
        """All that goes to a successor, by the names that it knows it by."""
        house = self._house
        sockets: list[tuple[str, SocketType]] = [
            pair
            for name, group in house.open_sockets().items()
            for pair in zip(labels(name, len(group)), group, strict=True)
        ]
        admin = [
            *([ADMIN_SOCKET] if house.config.admin.socket else []),
            *([ADMIN_HTTP] if house.config.admin.http is not None else []),
        ]
        sockets += zip(admin, house.admin, strict=True)
        sockets += house.heritage.channels()
        if not isinstance(house.worker, Worker):
            return sockets + [(channel_label(pid), end) for pid, end in house.worker.channels()]
        end, theirs = channel()
        ours.callback(end.close)
        assert self._nursery is not None
        self._nursery.start_soon(self._answer, Succession(theirs, house.worker, (0, 1)))
        return [*sockets, (channel_label(os.getpid()), end)]

    async def _answer(self, succession: Succession) -> None:
        """Answer a successor for the worker that lives in this process."""
        house = self._house
        self._succession = succession
        succession.estate = await house.estate()
        succession.pace = house.pace
        async with trio.open_nursery() as nursery:
            nursery.start_soon(succession.run)
            await succession.wait_ended()
            house.released.set()
            nursery.cancel_scope.cancel()

    async def _give_way(self, wire: Wire, process: trio.Process) -> dict[str, Any]:
        """Stand down, have the new process take over, and return what it says of that."""
        house = self._house
        if house.is_stopping:
            await _end(process)
            raise UpgradeError("sockpair was told to stop meanwhile, and does")
        if not isinstance(house.worker, Worker) and _channels_of(house.worker) != self._known:
            await _end(process)
            raise UpgradeError("a worker has ended meanwhile; ask for the upgrade again")
        await house.stand_down()
        if self._succession is not None:
            self._succession.estate = await house.estate()
        kept = {name: tuple(map(_duplicate, group)) for name, group in house.open_sockets().items()}
        house.notifier.main_process(process.pid)
        try:
            with trio.fail_after(DONE):
                await wire.send(b'{"go": true}')
                report = await _hear(wire, process, "done")
        except (UpgradeError, WireError, trio.TooSlowError) as error:
            await _end(process)
            house.notifier.main_process(os.getpid())
            await house.open_again(kept)
            raise UpgradeError(
                f"the new process ended while it took over: {error}; its flows are taken back"
            ) from error
        for socket in (socket for group in kept.values() for socket in group):
            socket.close()
        return report


def _channels_of(crew: Crew) -> frozenset[int]:
    """The channels of workers, by their inodes: a standby has that of its worker, another pid."""
    return frozenset(os.fstat(end.fileno()).st_ino for _, end in crew.channels())


def _duplicate(socket: Socket) -> Socket:
    """The same socket, with its file."""
    made = socket.dup()
    if isinstance(made, UnixListenSocket) and isinstance(socket, UnixListenSocket):
        made.file = socket.file
    return made


async def _hear(wire: Wire, process: trio.Process, word: str) -> dict[str, Any]:
    """Wait for a word of the new process, and return what belongs to it.

    Raises:
        UpgradeError: it has failed, or ended.

    """
    try:
        message = await wire.receive()
        said = json.loads(message.body)
    except (WireError, ValueError) as error:
        with trio.move_on_after(1.0):
            await process.wait()
        raise UpgradeError(f"the new process ended ({process.returncode}), see its log") from error
    if "failed" in said:
        raise UpgradeError(*map(str, said["failed"]))
    if not isinstance(said.get(word), dict):
        raise UpgradeError(f'the new process says {said}, not "{word}"')
    found: dict[str, Any] = said[word]
    return found


def _total(said: dict[str, Any]) -> Total:
    """What the new process says of its taking over; it has done so, whatever it says."""
    try:
        return Total(int(said["flows"]), int(said["stayed"]), float(said["pause"]))
    except (KeyError, TypeError, ValueError):
        return NOTHING


def _command(verb: str) -> list[str]:
    """The command that this process was started by, with another verb."""
    arguments = sys.orig_argv[1:]
    place = arguments.index("run")
    return [sys.executable, *arguments[:place], verb, *arguments[place + 1 :]]


async def _start(fd: int) -> trio.Process:
    return await trio.lowlevel.open_process(
        _command("run"),
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        env={**os.environ, PREDECESSOR: str(fd)},
    )


async def _end(process: trio.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _answer(
    *,
    dry_run: bool = False,
    problems: list[str] | None = None,
    pid: int = 0,
    version: str = "",
    total: Total = NOTHING,
) -> UpgradeAnswer:
    return {
        "upgraded": bool(pid),
        "dry_run": dry_run,
        "problems": problems or [],
        "pid": pid,
        "version": version,
        "flows": total.flows,
        "stayed": total.stayed,
        "pause": total.pause,
    }
