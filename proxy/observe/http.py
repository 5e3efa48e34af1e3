"""One HTTP/1.1 connection of the admin server, over any Trio stream.

Strategy: h11 knows the protocol, this file knows the bounds, and a handler (``Request`` in,
``Response`` out) knows the product. Requests of one connection are answered one after the other;
what a client sends ahead waits unread in the kernel, so pipelining costs no memory.

Invariants:

* Every wait has a bound (``Bounds``) and so has every buffer: a client can keep one connection busy
  for that long, and nothing else.
* A request gets exactly one answer, or the connection ends. Errors are short JSON that teaches:
  ``{"error": "..."}``. A fault in a handler is one log record and one 500; the server lives.
* Long answers come as slices, and the relay gets its turn between two of them.

Units: seconds and bytes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, TypeAlias

import h11
import structlog
import trio

from proxy.engine.turns import Turn

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"

READ_BYTES: Final = 16 * 1024

SLICE_BYTES: Final = 64 * 1024
"""So much of an answer is copied at once; a fraction of a millisecond."""

PIECE_BYTES: Final = 32 * 1024
"""Slices are sent when they are so many: in a tenth of a millisecond, of which half is what a piece
costs however short it is."""

LINGER_READS: Final = 64
"""Reads thrown away before a close, at most: a megabyte."""

# No script, no frame, no cache, no guessing: nothing here is a page of somebody else's. A response
# that brings one of these itself (our own page allows its own scripts) has it in place of ours.
SECURITY_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one client may cost.

    Attributes:
        connections: at once, for each listener; people and scrapers need a handful.
        header_bytes: request line and headers; a browser sends about one KiB.
        body_bytes: of a request; nothing that is sent to us is long.
        request_seconds: from the first byte of a request to its last, and to the first byte on a
            new connection.
        handler_seconds: for the relay to say what is asked of it.
        response_seconds: for the client to take a whole answer.
        idle_seconds: between two requests; above the usual scrape interval of a minute.
        linger_seconds: for the client to read an answer after which we close.

    """

    connections: int = 64
    header_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024
    request_seconds: float = 10.0
    handler_seconds: float = 30.0
    response_seconds: float = 30.0
    idle_seconds: float = 90.0
    linger_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks.

    Attributes:
        path: as sent, without the query.
        query: as sent, without the question mark.
        headers: by lower-case name; the last of several wins.
        peer: who asks, for the log.
        control: whether the client may change something, and not only read.
        local: whether it is at the Unix socket.

    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    peer: str
    control: bool
    local: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """What it is told; a body of several slices is sent as they are made.

    Attributes:
        lasting: whether the slices go on until the client leaves; then each has the time of a
            whole answer, and no request follows on this connection.

    """

    body: bytes | Iterable[bytes] | AsyncGenerator[bytes, None]
    content_type: str = JSON
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    lasting: bool = False


class HttpError(Exception):
    """An answer that is an error: a status, and a message that says what to do instead."""

    def __init__(self, status: int, message: str, **extra: object) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.extra = extra
        self.headers: tuple[tuple[str, str], ...] = ()

    def response(self) -> Response:
        """Write the error as JSON."""
        answer = json_response({"error": self.message, **self.extra}, self.status)
        return Response(answer.body, JSON, self.status, self.headers)


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


def json_response(value: object, status: int = 200) -> Response:
    """Write a small value as a JSON answer."""
    return Response(json.dumps(value).encode("ascii") + b"\n", JSON, status)


