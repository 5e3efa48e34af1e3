"""Which process of an earlier life has an address that we cannot bind.

A listener of datagrams that moves to another port leaves its socket to its flows, which drain where
they are; back it cannot move before they have ended. Whoever tries is told whom to wait for.

A predecessor that accepts yet may have a socket that is no use to us, since its listener is bound
otherwise now. It has to end before we can bind; but only if it, and nobody else, is in the way: to
end it for an address that a stranger has would cut its flows and help nobody. So we compare by the
number of a socket's inode, which the kernel shows of everybody's and of each process: its own
words would be no proof, and those of an older version have none. Where it cannot be known, since
a process is another user's or may do more than we, nobody is found, and nobody is ended.

Only sockets that take clients count: of streams those that listen, of datagrams those without a
peer. The local ports of flows are the kernel's choice, and go as they come.

Source: proc(5), /proc/net/tcp, udp and unix, /proc/PID/fd; net/ipv4/tcp_ipv4.c and net/unix/
af_unix.c for the columns.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.control.listen import BindError

if TYPE_CHECKING:
    from ipaddress import IPv4Address

NET: Final = Path("/proc/net")
TABLES: Final = (NET / "udp", NET / "udp6")
LOCAL, STATE, INODE = 1, 3, 9
"""Columns of the tables of TCP and UDP."""

TAKES_CLIENTS: Final = {"tcp": "0A", "udp": "07"}
"""TCP_LISTEN, and TCP_CLOSE, which a UDP socket without a peer is in."""

UNIX_KINDS: Final = {"unix": "0001", "unixgram": "0002"}
UNIX_LISTENS: Final = 0x10000
"""__SO_ACCEPTCON: of a stream, what accepted connections with the same path have not."""


class Holder(NamedTuple):
    """A socket that has an address.

    Attributes:
        inode: its number.
        is_sure: whether two of this kind exclude each other; an IPv6 wildcard may leave IPv4 alone.

    """

    inode: str
    is_sure: bool


def in_the_way(error: BindError, pids: Iterable[int], ours: Collection[int]) -> set[int]:
    """The processes among these that have to end so that we could be bound; none if it is no use.

    Args:
        error: why we could not be bound.
        pids: of processes of earlier lives.
        ours: the inodes of sockets that are ours already, and so nobody's fault.

    """
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE:
        return set()
    own = {str(inode) for inode in ours}
    holders = [each for each in _holders_of(error.value) if each.inode not in own]
    files = {pid: set(_files_of(pid)) for pid in pids}
    theirs = {each.inode for each in holders if _has(set().union(*files.values()), each.inode)}
    if any(each.is_sure and each.inode not in theirs for each in holders):
        return set()
    return {pid for pid, links in files.items() if any(_has(links, inode) for inode in theirs)}


def _has(links: Collection[str], inode: str) -> bool:
    return f"socket:[{inode}]" in links


def _holders_of(value: str) -> Iterator[Holder]:
    """The sockets that take clients where somebody wants to listen, whoever has them."""
    scheme, _, place = value.partition("://")
    if scheme in UNIX_KINDS:
        yield from _unix_holders(UNIX_KINDS[scheme], place)
    elif scheme in TAKES_CLIENTS:
        host, _, port = place.rpartition(":")
        want = ip_address(host.strip("[]").partition("%")[0])
        yield from _ip_holders(scheme, want, int(port))


def _ip_holders(scheme: str, want: IPv4Address | IPv6Address, port: int) -> Iterator[Holder]:
    for version, name in ((4, scheme), (6, f"{scheme}6")):
        for columns in _rows(NET / name):
            text, _, port_text = columns[LOCAL].rpartition(":")
            if columns[STATE] != TAKES_CLIENTS[scheme] or int(port_text, 16) != port:
                continue
            host = _address(text)
            if host == want or host.is_unspecified or want.is_unspecified:
                yield Holder(columns[INODE], version == want.version)


def _unix_holders(kind: str, path: str) -> Iterator[Holder]:
    for columns in _rows(NET / "unix", 7):
        if columns[4:5] != [kind] or columns[7:] != [path]:
            continue
        with suppress(ValueError):  # a name may have a line feed in it, and then anything
            if kind == UNIX_KINDS["unixgram"] or int(columns[3], 16) & UNIX_LISTENS:
                yield Holder(columns[6], True)


def _address(text: str) -> IPv4Address | IPv6Address:
    """An address as the kernel shows it: words of 32 bits, each in this machine's order."""
    words = [bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    address = ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _rows(table: Path, maxsplit: int = -1) -> Iterator[list[str]]:
    with suppress(OSError):  # no IPv6
        for line in table.read_text(errors="surrogateescape").split("\n")[1:-1]:
            yield line.split(maxsplit=maxsplit)


def explained(error: BindError, pids: Iterable[int]) -> BindError:
    """The same error; one that says who has the address, if that is a process of ours.

    Args:
        error: why we could not be bound.
        pids: of processes of earlier lives that drain.

    """
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE:
        return error
    pid = holder_of(error.value, pids)
    if pid is None:
        return error
    reason = (
        f"process {pid}, of an earlier life, serves its last flows by this port; "
        'wait for its end ("sockpair status" shows it), or choose another port'
    )
    return BindError(error.place, error.value, OSError(errno.EBUSY, reason))


def holder_of(value: str, pids: Iterable[int]) -> int | None:
    """The process among these that has a socket of datagrams at a port; None if none has.

    Args:
        value: where somebody wants to listen, as a URL.
        pids: which processes.

    """
    port = value.rpartition(":")[2]
    if not value.startswith("udp://") or not port.isdigit():
        return None
    links = {f"socket:[{inode}]" for inode in _inodes_at(int(port))}
    return next((pid for pid in pids if not links.isdisjoint(_files_of(pid))), None)


def _inodes_at(port: int) -> Iterator[str]:
    for table in TABLES:
        for columns in _rows(table):
            if int(columns[LOCAL].rpartition(":")[2], 16) == port:
                yield columns[INODE]


def _files_of(pid: int) -> Iterator[str]:
    folder = Path("/proc", str(pid), "fd")
    with suppress(OSError):  # it has ended, or has become another user's
        for file in folder.iterdir():
            with suppress(OSError):  # closed meanwhile
                yield os.readlink(file)  # noqa: PTH115 - not a path
