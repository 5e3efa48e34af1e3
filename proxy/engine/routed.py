"""Stream flows that go where their first bytes say: to an upstream by server name and protocol.

Such a flow is admitted, and in the table, before it knows where it goes: so all ceilings hold for
who says nothing. It is connecting meanwhile. What the client sends is looked at and left in the
kernel's queue (MSG_PEEK), so that the flow then begins as any other: urgent data, the end of the
stream and limits need not know of it, and the endpoint gets every byte as it was sent.

Who sends no ClientHello, half of one, or nothing within the time there is for it, goes to the
upstream of the listener; so does whoever has no route.
"""

from __future__ import annotations

from collections.abc import Mapping
from select import EPOLLRDHUP
from socket import MSG_DONTWAIT, MSG_PEEK
from typing import TYPE_CHECKING, NamedTuple

from proxy.core.client_hello import HELLO_MAX, MORE, NO_HELLO, Hello, HelloAnswer, HelloReader
from proxy.core.identity import Identity
from proxy.engine.copied import CopiedWay, dscp_of_stream
from proxy.engine.identified import IdentifiedFlow
from proxy.engine.stream import StreamFlow

if TYPE_CHECKING:
    from proxy.core.proxy_protocol import HeaderStyle
    from proxy.core.route_counters import RouteCounters
    from proxy.core.server_names import RoutePattern, ServerNames
    from proxy.core.upstream import Choice
    from proxy.core.wheel import Slot
    from proxy.engine.outbound import Connect


class Way(NamedTuple):
    """To an upstream.

    Attributes:
        name: of the upstream.
        upstream: what chooses among its endpoints.
        connect: makes the sockets to them.
        style: of the headers to them; None if there are none.

    """

    name: str
    upstream: Choice
    connect: Connect
    style: HeaderStyle | None


class Routes(NamedTuple):
    """The ways that flows of a listener may go.

    Attributes:
        names: to each by its server names.
        time: seconds that a ClientHello may take.
        counters: of each pattern, and of those whom none fits; None if nobody asks.

    """

    names: ServerNames[Way]
    time: float
    counters: Mapping[RoutePattern | None, RouteCounters] | None = None

    @property
    def copies_dscp(self) -> bool:
        """Whether any of them has the DSCP of the client."""
        return any(isinstance(way.connect, CopiedWay) for way in self.names.values)


class RoutedFlow(IdentifiedFlow):
    """A TCP flow that goes where its first bytes say.

    Attributes:
        routes: among which it chooses.

    """

    __slots__ = ("routes",)

    routes: Routes

    def seek(self, upstream: Choice, connect: Connect, now: float) -> None:
        """Wait for the ClientHello, and take the way that is given where it says nothing."""
        way = Way(self.counters.upstream, upstream, connect, self.style)
        attempt = self.attempt = HelloWait(self, way)
        attempt.start(now)

    def go(self, way: Way, hello: Hello | None, now: float) -> None:
        """Begin to connect, this way."""
        identity = self.identity or Identity()
        self.identity = identity._replace(hello=hello, upstream=way.name)
        self.style = way.style
        connect = way.connect
        if isinstance(connect, CopiedWay):
            connect = connect.with_dscp(dscp_of_stream(self.original.socket))
        StreamFlow.seek(self, way.upstream, connect, now)
        if self.original.unserved & EPOLLRDHUP:  # told already, and not again
            self.ended_unread(self.original, now)


class HelloWait:
    """A flow whose ClientHello is awaited; a ``Handler`` of its client's socket, and ``Timed``."""

    __slots__ = ("_default", "_flow", "_reader", "_seen", "slot", "until")

    def __init__(self, flow: RoutedFlow, default: Way) -> None:
        self._flow = flow
        self._default = default
        self._reader = HelloReader()
        self._seen = 0
        self.until = flow.active + flow.limits.connect
        self.slot: Slot | None = None

    def start(self, now: float) -> None:
        """Begin to wait; what has come already is told in the next round."""
        relay = self._flow.relay
        relay.pump.hand_over(self._flow.original.socket.fileno(), self)
        relay.wheel.schedule(self, now + self._flow.routes.time)

    def ready(self, mask: int, now: float) -> None:
        """Look at what has come; the leg, which is not to be read yet, keeps the news."""
        flow = self._flow
        flow.original.ready(mask, now)
        if flow.close_reason is None:  # it was not reset
            answer = self._look(mask)
            if answer is not MORE:
                self._decide(answer, now)

    def expire(self, now: float) -> None:
        """The client speaks late, or not at all: perhaps it waits for the endpoint to begin."""
        if self._flow.attempt is self:  # the flow's own clock may have struck in the same tick
            self._decide(NO_HELLO, now)

    def timed_out(self, now: float) -> None:
        """The time to connect is shorter than that for the ClientHello."""
        self._decide(NO_HELLO, now)

    def client_left(self, now: float) -> None:
        """Go on: ``ready`` sees it too, and decides."""

    def cancel(self, now: float) -> None:
        """Give up: the flow has ended."""
        self._flow.relay.wheel.cancel(self)

    def crashed(self, error: Exception, now: float) -> None:
        """End the flow: a fault of ours."""
        self._flow.crashed(error, now)

    def _look(self, mask: int) -> HelloAnswer:
        try:
            data = self._flow.original.socket.recv(HELLO_MAX, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            return MORE
        except OSError:  # the flow will find out
            return NO_HELLO
        answer = self._reader.feed(data[self._seen :])
        self._seen = len(data)
        has_ended = not data or mask & EPOLLRDHUP
        return NO_HELLO if answer is MORE and has_ended else answer

    def _decide(self, answer: HelloAnswer, now: float) -> None:
        flow = self._flow
        flow.relay.wheel.cancel(self)
        flow.relay.pump.hand_over(flow.original.socket.fileno(), flow.original)
        hello = answer if isinstance(answer, Hello) else None
        names, counters = flow.routes.names, flow.routes.counters
        pattern = names.pattern(hello.server_name, hello.alpn) if hello else None
        if counters is not None:
            counters[pattern].flows += 1
        flow.go(self._default if pattern is None else names[pattern], hello, now)
