"""A check by HTTP: GET a path, and judge the status of the answer. Its body is not read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import h11

from proxy import __version__
from proxy.control.probes import READ_MAX, SHOWN_MAX, failed, passed, receive, send_all, with_stream
from proxy.core.address import format_address
from proxy.core.printable import printable

if TYPE_CHECKING:
    from socket import SocketType as Socket

    from proxy.control.probes import Sight
    from proxy.core.health import Result

CHUNK: Final = 4096

ANSWERS_MAX: Final = 2 * READ_MAX
"""Bytes: the longest head that is read, and as much of interim answers (1xx) before it, of which
there may be any number."""

BYTES: Final = re.compile(r"bytearray\(b(['\"])(.*)\1\)")
"""What h11 makes of the bytes that it cannot read, for programmers."""


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """Ask for a path.

    Attributes:
        path: of the request, with its query.
        host: of the Host header; None is the endpoint's address.
        statuses: those that are well.

    """

    path: str
    host: str | None
    statuses: tuple[range, ...]

    async def run(self, sight: Sight) -> Result:
        """Do it."""
        host = self.host or format_address(sight.address)

        async def talk(socket: Socket) -> Result:
            return await self._talk(socket, host)

        return await with_stream(sight, talk)

    async def _talk(self, socket: Socket, host: str) -> Result:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=READ_MAX)
        await send_all(socket, self._request(connection, host))
        size = 0
        try:
            while size < ANSWERS_MAX:
                event = connection.next_event()
                if isinstance(event, h11.Response):
                    return self._judge(event)
                if event is h11.NEED_DATA:
                    data = await receive(socket, CHUNK)
                    if not data:
                        return failed("closed before an answer")
                    connection.receive_data(data)
                    size += len(data)
            return failed(f"no answer within {ANSWERS_MAX} bytes")
        except h11.RemoteProtocolError as error:
            found = BYTES.sub(r"\2", str(error))
            return failed(f"no HTTP: {printable(found)[:SHOWN_MAX]}")

    def _request(self, connection: h11.Connection, host: str) -> bytes:
        headers = [
            ("Host", host),
            ("User-Agent", f"sockpair/{__version__}"),
            ("Accept", "*/*"),
            ("Connection", "close"),
        ]
        request = h11.Request(method="GET", target=self.path, headers=headers)
        return (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")

    def _judge(self, response: h11.Response) -> Result:
        status = response.status_code
        judge = passed if any(status in each for each in self.statuses) else failed
        return judge(f"status {status}")
