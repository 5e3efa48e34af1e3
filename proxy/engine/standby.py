"""A worker in a process of its own, with a standby: ``proxy.engine.standby FD CHANNEL LINE``.

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

Descriptors are numbers here, not objects: an object that is collected in one process would close
what the other one needs. And a worker that fails ends at once, before anything of it is collected.

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
from typing import Final, NoReturn

from proxy.engine import child
from proxy.engine.borrowed import borrowed
from proxy.engine.executor import Legacy, execute
from proxy.engine.will import Will
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


def main(wire: int, channel: int, line: int) -> NoReturn:
    """Be the worker at the end of a wire, and then each next one of the line, as standby."""
    child.prepare()
    wills: list[Will] = []
    number = 0
    while True:
        wills.append(Will(number))
        number += 1
        ours, theirs = (end.detach() for end in socketpair(AF_UNIX, SOCK_STREAM))
        myself = os.pidfd_open(os.getpid())
        gc.freeze()
        pid = clone()
        if pid:
            announce(line, pid, theirs)
            os.close(theirs)
            keep = {*STANDARD, wire, channel, line, ours, myself}
            legacy = execute(wills[:-1], keep) if len(wills) > 1 else None
            work(wire, channel, wills[-1], legacy)
        if not wait_for_end(myself, ours) or wills[-1].is_over:
            os._exit(ENDED)
        os.close(myself)
        wire = ours
        wills = [will for will in wills if will.is_in_force or will is wills[-1]]


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


def work(wire: int, channel: int, will: Will, legacy: Legacy | None) -> NoReturn:
    """Be a worker to its end; that is in order only when it says so."""
    code = FAILED
    try:
        child.serve(wire, channel, will, legacy)
        will.say_over()
        code = ENDED
    except WireError:  # the supervisor has ended, too
        pass
    except BaseException:  # nothing may be collected: that would close what the standby needs
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
