"""A worker in a process of its own, with a standby.

    python -m proxy.engine.survival.standby INDEX FD CHANNEL LINE

The worker is what ``child`` is. The standby is a second process, cloned before the worker begins,
that shares its table of descriptors (CLONE_FILES, clone(2)): whatever the worker opens later is
open there too, under the same number, and stays open when the worker is killed. So it costs nothing
for each flow, and no client notices. The standby waits for the worker's end, becomes the next
worker, with a standby of its own, and executes the will (see ``will`` and ``executor``).

Both are children of the supervisor (CLONE_PARENT), which learns of each standby by the *line*: a
Unix socket of messages, on which each worker of a line tells the process id of its standby, with
one end of the wire that this will have. The other end stays open in the shared table when a worker
is killed, so the supervisor goes by the end of the process, and not by that of the wire. A standby
whose wire ends is not wanted any more, and ends. One whose worker ended in order says nothing and
ends: the worker has said so in the will.

A standby that ends before its worker is missed by the supervisor, which has the worker clone
another one.

A pipe ends when all of them have: its writing end is in that table only, and never used. The other
end is for predecessors, which take back what they gave us when nobody is left (see ``custody``).

Descriptors are numbers here, not objects: an object that is collected in one process would close
what the other one needs. And a worker that fails ends at once, before anything of it is collected.
But not before its tasks have ended, which close what they hold: so the channel that a worker has is
a duplicate.

Rejected: to send every descriptor to another process as it is opened, which costs 5 microseconds
for each and keeps it open after the flow has ended; and fork(2), which copies the table.

Source: clone(2), pidfd_open(2); PyOS_BeforeFork and others, C API of Python, which is what
``os.fork`` calls around fork(2). No library call is between: glibc's ``clone`` wants a stack.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import select
import signal
import struct
import sys
import traceback
from contextlib import suppress
from socket import AF_UNIX, SOCK_STREAM, socketpair
from threading import Thread
from typing import Final, NoReturn

from proxy.engine import child
from proxy.engine.process_name import name_process, worker_name
from proxy.engine.survival.borrowed import borrowed
from proxy.engine.survival.executor import execute
from proxy.engine.survival.will import NO_FILE, Will
from proxy.engine.wire import WireError, rights

CLONE_FILES: Final = 0x400
CLONE_PARENT: Final = 0x8000

CLONE: Final = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
"""The number of the system call (asm/unistd.h), where its first argument is the flags."""

ANNOUNCEMENT: Final = struct.Struct("=i")
"""What is said on the line: a process id; beside it goes the end of a wire."""

STANDARD: Final = (0, 1, 2)

ENDED: Final = 0
FAILED: Final = 1


def main(index: int, wire: int, channel: int, line: int) -> NoReturn:
    """Be the worker at the end of a wire, and then each next one of the line, as standby."""
    child.prepare()
    Line(index, channel, line).run(wire)


class Line:
    """What the processes of a line have in common, by descriptors and shared memory.

    Args:
        index: of the worker.
        channel: by which a successor comes.
        line: where the supervisor hears of standbys.

    """

    def __init__(self, index: int, channel: int, line: int) -> None:
        self._index = index
        self._channel = channel
        self._line = line
        self._life, self._alive = os.pipe()
        self._wills: list[Will] = []
        self._number = 0
        self._worker = NO_FILE  # of its process
        self._next_wire = NO_FILE  # of the standby

    def run(self, wire: int) -> NoReturn:
        """Be the worker at the end of a wire, and then each next one, as standby."""
        while True:
            name_process(worker_name(self._index))
            self._wills.append(Will(self._number, self._life))
            self._number += 1
            self._worker = os.pidfd_open(os.getpid())
            if not self._clone_standby():
                self._work(wire)
            wire = self._wait_for_turn()

    def renew(self) -> None:
        """Have another standby in place of one that has ended, while the worker works.

        The new one has all of the worker in its memory, and leaves it alone: a thread of its own
        knows nothing of what runs here, Trio least of all.

        Raises:
            OSError: there is no process to be had.

        """
        if self._next_wire != NO_FILE:
            os.close(self._next_wire)
            self._next_wire = NO_FILE
        if self._clone_standby():
            signal.set_wakeup_fd(-1)
            thread = Thread(target=self._stand_by)
            thread.start()
            thread.join()
            os._exit(FAILED)

    def _stand_by(self) -> NoReturn:
        self.run(self._wait_for_turn())

    def _clone_standby(self) -> bool:
        """Clone this process; return whether we are the standby. What is there is never collected.

        Raises:
            OSError: there is no process to be had.

        """
        ours, theirs = (end.detach() for end in socketpair(AF_UNIX, SOCK_STREAM))
        gc.disable()
        try:
            pid = clone()
            if not pid:
                gc.freeze()
                name_process(worker_name(self._index, standby=True))
        except OSError:
            os.close(ours)
            os.close(theirs)
            raise
        finally:
            gc.enable()
        self._next_wire = ours
        if pid:
            announce(self._line, pid, theirs)
            os.close(theirs)
        return not pid

    def _wait_for_turn(self) -> int:
        """Wait, as the standby, until the worker has ended; return the wire of the next one."""
        if not wait_for_end(self._worker, self._next_wire) or self._wills[-1].is_over:
            os._exit(ENDED)
        os.close(self._worker)
        self._wills = [will for will in self._wills if will.is_in_force or will is self._wills[-1]]
        return self._next_wire

    def _work(self, wire: int) -> NoReturn:
        """Be a worker to its end; that is in order only when it says so."""
        code = FAILED
        *former, will = self._wills
        try:
            line = {self._channel, self._line, self._life, self._alive}
            keep = {*STANDARD, *line, wire, self._worker, self._next_wire}
            legacy = execute(former, keep) if former else None
            child.serve(wire, os.dup(self._channel), will, legacy, self.renew)
            will.say_over()
            code = ENDED
        except WireError:  # the supervisor has ended, too
            pass
        except BaseException:  # nothing may be collected: that would close what the standby needs
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)


def clone() -> int:
    """Do as fork(2), but share the table of descriptors, and the parent; return as it does.

    Raises:
        OSError: there is no process to be had, or this is a machine whose call is not known.

    """
    number = CLONE.get(platform.machine())
    if number is None:
        raise OSError(f"clone(2) is not known on {platform.machine()}")
    libc = ctypes.PyDLL(None, use_errno=True)
    python = ctypes.pythonapi
    flags = CLONE_FILES | CLONE_PARENT | signal.SIGCHLD
    python.PyOS_BeforeFork()
    pid = int(libc.syscall(number, flags, 0, 0, 0, 0))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return pid


def announce(line: int, pid: int, wire: int) -> None:
    """Tell the supervisor of a standby; if it is gone, there is nobody to tell."""
    with suppress(OSError), borrowed(line) as socket:
        socket.sendmsg([ANNOUNCEMENT.pack(pid)], rights([wire]))


def wait_for_end(worker: int, wire: int) -> bool:
    """Wait until the worker has ended; false if the supervisor wants no other."""
    events = select.poll()
    events.register(worker, select.POLLIN)
    events.register(wire, 0)  # POLLHUP is always told
    ready = dict(events.poll())
    return wire not in ready


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
