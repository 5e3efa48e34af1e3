"""Listening sockets that share an address, one for each worker, and how clients are divided.

With SO_REUSEPORT several sockets have one address, and the kernel chooses one for each connection
or datagram. The program of ``proxy.core.steering`` chooses by the source alone. What is built on
was found out by experiment (Linux 6.18; tests/control/test_steering.py repeats it):

- The program's answer is a member's index: the order in which datagram sockets were bound, and in
  which TCP sockets began to *listen*. It runs for the whole group, whichever member it was set on.
- When a member closes, the last takes its index, and a new one becomes the last. While an index is
  nobody's, the kernel divides its clients by a hash that counts the port. So **a group never loses
  a member**: the supervisor keeps every socket open. While its worker is away, what comes in waits
  in its queue; nobody else gets it. With fewer workers the last members get nothing more, by the
  program, and what is in their queues belongs to one of those there are; with more the group grows.
- A TCP socket joins when it listens, if it and the others have SO_REUSEPORT by then; one that has
  begun to listen without it keeps any other out, and is joined if it is set afterwards.
- Anyone of the same user who binds with SO_REUSEPORT joins a group, also by mistake: a second
  sockpair would take half of the clients. Two that only bind with SO_REUSEADDR, and set
  SO_REUSEPORT before they listen, join as well. So the first member binds, and listens, *without*
  it: the kernel tells whether the address is in use, once and for all. A program that insists on
  SO_REUSEPORT can still come in behind us; it is the same user's, and gets no index (it is last).
- While a group is not complete, some indices are nobody's. A socket filter keeps everything away
  from its members meanwhile: a SYN is sent again after a second, and a datagram is lost, as it
  would have been a moment earlier. So no client is ever met by the wrong worker, nor before its
  group is whole.
- A kernel may keep socket filters for CAP_NET_ADMIN, which we do not need for anything else (the
  one program that steers is free for all). Without the filter a client of the group's first
  moments may be served by another worker than it would be later; nothing else is lost.
- A closing TCP socket resets what waits in its queue (net.ipv4.tcp_migrate_req is 0).

Not everything can be divided: see ``lone_reason``. Known, and left: a broadcast to a wildcard is
delivered to every member, so where it is refused it counts once for each.

Source: socket(7) SO_REUSEPORT, SO_ATTACH_REUSEPORT_CBPF (Linux 4.5), SO_ATTACH_FILTER;
net/core/sock_reuseport.c, inet_reuseport_add_sock in net/ipv4/inet_hashtables.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from ctypes import addressof, create_string_buffer
from enum import Enum, auto
from socket import SO_REUSEPORT, SOL_SOCKET
from socket import socket as Socket
from typing import TYPE_CHECKING, Final, TypeAlias

from proxy.core.address import Transport
from proxy.core.steering import RETURN_K, Instruction, encode, steering_program

if TYPE_CHECKING:
    from proxy.config.model import Listener
    from proxy.config.values import ListenAddress

SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
SO_DETACH_FILTER: Final = 27
SO_ATTACH_REUSEPORT_CBPF: Final = 51

SOCK_FPROG: Final = struct.Struct("@HP")  # number of instructions, where they are

NOTHING: Final = (Instruction(RETURN_K, 0, 0, 0),)
"""A socket filter that lets nothing in."""


class Share(Enum):
    """How a socket has its address."""

    ALONE = auto()
    FIRST = auto()  # of a group
    NEXT = auto()


Bind: TypeAlias = Callable[["ListenAddress", Share], Socket]
"""Binds one socket, and has it listen; see ``before_bind`` and ``after_listen``."""


def lone_reason(listener: Listener) -> str | None:
    """Why this listener has one socket, and so one worker, however many there are; None if not."""
    if listener.listen.transport.is_unix:
        return "the name of a Unix socket is one socket's"
    if listener.broadcast or listener.multicast:
        return "every socket of a group gets a copy of a broadcast or multicast datagram"
    if listener.tcp.mptcp:
        return "the kernel does not steer Multipath TCP: EOPNOTSUPP"
    if listener.transparent and listener.listen.transport is Transport.UDP:
        return "TPROXY looks for a datagram's socket without its header, and divides by port too"
    return None


def steered_by(listener: Listener) -> tuple[int, int]:
    """How many bits of an address, of IPv4 and of IPv6, name a client's worker: its source's."""
    per_source = listener.limits.per_source
    return per_source.prefix_v4, per_source.prefix_v6


def program_of(listener: Listener, workers: int) -> tuple[Instruction, ...]:
    """The program by which a listener's clients are divided, so that a source has one worker."""
    return steering_program(workers, *steered_by(listener))


