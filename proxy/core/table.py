"""The flow table: every live flow, by id and by either socket pair, bounded; and the last dead.

Index and memory: every new client is looked for among our outbound addresses, so that no flow goes
round for ever; these differ from flow to flow and are objects anyway, so an entry of that index
costs one dictionary slot and no key of its own. Several flows may share such an address; the full
pair then decides. All other addresses are looked for by walking the table, a slice at a time (see
``engine.search``): only people ask for them, and an index by the clients' addresses cost every flow
a third of a microsecond and a hundred bytes, for an answer that is milliseconds quicker.

While the table is nearly full, it keeps books by which it knows what may go for a newcomer; see
``pressure``. They are begun when a sixteenth of its places is left, and every flow added from then
on pays for a few that were there before, so that they are complete when the last place is taken;
when twice as many places are free again they are thrown away. Before and after, they cost a
comparison when a flow is added.

Ids count upwards and are never used again, so that a log line, a metric and the table of
yesterday mean the same flow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from proxy.core.address import same_address
from proxy.core.pressure import Pressure

if TYPE_CHECKING:
    from proxy.core.address import Address, SocketPair, Transport
    from proxy.core.counters import ListenerCounters
    from proxy.core.flow import CloseReason, CloseSide, Flow
    from proxy.core.sources import SourceKey

LONGEST_CHAIN: Final = 16
"""Listeners that may feed each other on purpose."""

NEARLY: Final = 16
"""The books are begun when of so many places one is left, and thrown away when two are."""

SURVEYED: Final = 64
"""Flows looked at for each one that is added meanwhile, and for each question: a twentieth of a
millisecond. It is more than ``NEARLY``, so that they are through in time."""


class FlowTable:
    """The live flows, at most ``limit``, and a ring of the ``recent`` ones that ended.

    Args:
        limit: flows at once.
        recent: ended flows remembered, newest last; the oldest falls out.
        first_id: the first id to give.
        step: from one id to the next.

    """

    def __init__(self, limit: int, recent: int, first_id: int = 1, step: int = 1) -> None:
        self.recent: deque[Flow] = deque(maxlen=recent)
        self._next_id = first_id
        self._step = step
        self._by_id: dict[int, Flow] = {}
        self._by_endpoint = AddressIndex()
        self._pressure: Pressure | None = None
        self._bound(limit)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._by_id.values())

    @property
    def full(self) -> bool:
        """Whether no further flow may be added."""
        return len(self._by_id) >= self.limit

    def ids(self) -> list[int]:
        """The ids of all live flows, rising."""
        return list(self._by_id)

    def resize(self, limit: int, recent: int) -> None:
        """Set other bounds; live flows beyond the limit stay, and only further ones are refused."""
        self._bound(limit)
        if recent != self.recent.maxlen:
            self.recent = deque(self.recent, maxlen=recent)

    def take_id(self) -> int:
        """Give an id to a flow that is about to be added."""
        taken = self._next_id
        self._next_id += self._step
        return taken

    def add(self, flow: Flow) -> None:
        """Enter a flow that was admitted; the caller has seen that the table is not full."""
        assert flow.id not in self._by_id, flow.id
        assert len(self._by_id) < self.limit, self.limit
        self._by_id[flow.id] = flow
        if self._pressure is not None or len(self._by_id) >= self._nearly:
            self._crowd(flow)

    def enter(self, flow: Flow) -> None:
        """Add a flow that lived in another process, even beyond the limit; ``settle`` follows."""
        assert flow.id not in self._by_id, flow.id
        self.skip(flow.id)
        self._by_id[flow.id] = flow
        if self._pressure is not None or len(self._by_id) >= self._nearly:
            self._crowd(flow)

    def give_back(self, id: int) -> None:
        """Have the id free again that was taken last, and is not used."""
        assert id == self._next_id - self._step, id
        self._next_id = id

    def skip(self, id: int) -> None:
        """Give no id any more that is not larger than this one."""
        if self._next_id <= id:
            self._next_id += self._step * ((id - self._next_id) // self._step + 1)

    def settle(self) -> None:
        """Be in the order of ids again, after flows have entered."""
        self._by_id = dict(sorted(self._by_id.items()))

    def leave(self, flow: Flow) -> None:
        """Forget a flow that lives on in another process."""
        del self._by_id[flow.id]
        local = flow.endpoint_local
        if local is not None:
            flows = self._by_endpoint.flows
            if flows[local] is flow:
                del flows[local]
            else:
                self._by_endpoint.discard(local, flow)
        if self._pressure is not None:
            self._relieve(flow)

    def id_after(self, flows: int) -> int:
        """The id of the next flow, once so many others have been opened."""
        return self._next_id + flows * self._step

    def moved(self, flow: Flow) -> None:
        """Know that a flow has entered another state."""
        if self._pressure is not None:
            self._pressure.moved(flow)

    def victim(self, source: SourceKey | None, now: float) -> Flow | None:
        """The flow that goes for a newcomer to a full table; None if there is none. It stays here.

        Args:
            source: the newcomer's; None if its address is not proven.
            now: monotonic seconds.

        """
        assert self.full, len(self._by_id)
        pressure = self._pressure = self._pressure or Pressure(self)
        if not pressure.complete:
            pressure.survey(SURVEYED)
        return pressure.victim(source, now)

    def set_endpoint(self, flow: Flow, local: Address, remote: Address) -> None:
        """Write the endpoint's socket pair of a flow; a later attempt replaces an earlier one."""
        if flow.endpoint_local is not None:
            self._by_endpoint.discard(flow.endpoint_local, flow)
        flow.endpoint_local = local
        flow.endpoint_remote = remote
        if self._by_endpoint.flows.setdefault(local, flow) is not flow:
            self._by_endpoint.add(local, flow)

    def end(self, flow: Flow, reason: CloseReason, side: CloseSide, now: float) -> bool:
        """End a flow and move it to the ring, unless it has ended already.

        Returns:
            Whether this call was the one that ended it.

        """
        if not flow.end(reason, side, now):
            return False
        self.recent.append(flow)
        self.leave(flow)
        return True

    def get(self, id: int) -> Flow | None:
        """The live flow with this id."""
        return self._by_id.get(id)

    def find_pair(self, pair: SocketPair) -> Flow | None:
        """The live flow that owns this socket pair, be it the client's or the endpoint's.

        The client's is looked for from flow to flow.
        """
        transport, local, remote = pair
        for flow in self._by_endpoint.at(local):
            if flow.endpoint_remote == remote and flow.transport == transport:
                return flow
        for flow in self:
            client_pair = flow.client_local, flow.client_remote
            if client_pair == (local, remote) and flow.transport == transport:
                return flow
        return None

    def leaving_as(self, transport: Transport, local: Address, remote: Address) -> Flow | None:
        """The flow that has this endpoint's pair: a client with it is one of our own flows."""
        for flow in self._by_endpoint.at(local):
            towards = flow.endpoint_remote
            if towards and same_address(towards, remote) and flow.transport == transport:
                return flow
        return None

    def comes_round(
        self, counters: ListenerCounters, client_remote: Address, client_local: Address
    ) -> bool:
        """Whether a client of a listener is one of our own flows that has been there before.

        Follows a chain of flows backwards: the client is the outbound address of one of ours that
        came through another listener, and so on. One listener may feed another on purpose; a chain
        that meets the same listener again goes round for ever.
        """
        if client_remote not in self._by_endpoint.flows:  # nearly always
            return False
        for _ in range(LONGEST_CHAIN):
            before = self.leaving_as(counters.transport, client_remote, client_local)
            if before is None:
                return False
            if before.counters is counters:
                return True
            client_remote, client_local = before.client_remote, before.client_local
            if before.identity is not None and before.identity.via is not None:
                client_remote, client_local = before.identity.via
        return True

    def _bound(self, limit: int) -> None:
        """Have another limit. The books are begun anew: sources may be told apart otherwise."""
        self.limit = limit
        part = limit // NEARLY
        self._nearly = limit - part
        self._roomy = self._nearly - max(1, part)  # not just one that goes for another
        self._pressure = None

    def _crowd(self, flow: Flow) -> None:
        """Enter a flow into the books, and some of those that were there before."""
        pressure = self._pressure
        if pressure is None:
            pressure = self._pressure = Pressure(self)
        else:
            pressure.add(flow)
        if not pressure.complete:
            pressure.survey(SURVEYED)

    def _relieve(self, flow: Flow) -> None:
        """Take a flow out of the books, or throw them away."""
        assert self._pressure is not None
        if len(self._by_id) < self._roomy:
            self._pressure = None
        else:
            self._pressure.discard(flow)