@dataclass(slots=True, eq=False)
class HttpConnection:
    """Serves one client.

    Args:
        stream: the connection; ``serve`` closes it.
        handler: answers requests.
        peer: who the client is, for the log.
        control: whether it may change something.
        bounds: what it may cost.
        local: whether it is at the Unix socket.

    Attributes:
        asking_since: when it was first waited for to send its next request; None while it is not.
        taking_since: when it was first waited for to take a piece of an answer; None likewise.

    """

    stream: trio.SocketStream
    handler: Handler
    peer: str
    control: bool
    bounds: Bounds
    local: bool = False
    asking_since: float | None = field(init=False, default=None)
    taking_since: float | None = field(init=False, default=None)
    _http: h11.Connection = field(init=False)
    _wait_seconds: float = field(init=False)
    _is_head: bool = field(init=False, default=False)  # the request, which wants no body

    def __post_init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self.bounds.header_bytes)
        self._wait_seconds = self.bounds.request_seconds

    async def serve(self) -> None:
        """Answer requests until the client leaves, breaks the protocol or a bound.

        The stream is closed in the end, whatever happens. A fault of ours is logged here and ends
        this connection alone.
        """
        async with self.stream:
            try:
                while await self._serve_request():
                    self._http.start_next_cycle()
                    self._wait_seconds = self.bounds.idle_seconds
                await self._linger()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client left
            except Exception:
                log.exception("admin_connection_failed", peer=self.peer)

    async def _serve_request(self) -> bool:
        """Answer one request; whether another one may follow."""
        self.asking_since = trio.current_time()
        try:
            self._is_head = False
            request = await self._read_request()
        except HttpError as error:
            await self._send(error.response(), close=True)
            return False
        if request is None:
            return False
        self.asking_since = None
        return await self._send(await self._answer(request))

    async def _read_request(self) -> Request | None:
        """Read one request; None when none came: the client left, or was idle for too long."""
        with trio.move_on_after(self._wait_seconds) as waiting:
            await self._wait_first_byte()
        if waiting.cancelled_caught:
            return None
        with trio.move_on_after(self.bounds.request_seconds):
            return await self._receive_request()
        seconds = self.bounds.request_seconds
        raise HttpError(408, f"the request was not complete within {seconds:g} s")

    async def _wait_first_byte(self) -> None:
        if not self._http.trailing_data[0]:
            await self._receive()

    async def _receive(self) -> None:
        """Read on, but no further than to a byte beyond the bound, which h11 asks of parts only."""
        room = self.bounds.header_bytes - len(self._http.trailing_data[0])
        self._http.receive_data(await self.stream.receive_some(max(1, room)))

    async def _receive_request(self) -> Request | None:
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return None  # closed between two requests
        self._is_head = event.method == b"HEAD"
        headers = {name.decode("ascii"): _text(value) for name, value in event.headers}
        path, _, query = _text(event.target).partition("?")
        if not path.startswith("/"):
            raise HttpError(400, f'ask for a path, such as "/metrics", not for "{path}"')
        body = await self._receive_body(int(headers.get("content-length", "0")))
        method = event.method.decode("ascii")
        return Request(method, path, query, headers, body, self.peer, self.control, self.local)

    async def _receive_body(self, announced: int) -> bytes:
        limit = self.bounds.body_bytes
        body = bytearray()
        while announced <= limit and len(body) <= limit:
            event = await self._next_event()
            if not isinstance(event, h11.Data):
                return bytes(body)
            body += event.data
        raise HttpError(413, f"the body is longer than {limit} bytes")

    async def _next_event(self) -> h11.Event:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as exc:
                raise self._malformed(exc) from exc
            if isinstance(event, h11.Event):
                return event
            assert event is h11.NEED_DATA, event
            if self._http.they_are_waiting_for_100_continue:
                await self._send_event(h11.InformationalResponse(status_code=100, headers=[]))
            await self._receive()

    def _malformed(self, exc: h11.RemoteProtocolError) -> HttpError:
        if exc.error_status_hint == 431:
            limit = self.bounds.header_bytes
            return HttpError(431, f"the request line and headers are longer than {limit} bytes")
        return HttpError(exc.error_status_hint, f"malformed request: {exc}")

    async def _answer(self, request: Request) -> Response:
        """Ask the handler; its faults end nothing but this request."""
        try:
            with trio.move_on_after(self.bounds.handler_seconds):
                return await self.handler(request)
            raise HttpError(503, "the relay did not answer in time; see its log")
        except HttpError as error:
            return error.response()
        except Exception:
            log.exception(
                "admin_request_failed", method=request.method, path=request.path, peer=self.peer
            )
            return HttpError(500, "a fault of sockpair; its log tells more").response()

    async def _send(self, response: Response, *, close: bool = False) -> bool:
        """Send an answer, without its body to HEAD; whether the connection lives on."""
        if response.lasting and not self._is_head:
            await self._send_lasting(response)
            return False
        with trio.move_on_after(self.bounds.response_seconds):
            await trio.lowlevel.checkpoint()  # a head takes a turn of its own
            await self._send_event(_head(response, close))
            if not self._is_head:
                await self._send_body(response.body)
            await self._send_event(h11.EndOfMessage())
            return self._http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}
        raise trio.BrokenResourceError  # a slow reader holds what others may need

    async def _send_lasting(self, response: Response) -> None:
        """Send slices for as long as the client takes each of them in time, and is there."""
        assert isinstance(response.body, AsyncGenerator)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_gone, nursery.cancel_scope)
            with suppress(trio.BrokenResourceError):  # it has left, or is too slow
                async with aclosing(response.body) as pieces:
                    await self._send_in_time(_head(response, close=True))
                    async for piece in pieces:
                        await self._send_in_time(h11.Data(data=piece))
            nursery.cancel_scope.cancel()

    async def _send_in_time(self, event: h11.Event) -> None:
        with trio.move_on_after(self.bounds.response_seconds):
            await self._send_event(event)
            return
        raise trio.BrokenResourceError

    async def _wait_gone(self, sending: trio.CancelScope) -> None:
        """End a lasting answer when the client has left; what it says meanwhile is not heard."""
        with suppress(trio.BrokenResourceError):
            while await self.stream.receive_some(READ_BYTES):
                pass
        sending.cancel()

    async def _send_body(self, body: bytes | Iterable[bytes] | AsyncGenerator[bytes, None]) -> None:
        held, size = list[bytes](), 0
        async with aclosing(_slices(body)) as slices:
            async for each in slices:
                held.append(each)
                size += len(each)
                if size >= PIECE_BYTES:
                    if not isinstance(body, AsyncGenerator):  # which has waited for what it made
                        await trio.lowlevel.checkpoint()  # sending takes a turn of its own
                    await self._send_event(h11.Data(data=b"".join(held)))
                    held, size = [], 0
        if held:
            await self._send_event(h11.Data(data=b"".join(held)))

    async def _send_event(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self.taking_since = trio.current_time()
            await self.stream.send_all(data)
            self.taking_since = None

    async def _linger(self) -> None:
        """Close in stages: a close with bytes unread becomes RST, which eats our answer.

        RFC 9112, section 9.6.
        """
        with trio.move_on_after(self.bounds.linger_seconds):
            await self.stream.send_eof()
            for _ in range(LINGER_READS):
                if not await self.stream.receive_some(READ_BYTES):
                    break


def _head(response: Response, close: bool) -> h11.Response:
    headers = [
        ("Content-Type", response.content_type),
        ("Date", formatdate(usegmt=True)),
        *(dict(SECURITY_HEADERS) | dict(response.headers)).items(),
    ]
    if isinstance(response.body, bytes):
        headers.append(("Content-Length", str(len(response.body))))
    if close:
        headers.append(("Connection", "close"))
    reason = HTTPStatus(response.status).phrase.encode("ascii")
    return h11.Response(status_code=response.status, reason=reason, headers=headers)


async def _slices(
    body: bytes | Iterable[bytes] | AsyncGenerator[bytes, None],
) -> AsyncGenerator[bytes, None]:
    """A body as it is made, or cut; the relay has its turn between slices."""
    if isinstance(body, AsyncGenerator):
        async with aclosing(body):
            async for each in body:
                yield each
    elif isinstance(body, bytes):
        for start in range(0, len(body), SLICE_BYTES):
            yield body[start : start + SLICE_BYTES]
    else:
        turn = Turn()
        for each in body:
            yield each
            await turn.may_end()


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")
