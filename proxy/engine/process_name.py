"""What ps(1), top(1), ss(8) and pgrep(1) call our processes; Python would be the name of all.

The service is ``sockpair``, worker N is ``sockpair:N``, and a standby of it ``sockpair:N+`` until
its turn comes. So ``pgrep -x sockpair`` finds no worker, and ``pkill sockpair`` means all.

Source: PR_SET_NAME in prctl(2); /proc/PID/comm in proc(5).
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from threading import get_native_id
from typing import Final

PR_SET_NAME: Final = 15

LONGEST: Final = 15
"""Bytes (TASK_COMM_LEN, without its zero)."""

SERVICE: Final = "sockpair"


def worker_name(index: int, *, standby: bool = False) -> str:
    """What a worker is called, or its standby."""
    return f"{SERVICE}:{index}{'+' if standby else ''}"


def name_process(name: str) -> None:
    """Name this process; who may not has the name it had.

    The name is that of the first thread. It names itself without a descriptor, because a standby
    shares its table with a worker that closes whatever it does not know; from another thread it
    takes one, and then a standby is the last that has the table.
    """
    encoded = name.encode()[:LONGEST]
    if get_native_id() == os.getpid():
        ctypes.CDLL(None).prctl(PR_SET_NAME, encoded, 0, 0, 0)
        return
    with suppress(OSError):
        Path("/proc/self/comm").write_bytes(encoded)
