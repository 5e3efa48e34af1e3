"""Socket options reach both sides of a flow; the kernel is asked what it has."""

from __future__ import annotations

import errno
from socket import (
    AF_INET,
    IPPROTO_MPTCP,
    IPPROTO_TCP,
    MSG_FASTOPEN,
    SO_KEEPALIVE,
    SO_OOBINLINE,
    SO_PROTOCOL,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_NODELAY,
    TCP_USER_TIMEOUT,
)
from socket import socket as Socket

import pytest
import trio

from proxy.config.load import parse
from proxy.config.model import TcpOptions
from proxy.config.values import ListenAddress
from proxy.control.listen import bind_socket
from proxy.control.outbound import OptionError
from proxy.core.address import Transport
from proxy.engine.options import stream_options
from proxy.engine.stream import StreamFlow
from tests.control.binding import bind_listeners
from tests.engine.lab import (
    Lab,
    accept,
    connect,
    listening,
    open_listener,
    receive_exactly,
    relaying,
    send_all,
)

LOOPBACK = ListenAddress(Transport.TCP, "127.0.0.1", 0)
EVERYTHING = TcpOptions.model_validate(
    {
        "keepalive_idle": "75s",
        "keepalive_interval": "10s",
        "keepalive_count": 3,
        "user_timeout": "20s",
    }
)


def legs(lab: Lab) -> tuple[Socket, Socket]:
    (flow,) = lab.worker._relay.table
    assert isinstance(flow, StreamFlow)
    return flow.original.socket, flow.reply.socket


@pytest.mark.parametrize(
    ("level", "option", "value"),
    [
        (IPPROTO_TCP, TCP_NODELAY, 1),
        (SOL_SOCKET, SO_OOBINLINE, 1),
        (SOL_SOCKET, SO_KEEPALIVE, 1),
        (IPPROTO_TCP, TCP_KEEPIDLE, 75),
        (IPPROTO_TCP, TCP_KEEPINTVL, 10),
        (IPPROTO_TCP, TCP_KEEPCNT, 3),
        (IPPROTO_TCP, TCP_USER_TIMEOUT, 20_000),
    ],
)
async def test_options_are_on_both_sides(level: int, option: int, value: int) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        options = stream_options(EVERYTHING)
        socket = bind_socket(LOOPBACK, options=options)
        await open_listener(lab.worker, "o", socket, [endpoint.getsockname()], options=options)
        await connect(socket.getsockname())
        await accept(endpoint)
        await lab.wait_live("established")
        assert [leg.getsockopt(level, option) for leg in legs(lab)] == [value, value]


async def test_nothing_is_set_that_nobody_asked_for() -> None:
    assert stream_options(TcpOptions(nodelay=False)) == ()
    assert stream_options(TcpOptions()) == ((IPPROTO_TCP, TCP_NODELAY, 1),)


async def test_multipath_tcp_is_accepted_and_relayed() -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        multipath().close()
        socket = bind_socket(LOOPBACK, mptcp=True)
        await open_listener(lab.worker, "m", socket, [endpoint.getsockname()])
        client = trio.socket.from_stdlib_socket(multipath())
        with client:
            await client.connect(socket.getsockname())
            accepted = await accept(endpoint)
            await send_all(client, b"over many paths")
            assert await receive_exactly(accepted, 15) == b"over many paths"
            await send_all(accepted, b"and back")
            assert await receive_exactly(client, 8) == b"and back"
            own, _ = legs(lab)
            assert own.getsockopt(SOL_SOCKET, SO_PROTOCOL) == IPPROTO_MPTCP
            client.close()
            accepted.close()
            (ended,) = await lab.wait_ended()
            assert ended["close_reason"] == "finished"


def test_an_option_that_multipath_tcp_lacks_is_named() -> None:
    with multipath() as socket:
        try:
            socket.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, 1)
        except OSError:
            pass
        else:
            pytest.skip("this kernel has the option for Multipath TCP")
    text = (
        '[listener.m]\nlisten = "tcp://127.0.0.1:0"\nupstream = "w"\n'
        'tcp = { mptcp = true, user_timeout = "3s" }\n[upstream.w]\nendpoints = ["127.0.0.1:9"]\n'
    )
    with pytest.raises(OptionError) as caught:
        bind_listeners(parse(text, "f"))
    assert str(caught.value) == (
        "listener.m.tcp.user_timeout: cannot be used: Protocol not available; this kernel has no "
        "TCP_USER_TIMEOUT for Multipath TCP; remove it, or mptcp"
    )


def multipath() -> Socket:
    """A socket of Multipath TCP."""
    try:
        return Socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP)
    except OSError as error:
        if error.errno in {errno.EPROTONOSUPPORT, errno.ENOPROTOOPT}:
            pytest.skip("this kernel has no Multipath TCP")
        raise


async def test_data_in_the_syn_is_relayed() -> None:
    """TCP Fast Open (RFC 7413); where the kernel gives no cookie the handshake comes first."""
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        socket = bind_socket(LOOPBACK, fastopen=16)
        await open_listener(lab.worker, "f", socket, [endpoint.getsockname()])
        for _ in range(2):  # the first fetches the cookie
            with trio.socket.socket() as client:
                try:
                    client._sock.sendto(b"hello", MSG_FASTOPEN, socket.getsockname())
                except BlockingIOError:  # EINPROGRESS: there was no cookie yet
                    await trio.lowlevel.wait_writable(client)
                    await send_all(client, b"hello")
                accepted = await accept(endpoint)
                assert await receive_exactly(accepted, 5) == b"hello"
