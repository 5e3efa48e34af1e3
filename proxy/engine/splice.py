"""Bulk through a pipe: splice(2) moves pages from socket to socket, and no byte is copied by us.

A direction that receives full chunks again and again borrows a pipe and moves its bytes through it,
until it is quiet; then the pipe goes back. For small messages a pipe costs two more system calls
than a copy, so only bulk gets one. Pipes are a budget: who finds none goes on copying.

SPLICE_F_MORE is never said: the kernel would hold back the last bytes for 200 ms.

What lies in a pipe counts as buffered, and as the direction's pending bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.engine.files import FileBudget

PIPES: Final = 64
"""Pipes at once; each is two descriptors and at most ``PIPE_SIZE`` bytes of kernel memory."""

KEPT: Final = 8
"""Pipes kept open for the next who needs one."""

FILES_PER_PIPE: Final = 2

PIPE_SIZE: Final = 256 * 1024
"""Bytes; what any user may ask for (fs.pipe-max-size), and as much as a chunk that is copied."""

FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """A pipe on loan. Owns both descriptors.

    Attributes:
        held: bytes in it.

    """

    __slots__ = ("_in", "_out", "held")

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.held = 0

    @property
    def ends(self) -> tuple[int, int]:
        """Its descriptors: where it is read, and where it is written."""
        return self._out, self._in

    def fill(self, fd: int, most: int = PIPE_SIZE) -> int:
        """Take what a socket has received, at most so much; 0 is its end.

        Raises:
            BlockingIOError: nothing is there.
            OSError: the socket has failed.

        """
        count = os.splice(fd, self._in, most, flags=FLAGS)
        self.held += count
        return count

    def drain(self, fd: int) -> int:
        """Pass on to a socket what the pipe holds, as much as it takes.

        Raises:
            BlockingIOError: it takes nothing now.
            OSError: the socket has failed.

        """
        count = os.splice(self._out, fd, self.held, flags=FLAGS)
        self.held -= count
        return count

    def take_out(self) -> bytes:
        """Read all it holds; a pipe gives what lies in one of its pages at least."""
        parts: list[bytes] = []
        while self.held:
            parts.append(os.read(self._out, self.held))
            self.held -= len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Close both ends; what it holds is gone."""
        os.close(self._out)
        os.close(self._in)


class PipePool:
    """Pipes that nobody uses now, and the budget of those that are out.

    Args:
        files: the budget of descriptors, of which each pipe takes two.

    """

    def __init__(self, files: FileBudget) -> None:
        self._files = files
        self._free: list[Pipe] = []
        self._left = PIPES

    def take(self) -> Pipe | None:
        """Borrow an empty pipe; None when the budget is spent, or the process out of files."""
        if self._free:
            return self._free.pop()
        if not self._left or not self._files.has(FILES_PER_PIPE):
            return None
        try:
            pipe = Pipe()
        except OSError as error:
            if error.errno not in OUT_OF_FILES:
                raise
            return None
        self._left -= 1
        self._files.used += FILES_PER_PIPE
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """End a loan; a pipe that still holds bytes, or that is one too many, is closed."""
        if pipe.held or len(self._free) == KEPT:
            pipe.close()
            self._left += 1
            self._files.used -= FILES_PER_PIPE
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close the pipes that nobody uses."""
        while self._free:
            self._free.pop().close()


OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EPERM, errno.ENOMEM})
"""EPERM: the user's pipes hold as much as they may (pipe(7), fs.pipe-user-pages-soft)."""


def make_nonblocking(socket: Socket) -> None:
    """Let splice on a socket never wait; the socket's own flag decides, not splice's."""
    os.set_blocking(socket.fileno(), False)
