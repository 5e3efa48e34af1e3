"""Standard descriptors that whoever started us had closed (``sockpair run 2>&-``, small launchers).

Left as they are, the first sockets and files that we open would get their numbers, and Python has
None in the place of the stream: what is written to standard error would go to whatever has its
number. So they are filled before anything else is opened, for our children too: input with one
that has ended, error with one that takes everything. Output gets one that cannot be written to: it
is the product of a command, which must not believe that somebody got it.
"""

from __future__ import annotations

import os
import sys
from typing import Final

FILLINGS: Final = (
    ("stdin", os.O_RDONLY, "r"),
    ("stdout", os.O_RDONLY, "w"),
    ("stderr", os.O_WRONLY, "w"),
)
"""By number: the stream, how what fills it is opened, and what the stream is for."""


def fill_standard_descriptors() -> None:
    """Fill those of the three that are closed; the others are left alone."""
    for fd, (name, flags, mode) in enumerate(FILLINGS):
        if getattr(sys, name) is None and not _is_open(fd):
            taken = os.open(os.devnull, flags)  # the lowest that is free: this one
            os.set_inheritable(taken, True)
            setattr(sys, name, os.fdopen(fd, mode))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
