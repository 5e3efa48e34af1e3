"""Runs: datagrams of one client, equal in size, that came together and leave with one call.

UDP_SEGMENT takes them as one piece through the whole stack, up to the device, and cuts it there.
A batch that begins with two datagrams of one client is served here; any other takes the ordinary
way, so that many clients with one datagram each pay one comparison a batch.

Measured on loopback, CPU of the relay for a datagram, in microseconds, with and without: bursts of
32 from one client 4.1 and 5.7 (1200 bytes), 3.5 and 5.0 (64 bytes); bursts of 8 from each of 8
clients 3.4 and 4.9; bursts of 4 from one client 14 and 13, which is the cost of waking up.

What the kernel does not take as a run (EINVAL: it would have to be fragmented; EIO: the route
encrypts) is sent one by one. A kernel that does not know UDP_SEGMENT would send one long datagram,
so it is asked first.

Source: udp(7); net/ipv4/udp.c, udp_send_skb.
"""

from __future__ import annotations

from functools import lru_cache
from socket import AF_INET, AF_UNIX, IPPROTO_UDP, MSG_DONTWAIT, SOCK_DGRAM
from socket import SocketType as Socket
from typing import TYPE_CHECKING, Final

from proxy.core.flow import Drop
from proxy.engine.sockaddr import CMSG

if TYPE_CHECKING:
    from proxy.engine.datagram import DatagramFlow
    from proxy.engine.datagram_listener import DatagramListener

UDP_SEGMENT: Final = 103

RUN_MAX: Final = 65000
"""Bytes; a run is one datagram to IP, with its headers at most 65,535."""


@lru_cache(maxsize=1)
def can_segment() -> bool:
    """Whether this kernel has UDP_SEGMENT: Linux 4.18."""
    socket = Socket(AF_INET, SOCK_DGRAM)
    try:
        socket.setsockopt(IPPROTO_UDP, UDP_SEGMENT, 0)
    except OSError:  # ENOPROTOOPT
        return False
    finally:
        socket.close()
    return True


def serve_runs(listener: DatagramListener, count: int, now: float) -> None:
    """Pass on a batch that was received, run by run."""
    batch = listener.batch
    run: list[memoryview] = []
    run_flow: DatagramFlow | None = None
    run_size = 0
    for index in range(count):
        segment = batch.take_segment(index)
        flow = listener.flow_of(index, now)
        if flow is None:
            continue
        if batch.truncated(index):
            listener.counters.dropped[Drop.TRUNCATED] += 1
            continue
        size = batch.length(index)
        if segment:
            if run_flow is not None:
                send_run(run_flow, run, now)
            run, run_flow = [], None
            send_run(flow, pieces(batch.data[index][:size], segment), now)
            continue
        if flow is not run_flow or size != run_size or (len(run) + 1) * size > RUN_MAX:
            if run_flow is not None:
                send_run(run_flow, run, now)
            run, run_flow, run_size = [], flow, size
        run.append(batch.data[index][:size])
    if run_flow is not None:
        send_run(run_flow, run, now)


@lru_cache(maxsize=64)
def segment_control(segment: int) -> bytes:
    """The control message by which a train is sent whose datagrams have so many bytes."""
    size = CMSG.size + 2
    return CMSG.pack(size, IPPROTO_UDP, UDP_SEGMENT) + segment.to_bytes(2, "little") + bytes(6)


def pieces(data: memoryview, segment: int) -> list[memoryview]:
    """The datagrams of a train: all have ``segment`` bytes, but the last, which may be shorter."""
    return [data[start : start + segment] for start in range(0, len(data), segment)]


def send_run(flow: DatagramFlow, run: list[memoryview], now: float) -> None:
    """Send datagrams with one call; all have the size of the first, the last may be shorter.

    Its flow may have been evicted since the run began, for a newcomer in the same batch: then its
    socket is closed, and sending fails and is counted like any other failure.
    """
    if len(run) == 1 or not _sent_at_once(flow, run):
        for data in run:
            flow.send(data, now)
        return
    count = len(run)
    size = (count - 1) * len(run[0]) + len(run[-1])
    flow.active = now
    flow.original.bytes += size
    flow.original.packets += count
    flow.counters.original.received += size
    flow.counters.original.packets += count


def _sent_at_once(flow: DatagramFlow, run: list[memoryview]) -> bool:
    size = len(run[0])
    if not size or flow.socket.family == AF_UNIX:  # which would make one datagram of them
        return False
    segment = (IPPROTO_UDP, UDP_SEGMENT, size.to_bytes(2, "little"))
    try:
        flow.socket.sendmsg(run, [segment], MSG_DONTWAIT)
    except OSError:
        return False
    return True