def bind_group(
    bind: Bind, listen: ListenAddress, workers: int, program: Sequence[Instruction]
) -> list[Socket]:
    """Bind an address once for each worker; the caller owns the sockets, and keeps all open.

    Args:
        bind: binds one.
        listen: the address; with port 0 the first socket chooses, and the others follow.
        workers: how many sockets, in the order of the program's answers; two at least.
        program: names the socket for a packet.

    Raises:
        OSError: one could not be bound, or the kernel does not steer; nothing is left open then.

    """
    assert workers > 1, workers
    with ExitStack() as undo:
        first = undo.enter_context(bind(listen, Share.FIRST))
        same = listen._replace(port=first.getsockname()[1])
        further = (undo.enter_context(bind(same, Share.NEXT)) for _ in range(workers - 1))
        members = [first, *further]
        attach(first, program)
        for member in members:
            let_in(member)
        undo.pop_all()
    return members


def grow_group(
    bind: Bind,
    listen: ListenAddress,
    members: Sequence[Socket],
    workers: int,
    program: Sequence[Instruction],
) -> list[Socket]:
    """Bind an address once more for each further worker; the caller owns the new sockets.

    Args:
        bind: binds one.
        listen: the address.
        members: that there are: a group, or one that was alone.
        workers: how many there shall be.
        program: of those there are, by which clients are divided until another is attached.

    Raises:
        OSError: one could not be bound, or the kernel does not steer; none is left open then.

    """
    first = members[0]
    same = listen._replace(port=first.getsockname()[1])
    with ExitStack() as undo:
        after_listen(first, Share.FIRST)
        new = [undo.enter_context(bind(same, Share.NEXT)) for _ in range(workers - len(members))]
        attach(first, program)
        for member in new:
            let_in(member)
        undo.pop_all()
    return new


def before_bind(socket: Socket, share: Share) -> None:
    """Prepare a socket for how it has its address."""
    if share is not Share.ALONE:
        with suppress(PermissionError):
            _set_program(socket, SO_ATTACH_FILTER, NOTHING)
    if share is Share.NEXT:
        socket.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)


def after_listen(socket: Socket, share: Share) -> None:
    """Let others join the first, now that it is certain to have been alone."""
    if share is Share.FIRST:
        socket.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)


def attach(member: Socket, program: Sequence[Instruction]) -> None:
    """Have the kernel steer by this program, in the place of any before, in the member's group.

    Raises:
        OSError: EINVAL, it has no group yet; EOPNOTSUPP, it is a socket of Multipath TCP.

    """
    _set_program(member, SO_ATTACH_REUSEPORT_CBPF, program)


def let_in(member: Socket) -> None:
    """Take away what ``before_bind`` keeps its clients out with."""
    with suppress(FileNotFoundError):  # there is none
        member.setsockopt(SOL_SOCKET, SO_DETACH_FILTER, 0)


def _set_program(socket: Socket, option: int, program: Sequence[Instruction]) -> None:
    """Set an option whose value is ``struct sock_fprog``; the kernel copies the program."""
    code = create_string_buffer(encode(program))
    socket.setsockopt(SOL_SOCKET, option, SOCK_FPROG.pack(len(program), addressof(code)))