class AddressIndex:
    """From an address to the flows that have it: nearly always one, so a set only for more.

    The set is a dictionary, which keeps its order. It is no list, because a client whose every
    datagram is a flow of its own has thousands of them under one address.

    Attributes:
        flows: what there is. Who has an address alone is entered and taken out by the table itself,
            which saves four calls for each flow.

    """

    __slots__ = ("flows",)

    def __init__(self) -> None:
        self.flows: dict[Address, Flow | dict[Flow, None]] = {}

    def __len__(self) -> int:
        return len(self.flows)

    def add(self, address: Address, flow: Flow) -> None:
        """Enter a flow under an address."""
        there = self.flows.setdefault(address, flow)
        if there is flow:
            return
        if isinstance(there, dict):
            there[flow] = None
        else:
            self.flows[address] = {there: None, flow: None}

    def discard(self, address: Address, flow: Flow) -> None:
        """Take a flow out again; what is not there may be discarded too."""
        there = self.flows.get(address)
        if there is flow:
            del self.flows[address]
        elif isinstance(there, dict) and flow in there:
            del there[flow]
            if len(there) == 1:
                self.flows[address] = next(iter(there))

    def at(self, address: Address) -> tuple[Flow, ...]:
        """The flows that have this address."""
        there = self.flows.get(address)
        if there is None:
            return ()
        return tuple(there) if isinstance(there, dict) else (there,)
