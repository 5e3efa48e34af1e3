"""Making live flows of states and descriptors: those of a predecessor, or of a worker that died.

A flow that is revived is held to what its listener says now, as live flows are after a reload. It
keeps its id, its age and what it has moved. Nothing is counted again: it was opened elsewhere.

Registering a socket anew tells whatever is the case there, so no event can have been missed.
"""

from __future__ import annotations

from select import EPOLLIN
from socket import AF_UNIX, IPPROTO_UDP
from socket import SocketType as Socket
from typing import TYPE_CHECKING

from proxy.core.expiry import next_look
from proxy.core.stalls import Stalls
from proxy.engine.datagram import FILES_PER_FLOW as FILES_PER_DATAGRAM_FLOW
from proxy.engine.datagram import DatagramFlow
from proxy.engine.declared import DeclaredFlow
from proxy.engine.group import Answers
from proxy.engine.headed import HeadedUnixSocket, with_header
from proxy.engine.identified import IdentifiedFlow, IdentifiedUnixFlow
from proxy.engine.leg import WATCH, WATCH_BOTH
from proxy.engine.limited import LimitedFlow
from proxy.engine.mmsg import UDP_GRO
from proxy.engine.sources import user_key
from proxy.engine.stream import FILES_PER_FLOW, StreamFlow
from proxy.engine.survival.leave_behind import leave_behind
from proxy.engine.survival.surviving import SURVIVING, Surviving
from proxy.engine.tcp import read_in_line
from proxy.engine.trains import TrainReader, ask_for_trains
from proxy.engine.unix import UnixDatagramSocket, serve_unix_leg
from proxy.engine.unix_flow import UnixFlow
from proxy.engine.unix_listeners import UnixgramFlow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.core.flow_state import DatagramState, FlowState, LegState
    from proxy.core.sources import SourceKey
    from proxy.core.unix import UnixAddress
    from proxy.engine.datagram_listener import DatagramListener
    from proxy.engine.handover.frozen import AnyFlow
    from proxy.engine.leg import StreamLeg
    from proxy.engine.relay import Relay
    from proxy.engine.roster import Roster
    from proxy.engine.specs import ListenerSpec
    from proxy.engine.terms import Terms


class ReviveError(Exception):
    """A flow cannot live here: its listener is not there."""


def revive(
    relay: Relay, roster: Roster, state: FlowState, files: Sequence[int], now: float
) -> AnyFlow:
    """Make a live flow; ``FlowTable.settle`` follows when all are there.

    Args:
        relay: where it shall live.
        roster: of its listener and its upstream.
        state: what it was.
        files: its descriptors, as ``Frozen`` has them; the flow's from now on.
        now: monotonic seconds.

    Raises:
        ReviveError: its listener is not there; the descriptors are still the caller's.
        OSError: what else it needs is not to be had; the same.

    """
    spec = roster.spec_of(state.listener, state.transport)
    if spec is None:
        raise ReviveError(f'there is no listener "{state.listener}" ({state.transport})')
    if not state.transport.is_datagram:
        return _revive_stream(relay, roster, spec, state, files, now)
    listener = roster.datagram_listener(state.listener)
    if listener is None or state.datagrams is None:
        raise ReviveError(f'listener "{state.listener}" is not open')
    return _revive_datagrams(roster, listener, state, state.datagrams, files, now)


def thaw(flow: AnyFlow, roster: Roster, now: float) -> None:
    """Go on with a flow that was frozen, or has just been revived."""
    if isinstance(flow, StreamFlow):
        _set_going(flow, roster.terms_of_flow(flow), now)
    else:
        _hear_again(flow, now)


def _revive_stream(
    relay: Relay,
    roster: Roster,
    spec: ListenerSpec,
    state: FlowState,
    files: Sequence[int],
    now: float,
) -> StreamFlow:
    client, endpoint = (Socket(fileno=fd) for fd in files)
    for socket in (client, endpoint):
        read_in_line(socket)
    terms = roster.terms_of(spec)
    kind = _kind_of(state)
    if terms.will is not None and not state.transport.is_unix:
        kind = SURVIVING[kind]
    flow = kind(
        relay,
        roster.counters_of(spec),
        terms.limits,
        client,
        state.client_remote,
        state.client_local,
        now,
        _source_key(roster, spec, state),
    )
    relay.table.give_back(flow.id)
    flow.arrive(state)
    flow.half_closed, flow.sample = state.half_closed, state.sample
    flow.endpoint_credentials = state.endpoint_credentials
    if isinstance(flow, IdentifiedFlow | IdentifiedUnixFlow):
        flow.identity, flow.style = state.identity, None
    if isinstance(flow, UnixFlow):
        flow.credentials = state.credentials
    flow.reply.socket = endpoint
    _restore(flow.original, state.original)
    _restore(flow.reply, state.reply)
    relay.table.enter(flow)
    relay.files.used += FILES_PER_FLOW
    _have_endpoint(flow, relay, roster, state)
    thaw(flow, roster, now)
    return flow


def _kind_of(state: FlowState) -> type[StreamFlow]:
    identified = state.headed or state.identity is not None
    if state.transport.is_unix:
        return IdentifiedUnixFlow if identified else UnixFlow
    return IdentifiedFlow if identified else StreamFlow


