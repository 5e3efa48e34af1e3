"""Many datagrams a system call: recvmmsg(2) and sendmmsg(2) on memory laid out once.

The arrays of ``struct mmsghdr`` that the kernel reads and writes are one block of bytes, seen
through memoryviews of 32- and 64-bit words; setting a length is an item assignment, three to four
times cheaper than a ctypes attribute. Every pointer in it points into memory that this object
keeps for its whole life.

Layout of ``struct mmsghdr`` on 64-bit Linux, in bytes (socket.h, uapi/linux/socket.h)::

     0 msg_name        8 msg_namelen (u32)   16 msg_iov        24 msg_iovlen
    32 msg_control    40 msg_controllen      48 msg_flags (u32)  56 msg_len (u32)   64 next
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, IPPROTO_UDP
from typing import Final

from proxy.engine.sockaddr import CMSG

BATCH: Final = 64
"""Datagrams a call; beyond this the cost of the call itself no longer shows."""

LARGEST_DATAGRAM: Final = 65535
"""Bytes; no UDP datagram is longer, so none is ever cut."""

NAME_SIZE: Final = 112  # sizeof(struct sockaddr_un), the largest, and its last NUL; rounded up
CONTROL_SIZE: Final = 96  # an original destination of IPv6 and a UDP_GRO message, rounded up
HEADER_SIZE: Final = 64

SOCKADDR_SIZES: Final[dict[int, int]] = {AF_INET: 16, AF_INET6: 28}
"""Bytes of a raw address, where all of a family have the same."""

UDP_GRO: Final = 104  # uapi/linux/udp.h

MSG_DONTWAIT: Final = 0x40
MSG_TRUNC: Final = 0x20

# Offsets in 64-bit and in 32-bit words.
NAME, IOV, IOV_COUNT, CONTROL, CONTROL_LENGTH = 0, 2, 3, 4, 5
NAME_LENGTH, FLAGS, LENGTH = 2, 12, 14

if sys.maxsize < 2**32:  # pragma: no cover
    raise ImportError("sockpair needs 64-bit Linux: the layout of struct mmsghdr is built in")

_libc: Final = ctypes.CDLL(None, use_errno=True)
_recvmmsg: Final = _libc.recvmmsg
_sendmmsg: Final = _libc.sendmmsg
for _call in (_recvmmsg, _sendmmsg):
    _call.restype = ctypes.c_int
_recvmmsg.argtypes = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_int,
    ctypes.c_void_p,
)
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


class DatagramBatch:
    """Room for ``BATCH`` datagrams with their addresses and control messages.

    Attributes:
        data: one writable view of ``LARGEST_DATAGRAM`` bytes for each datagram.
        names: one view of ``NAME_SIZE`` bytes each: the raw socket address.
        controls: one view of ``control_size`` bytes each.
        word: the headers as 32-bit words, 16 for each datagram; at ``LENGTH`` is what was received.
        long: the same as 64-bit words, 8 for each; at ``CONTROL_LENGTH`` are bytes of control.

    Args:
        control_size: bytes of control messages that are taken with a datagram.

    """

    __slots__ = (
        "_address",
        "_addressed",
        "_blank",
        "_control_size",
        "_headers",
        "_iovecs",
        "_memory",
        "_received",
        "controls",
        "data",
        "long",
        "names",
        "word",
    )

    def __init__(self, control_size: int = CONTROL_SIZE) -> None:
        self._control_size = control_size
        self._memory: list[ctypes.Array[ctypes.c_char]] = []
        self.data = self._room(LARGEST_DATAGRAM)
        self.names = self._room(NAME_SIZE)
        self.controls = self._room(control_size)
        headers = memoryview(self._block(BATCH * HEADER_SIZE)).cast("B")
        self.long = headers.cast("Q")
        self.word = headers.cast("I")
        self._address = ctypes.addressof(self._memory[-1])
        self._iovecs = memoryview(self._block(BATCH * 16)).cast("B").cast("Q")
        self._point(ctypes.addressof(self._memory[-1]))
        for index in range(BATCH):
            self.word[16 * index + NAME_LENGTH] = NAME_SIZE
            self.long[8 * index + CONTROL_LENGTH] = control_size
        self._headers = headers
        self._blank = memoryview(bytes(headers))
        self._received = 0
        self._addressed: list[bytes | None] = [None] * BATCH

    def receive(self, fd: int) -> int:
        """Receive what waits on a socket, at most ``BATCH`` datagrams; 0 if there is none.

        Raises:
            OSError: what the socket reports, for example ECONNREFUSED of a connected one.

        """
        written = HEADER_SIZE * self._received  # the kernel wrote what it used over what there is
        self._headers[:written] = self._blank[:written]
        count: int = _recvmmsg(fd, self._address, BATCH, MSG_DONTWAIT, None)
        self._received = max(0, count)
        return count if count >= 0 else _zero_or_raise()

    def names_of(self, family: int) -> Sequence[memoryview]:
        """The raw addresses of received datagrams, as they will stand there, by index."""
        size = SOCKADDR_SIZES.get(family)
        return _NamesAsLong(self) if size is None else [name[:size] for name in self.names]

    def receive_more(self, fd: int, first: int, most: int) -> int:
        """Receive from a connected socket, behind what is prepared; 0 if there is nothing.

        Args:
            fd: the socket.
            first: index of the first datagram; ``first + most`` is at most ``BATCH``.
            most: datagrams at most.

        Raises:
            OSError: what the socket reports.

        """
        for index in range(first, first + most):
            self._addressed[index] = None
            self._iovecs[2 * index + 1] = LARGEST_DATAGRAM
            self.word[16 * index + NAME_LENGTH] = 0
            self.long[8 * index + CONTROL_LENGTH] = self._control_size
        at = self._address + HEADER_SIZE * first
        count: int = _recvmmsg(fd, at, most, MSG_DONTWAIT, None)
        return count if count >= 0 else _zero_or_raise()

    def take_segment(self, index: int) -> int:
        """Take out of a train's control messages how long its datagrams are (udp(7), UDP_GRO).

        Returns:
            Bytes of each, the last of which may be shorter; 0 for a datagram alone.

        """
        control, length = self.controls[index], self.long[8 * index + CONTROL_LENGTH]
        at = 0
        while at + CMSG.size <= length:
            size, level, kind = CMSG.unpack_from(control, at)
            after = at + (size + 7) // 8 * 8
            if (level, kind) == (IPPROTO_UDP, UDP_GRO):
                left = length - (after - at)
                segment = int.from_bytes(control[at + CMSG.size : at + size], "little")
                control[at:left] = bytes(control[after:length])
                self.long[8 * index + CONTROL_LENGTH] = left
                return segment
            at = after
        return 0

    def length(self, index: int) -> int:
        """Bytes of a received datagram."""
        return self.word[16 * index + LENGTH]

    def name(self, index: int) -> bytes:
        """The raw address a datagram came from: a key, and what ``send`` takes."""
        return bytes(self.names[index][: self.word[16 * index + NAME_LENGTH]])

    def control(self, index: int) -> memoryview:
        """The control messages that came with a datagram."""
        return self.controls[index][: self.long[8 * index + CONTROL_LENGTH]]

    def truncated(self, index: int) -> bool:
        """Whether a received datagram was longer than its room."""
        return bool(self.word[16 * index + FLAGS] & MSG_TRUNC)

    def prepare(self, index: int, length: int, name: bytes, control: bytes) -> None:
        """Make a datagram of ``length`` bytes in its room ready to be sent to an address."""
        self._iovecs[2 * index + 1] = length
        if self._addressed[index] is not name:  # each flow has a name of its own
            self._addressed[index] = name
            self.names[index][: len(name)] = name
            self.word[16 * index + NAME_LENGTH] = len(name)
            self.controls[index][: len(control)] = control
            self.long[8 * index + CONTROL_LENGTH] = len(control)

    def prepared(self, index: int) -> int:
        """Bytes of a datagram that was prepared."""
        return self._iovecs[2 * index + 1]

    def send(self, fd: int, first: int, count: int) -> int:
        """Send datagrams ``first`` to ``first + count``; return how many the kernel took.

        Raises:
            OSError: if the first one could not be sent; EAGAIN too.

        """
        sent: int = _sendmmsg(fd, self._address + HEADER_SIZE * first, count, MSG_DONTWAIT)
        if sent < 0:
            _raise()
        return sent

    def send_part(self, fd: int, index: int, start: int, length: int, control: bytes) -> None:
        """Send a part of a datagram that was prepared, as one by itself.

        Raises:
            OSError: it could not be sent.

        """
        self._addressed[index] = None
        self.controls[index][: len(control)] = control
        self.long[8 * index + CONTROL_LENGTH] = len(control)
        data = self._iovecs[2 * index]
        self._iovecs[2 * index] = data + start
        self._iovecs[2 * index + 1] = length
        try:
            self.send(fd, index, 1)
        finally:
            self._iovecs[2 * index] = data

    def _room(self, size: int) -> list[memoryview]:
        block = memoryview(self._block(BATCH * size)).cast("B")
        return [block[size * index : size * (index + 1)] for index in range(BATCH)]

    def _block(self, size: int) -> ctypes.Array[ctypes.c_char]:
        block = ctypes.create_string_buffer(size)
        self._memory.append(block)
        return block

    def _point(self, iovecs: int) -> None:
        """Write the pointers, which never change."""
        data, names, controls = (ctypes.addressof(block) for block in self._memory[:3])
        for index in range(BATCH):
            self._iovecs[2 * index] = data + LARGEST_DATAGRAM * index
            self._iovecs[2 * index + 1] = LARGEST_DATAGRAM
            self.long[8 * index + NAME] = names + NAME_SIZE * index
            self.long[8 * index + IOV] = iovecs + 16 * index
            self.long[8 * index + IOV_COUNT] = 1
            self.long[8 * index + CONTROL] = controls + self._control_size * index


class _NamesAsLong(Sequence[memoryview]):
    """The raw addresses of received datagrams where their lengths differ: of Unix sockets."""

    def __init__(self, batch: DatagramBatch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return BATCH

    def __getitem__(self, index: int) -> memoryview:  # type: ignore[override]
        batch = self._batch
        return batch.names[index][: batch.word[16 * index + NAME_LENGTH]]


def _zero_or_raise() -> int:
    if ctypes.get_errno() == errno.EAGAIN:
        return 0
    return _raise()


def _raise() -> int:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
