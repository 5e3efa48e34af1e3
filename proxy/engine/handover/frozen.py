"""Frozen flows: out of the pump, their state written, while they are on their way to a successor.

A flow that is frozen moves nothing, and no clock of its own strikes. Either the successor has it,
and it *departs*: here it is over, uncounted. Or it *thaws*, and goes on as if nothing had been.

Not every flow can be frozen at any moment. One that is connecting, or passes on the last words of a
side that was reset, is in the middle of something that lasts seconds at most; ``can_freeze`` says
so, and it is asked again later. A flow that never can stays, and drains.

What lies in a pipe is taken out of it and becomes pending bytes. Turns and leases of a shared
bandwidth are given back: the successor shares it anew. What the kernel has for a flow (unread,
unsent, its congestion window, its options) goes with the descriptors.
"""

from __future__ import annotations

from socket import MSG_OOB
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from proxy.core.flow_state import DatagramState, EndState, FlowState, LegState
from proxy.engine.datagram import DatagramFlow
from proxy.engine.headed import HeadedSocket, HeadedUnixSocket
from proxy.engine.identified import Identified
from proxy.engine.leg import BLOCKED, StreamLeg
from proxy.engine.stream import FILES_PER_FLOW, StreamFlow
from proxy.engine.survival.will import LEAVING
from proxy.engine.tcp import CLOSED

if TYPE_CHECKING:
    from proxy.core.flow import Direction, Flow

AnyFlow: TypeAlias = StreamFlow | DatagramFlow

NO_ENDPOINT: Final = ("", "")


class Frozen(NamedTuple):
    """A flow that is frozen.

    Attributes:
        flow: itself, which still owns its sockets.
        state: what a successor needs to know.
        files: the descriptors it needs: of a stream the client's and the endpoint's, of datagrams
            the endpoint's, and where that is many hosts, the one their answers come by.

    """

    flow: AnyFlow
    state: FlowState
    files: tuple[int, ...]


def can_freeze(flow: Flow) -> bool:
    """Whether a flow can be frozen now."""
    if flow.close_reason is not None:
        return False
    if isinstance(flow, DatagramFlow):
        return flow.socket is not CLOSED
    assert isinstance(flow, StreamFlow)
    return (
        flow.attempt is None
        and flow.verdict is None
        and flow.broken is None
        and flow.original.pending is not BLOCKED
        and flow.reply.pending is not BLOCKED
    )


def freeze(flow: AnyFlow) -> Frozen:
    """Take a flow that can be frozen out of the pump, and describe it."""
    if isinstance(flow, StreamFlow):
        return _freeze_stream(flow)
    return _freeze_datagrams(flow)


def depart(frozen: Frozen, now: float) -> None:
    """Let go of a flow that a successor has; its sockets are closed here."""
    flow = frozen.flow
    relay = flow.relay if isinstance(flow, StreamFlow) else flow.listener.relay
    flow.depart(now)
    relay.table.leave(flow)
    relay.orders.let_go(flow)
    if flow.endpoint is not None:
        flow.endpoint.leave(now)
        flow.endpoint.counters.flows -= 1
    if isinstance(flow, StreamFlow):
        _let_go_of_stream(flow)
    else:
        _let_go_of_datagrams(flow)


def _let_go_of_stream(flow: StreamFlow) -> None:
    flow.relay.files.used -= FILES_PER_FLOW
    for leg in (flow.original, flow.reply):
        leg.counters.departed(len(leg.pending or b""))
        leg.pending = None  # it is not thrown away
        leg.socket.close()
        leg.socket = CLOSED
        leg.part()


def _let_go_of_datagrams(flow: DatagramFlow) -> None:
    flow.give_back()
    if flow.allowance is not None:
        flow.allowance.leave()
        flow.allowance = None
    if flow.answers is not None:
        flow.answers.depart()
    flow.socket.close()
    flow.socket = CLOSED


def state_of(flow: Flow, limits: str = "") -> FlowState:
    """Describe a flow, live or ended.

    Args:
        flow: which.
        limits: in force for it, as JSON; needed of one that has ended.

    """
    counters, endpoint = flow.counters, flow.endpoint
    upstream, name = NO_ENDPOINT
    if endpoint is not None:
        upstream, name = endpoint.counters.upstream, endpoint.name
    end = None
    if flow.close_reason is not None and flow.close_side is not None:
        responders = None if flow.responders is None else flow.responders.state()
        end = EndState(
            flow.close_reason, flow.close_side, flow.closed, flow.unsent, limits, responders
        )
    return FlowState(
        flow.id,
        counters.listener,
        counters.transport,
        upstream,
        name,
        flow.client_remote,
        flow.client_local,
        flow.endpoint_local,
        flow.endpoint_remote,
        flow.state,
        flow.opened,
        flow.active,
        _leg_state(flow.original),
        _leg_state(flow.reply),
        flow.half_closed,
        flow.identity,
        flow.credentials,
        end=end,
        sample=flow.sample if isinstance(flow, StreamFlow) else None,
        headed=isinstance(flow, Identified),
        endpoint_credentials=flow.endpoint_credentials,
    )


def _freeze_stream(flow: StreamFlow) -> Frozen:
    relay = flow.relay
    relay.wheel.cancel(flow)
    legs = (flow.original, flow.reply)
    for leg in legs:
        relay.pump.release(leg.socket.fileno())
        relay.pump.forget(leg)
        leg.freeze()
    return Frozen(flow, state_of(flow), tuple(leg.socket.fileno() for leg in legs))


def _leg_state(leg: Direction) -> LegState:
    if not isinstance(leg, StreamLeg):
        return LegState(leg.bytes, leg.packets)
    return LegState(
        leg.bytes,
        0,
        bytes(leg.pending or b""),
        bool(leg.send_flags & MSG_OOB),
        leg.ended,
        None if leg.stalls is None else leg.stalls.state(),
    )


def datagrams_of(flow: DatagramFlow) -> tuple[FlowState, tuple[int, ...]]:
    """The state of a flow of datagrams, and its descriptors; see ``Frozen``."""
    listener, answers, socket = flow.listener, flow.answers, flow.socket
    files = [socket.fileno()]
    if answers is not None:
        files.append(answers.fileno())
    allowance = flow.allowance
    state = state_of(flow)._replace(
        datagrams=DatagramState(
            flow.key,
            flow.name,
            flow.control,
            listener.flows.get(flow.key) is flow,
            flow.fd != listener.fd,
            socket.header if isinstance(socket, HeadedSocket | HeadedUnixSocket) else b"",
            0 if allowance is None else allowance.answered,
            allowance is not None and allowance.proven,
            None if answers is None else answers.responders.state(),
            None if allowance is None else allowance.bucket(),
        )
    )
    return state, tuple(files)


def _freeze_datagrams(flow: DatagramFlow) -> Frozen:
    relay = flow.listener.relay
    relay.wheel.cancel(flow)
    if relay.will is not None:
        relay.will.become(flow.id, LEAVING)
    state, files = datagrams_of(flow)
    for fd in files:
        relay.pump.release(fd)
    return Frozen(flow, state, files)