def _source_key(roster: Roster, spec: ListenerSpec, state: FlowState) -> SourceKey:
    if state.transport.is_unix:
        return user_key(state.credentials)
    return roster.counters_of(spec).gate.key(state.client_remote[0])


def _restore(leg: StreamLeg, state: LegState) -> None:
    leg.ended = state.ended
    leg.pending = None
    leg.stalls = None if state.stalls is None else Stalls.restored(state.stalls)
    if state.pending:
        leg.hold_again(state.pending, urgent=state.urgent)


def _have_endpoint(flow: AnyFlow, relay: Relay, roster: Roster, state: FlowState) -> None:
    """Belong to the endpoint again that it has."""
    assert state.endpoint_local is not None
    assert state.endpoint_remote is not None
    relay.table.set_endpoint(flow, state.endpoint_local, state.endpoint_remote)
    endpoint = roster.upstreams.endpoint_of(state.upstream, state.endpoint, state.endpoint_remote)
    endpoint.take()
    endpoint.counters.flows += 1
    flow.endpoint = endpoint


def _set_going(flow: StreamFlow, terms: Terms, now: float) -> None:
    """Have both sockets served, and all limits looked at."""
    relay = flow.relay
    if isinstance(flow, Surviving):
        flow.resume()
    for leg in (flow.original, flow.reply):
        leg.writable_watched = leg is flow.reply or leg.other.pending is not None
        mask = WATCH_BOTH if leg.writable_watched else WATCH
        relay.pump.register(leg.socket.fileno(), leg, mask)
        if leg.socket.family == AF_UNIX:
            serve_unix_leg(relay.pump, leg)
    flow.look_again(terms, now)
    if relay.orders:
        relay.orders.hold(flow, now, anew=True)


def _revive_datagrams(
    roster: Roster,
    listener: DatagramListener,
    state: FlowState,
    own: DatagramState,
    files: Sequence[int],
    now: float,
) -> DatagramFlow:
    relay = listener.relay
    spec = roster.spec_of(state.listener, state.transport)
    assert spec is not None
    kind = DeclaredFlow if state.identity is not None else listener.kind
    exit = listener.fd
    if own.has_exit:
        exit = relay.exits.take(listener.socket, state.client_local, listener.options.pmtu)
    flow = kind(
        listener,
        own.key,
        own.name,
        own.control,
        state.client_remote,
        state.client_local,
        now,
        _source_key(roster, spec, state),
    )
    relay.table.give_back(flow.id)
    flow.arrive(state)
    if isinstance(flow, DeclaredFlow):
        flow.identity = state.identity
    if isinstance(flow, UnixgramFlow):
        flow.credentials = state.credentials
    flow.fd = exit
    flow.socket = _endpoint_socket(files[0], state, own)
    if own.responders is not None:
        flow.answers = Answers(flow, Socket(fileno=files[1]))
        flow.answers.responders.restore(own.responders)
    relay.table.enter(flow)
    relay.files.used += FILES_PER_DATAGRAM_FLOW
    if own.is_indexed:
        listener.flows[own.key] = flow
    listener.live += 1
    _have_endpoint(flow, relay, roster, state)
    _limit_again(flow, own, now)
    thaw(flow, roster, now)
    return flow


def _endpoint_socket(fd: int, state: FlowState, own: DatagramState) -> Socket:
    """The socket to the endpoint, as the flow's class needs it."""
    socket = Socket(fileno=fd)
    if socket.family != AF_UNIX:
        return with_header(socket, own.header) if own.header else socket
    endpoint: UnixAddress = state.endpoint_remote  # type: ignore[assignment]
    fd = socket.detach()
    if not own.header:
        return UnixDatagramSocket(endpoint, fd)
    headed = HeadedUnixSocket(endpoint, fd)
    headed.header = own.header
    return headed


def _limit_again(flow: DatagramFlow, own: DatagramState, now: float) -> None:
    """Have a flow looked at that is limited, by its listener or by orders."""
    policing = flow.listener.terms.policing
    if policing is not None and isinstance(flow, LimitedFlow):
        flow.allow(policing, now)
    orders = flow.listener.relay.orders
    if orders:
        orders.hold(flow, now)
    if flow.allowance is not None:
        flow.allowance.answered, flow.allowance.proven = own.answered, own.proven
        if own.bucket is not None:
            flow.allowance.restore(own.bucket)


def _hear_again(flow: DatagramFlow, now: float) -> None:
    """Have the socket, or both, served."""
    relay, socket = flow.listener.relay, flow.socket
    if flow.listener.terms.will is not None:
        leave_behind(flow.listener.terms.will, flow)
    relay.pump.register(socket.fileno(), flow, EPOLLIN)
    if socket.family != AF_UNIX and socket.getsockopt(IPPROTO_UDP, UDP_GRO):
        if flow.listener.trains:
            relay.pump.hand_over(socket.fileno(), TrainReader(flow))
        else:  # here each is looked at
            ask_for_trains(socket, wanted=False)
    if flow.answers is not None:
        flow.answers.hear()
    relay.wheel.schedule(flow, next_look(flow, flow.limits, now))
