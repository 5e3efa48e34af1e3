"""Trio's scheduler, as the pump sees it: when the rest of the house needs a turn.

The pump sleeps in its own epoll instance, in place of Trio in its. It may do so only while no
other task could run, and has to wake up when one can. There are three ways to become ready:

* Another task makes it so. Trio tells its instruments of every task that is scheduled, and that
  takes its step; what lies between is ``runnable``. (The statistics do not: they leave out the
  tasks that are yet to take their step in the turn under way.)
* A deadline comes. Trio tells the next one.
* Trio's epoll instance has news: a socket, a thread, a signal. The kernel tells which instance
  that is: ``/proc/self/fdinfo`` lists what each one watches (proc(5)), so while a task waits for a
  descriptor of ours, the instance that watches it is Trio's.
"""

from __future__ import annotations

import os
from pathlib import Path
from stat import S_ISSOCK
from time import monotonic
from typing import Final

import trio

EPOLL_LINK: Final = "anon_inode:[eventpoll]"

FILES: Final = Path("/proc/self/fd")
INFO: Final = Path("/proc/self/fdinfo")

TURNS: Final = 2
"""Of the scheduler, after which a task that was ready before them has surely taken its step."""


class Scheduler(trio.abc.Instrument):
    """Knows when a task other than the pump's is ready to run.

    Attributes:
        runnable: the tasks that are scheduled and have not taken their step.

    """

    def __init__(self) -> None:
        self.runnable: set[trio.lowlevel.Task] = set()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """A task has become ready."""
        self.runnable.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """It runs."""
        self.runnable.discard(task)

    async def find_epoll(self) -> int | None:
        """The descriptor of the instance that Trio waits on; None if it cannot be told.

        After this ``runnable`` is complete, too.
        """
        probe = os.eventfd(0)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, probe)
                for _ in range(TURNS):
                    await trio.lowlevel.checkpoint()
                found = _watcher_of(probe)
                nursery.cancel_scope.cancel()
        finally:
            os.close(probe)
        return found


def next_deadline() -> float:
    """When Trio's next deadline comes, in monotonic seconds; infinite if there is none."""
    return monotonic() + trio.lowlevel.current_statistics().seconds_to_next_deadline


def _watcher_of(fd: int) -> int | None:
    """Which instance watches a descriptor.

    A worker that begins with the sockets of thousands of flows has them stand still meanwhile, and
    to ask for the name of each would take longer than all else: so sockets are left out.
    """
    try:
        with os.scandir(FILES) as entries:
            others = [Path(each.path) for each in entries if not _is_socket(each)]
        instances = [int(path.name) for path in others if _is_epoll(path)]
        return next((each for each in instances if _watches(each, fd)), None)
    except OSError:  # no /proc here
        return None


def _is_socket(entry: os.DirEntry[str]) -> bool:
    try:
        return S_ISSOCK(entry.stat().st_mode)
    except FileNotFoundError:  # it has just been closed
        return True


def _is_epoll(path: Path) -> bool:
    try:
        return str(path.readlink()) == EPOLL_LINK
    except FileNotFoundError:  # the descriptor of the listing itself
        return False


def _watches(epoll: int, fd: int) -> bool:
    """Whether an instance watches a descriptor: it has a line ``tfd: 7 events: ...`` for each."""
    lines = (INFO / str(epoll)).read_text(encoding="ascii").splitlines()
    return any(line.split()[:2] == ["tfd:", str(fd)] for line in lines)
