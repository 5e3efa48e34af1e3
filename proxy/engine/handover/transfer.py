"""The hand-over: flows of a worker that leaves go to its heirs, over a Unix socket to each.

The predecessor says, in this order, each a message of a kind and a body:

* ``D`` states of flows of datagrams, with their descriptors; and ``E`` when that is all, with what
  an heir has to know beside flows (``Papers``);
* ``S`` states of streams, with theirs, in batches, each when the one before is settled;
* ``W`` clients that are not admitted yet, with theirs, once all streams have gone that could; then
  ``S`` again, of those that can go only later;
* ``R`` states of flows that ended;
* ``Z``: nothing more will come.

Before ``D`` and before each ``S`` it waits until the heir says that it is ready (``G``), because
what is to be given stands still from then on. So it knows, too, when what it gave before is served.
With its first ``G`` the heir sends a descriptor of its process, and one of its line if it has a
standby (see ``process_file``), so that the predecessor sees them die, and takes back what they had,
see ``custody``.

The heir acknowledges (``A``) what came with ``E``, ``S`` or ``W`` when it has all of it in its
hands: it can read it, and holds every descriptor. Then the predecessor *commits* (``C``), and
closes what was its own; only after that the heir touches the flows. If anything goes wrong before,
the predecessor says so (``X``), or closes the socket in the middle of a message, and its flows thaw
there. So at every moment a flow has one owner. A predecessor that dies between ``A`` and ``C`` has
said nothing of the kind, and its descriptors are gone: then the flows are the heir's.

Datagrams first, and all at once, because flows of a listener share its socket: nobody reads it
meanwhile, and datagrams wait in its buffer. The heir takes the flows in the same turn in which it
begins to read it. Streams are on their own: each stands still only while its batch is on the way.

Source: unix(7) SCM_RIGHTS.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Final, NamedTuple, TypeAlias, TypeVar

import trio

from proxy.core.flow_state import (
    ClientState,
    FlowState,
    StateError,
    read_clients,
    read_states,
    write_clients,
    write_states,
)
from proxy.engine.handover.process_file import ProcessFile
from proxy.engine.wire import Wire, WireError

DATAGRAMS: Final = b"D"
NO_MORE_DATAGRAMS: Final = b"E"
STREAMS: Final = b"S"
CLIENTS: Final = b"W"
ENDED: Final = b"R"
NOTHING_MORE: Final = b"Z"
READY: Final = b"G"
ACKNOWLEDGED: Final = b"A"
COMMITTED: Final = b"C"
ABANDONED: Final = b"X"

BATCH: Final = 100
"""Flows of one message: a few milliseconds of both workers, and descriptors for one message."""

DATAGRAM_BATCH: Final = 250
"""The same of flows that all stand still until the last has gone: a descriptor each, and as few
turns of the pump between as can be, while the heir still reads one message as we write the next."""

PATIENCE: Final = 10.0
"""Seconds that the other side may take for a step of milliseconds; then it is given up."""


class HandOverError(Exception):
    """The other side is gone, too slow, or cannot read what it is given."""


Moving: TypeAlias = tuple[FlowState, tuple[int, ...]]
"""A flow on its way: its state, and its descriptors."""


Waiting: TypeAlias = tuple[ClientState, tuple[int, ...]]
"""A client on its way: its state, and its descriptor."""


class Batch(NamedTuple):
    """What came with one message.

    Attributes:
        kind: of the message.
        flows: live ones, or such that ended.
        clients: that are not admitted yet.

    """

    kind: bytes
    flows: list[Moving]
    clients: list[Waiting]


class Papers(NamedTuple):
    """What an heir has to know beside flows.

    Attributes:
        next_id: beyond the ids of all the predecessor's flows, and of those that who waits there to
            be admitted may have yet.
        offset: Unix time less monotonic time, as the predecessor sees it: each process measures
            that a little otherwise, and times that were told once shall not waver.
        drops: what the kernel had dropped on each listening socket of datagrams, by its cookie,
            and the predecessor has counted.

    """

    next_id: int
    offset: float
    drops: Mapping[int, int]

    def write(self) -> bytes:
        """Write it as JSON."""
        return json.dumps([self.next_id, self.offset, list(self.drops.items())]).encode()


def read_papers(text: bytes) -> Papers:
    """Read what ``Papers.write`` has written.

    Raises:
        StateError: it has not.

    """
    try:
        next_id, offset, drops = json.loads(text)
        return Papers(int(next_id), float(offset), {int(each): int(n) for each, n in drops})
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise StateError(f"no papers: {error}") from error


class Bequest(NamedTuple):
    """All flows of datagrams of a predecessor.

    Attributes:
        flows: the receiver's, with their descriptors.
        papers: what is to be known beside them.

    """

    flows: list[Moving]
    papers: Papers


class Bequeather:
    """The predecessor's end. Owns the wire.

    Args:
        wire: to the heir.

    Attributes:
        stands_still: whether the heir has not answered in time.

    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.stands_still = False

    async def meet(self) -> ProcessFile | None:
        """Wait until the heir can take datagrams; return its process, if it is to be watched.

        Raises:
            HandOverError: it cannot; the wire is to be closed.

        """
        files = await self._hear(READY, files=2)
        try:
            return ProcessFile(*files) if files else None
        except ValueError as error:
            for fd in files:
                os.close(fd)
            raise HandOverError(str(error)) from error

    async def wait_ready(self) -> None:
        """Wait until the heir can take streams.

        Raises:
            HandOverError: it cannot; the wire is to be closed.

        """
        await self._hear(READY)

    async def give_datagrams(self, flows: Sequence[Moving], papers: Papers) -> None:
        """Give all flows of datagrams, and wait until the heir has them.

        Raises:
            HandOverError: it has not; the wire is closed.

        """
        for start in range(0, len(flows), DATAGRAM_BATCH):
            await self._give(DATAGRAMS, flows[start : start + DATAGRAM_BATCH])
        await self._send(NO_MORE_DATAGRAMS + papers.write())
        await self._hear(ACKNOWLEDGED)

    async def give_streams(self, flows: Sequence[Moving]) -> None:
        """Give a batch of streams, and wait until the heir has them.

        Raises:
            HandOverError: it has not; the wire is closed.

        """
        await self._give(STREAMS, flows)
        await self._hear(ACKNOWLEDGED)

    async def give_clients(self, clients: Sequence[Waiting]) -> None:
        """Give clients, and wait until the heir has them; that there are none is told, too.

        Raises:
            HandOverError: it has not; the wire is closed.

        """
        body = CLIENTS + write_clients(state for state, _ in clients).encode()
        await self._send(body, [fd for _, files in clients for fd in files])
        await self._hear(ACKNOWLEDGED)

    async def commit(self) -> None:
        """Say that what was given is the heir's; if that cannot be heard, it will be known."""
        with suppress(HandOverError):
            await self._send(COMMITTED)

    async def give_ended(self, states: Sequence[FlowState]) -> None:
        """Give flows that ended.

        Raises:
            HandOverError: the heir does not take them; the wire is closed.

        """
        for start in range(0, len(states), BATCH):
            await self._give(ENDED, [(state, ()) for state in states[start : start + BATCH]])

    async def finish(self) -> None:
        """Say that nothing more will come, and close the wire."""
        with suppress(HandOverError):
            await self._send(NOTHING_MORE)
        self._wire.close()

    async def abandon(self) -> None:
        """Take back what was given and not committed, and close the wire.

        If the heir takes no message, it has not had the whole of the last one either; then the end
        of the wire, in the middle of it, says the same.
        """
        with suppress(HandOverError):
            await self._send(ABANDONED)
        self._wire.close()

    async def _give(self, kind: bytes, flows: Sequence[Moving]) -> None:
        body = kind + write_states(state for state, _ in flows).encode()
        await self._send(body, [fd for _, files in flows for fd in files])

    async def _send(self, body: bytes, files: Sequence[int] = ()) -> None:
        try:
            with trio.fail_after(PATIENCE):
                await self._wire.send(body, files, whole=False)
        except (WireError, trio.TooSlowError) as error:
            self.stands_still |= isinstance(error, trio.TooSlowError)
            self._wire.close()
            raise HandOverError("the heir takes nothing") from error

    async def _hear(self, word: bytes, files: int = 0) -> tuple[int, ...]:
        """Hear a word; return what came with it, which is the caller's: so many at most."""
        try:
            with trio.fail_after(PATIENCE):
                message = await self._wire.receive()
        except (WireError, trio.TooSlowError) as error:
            self.stands_still |= isinstance(error, trio.TooSlowError)
            raise HandOverError(f"the heir does not say {word!r}") from error
        if message.body != word or len(message.files) > files:
            for fd in message.files:
                os.close(fd)
            raise HandOverError(f"the heir should say {word!r}, not {message.body[:9]!r}")
        return message.files


class Heir:
    """The successor's end. Owns the wire, and what it has received until it is taken.

    Args:
        wire: to the predecessor.
        life: of our line, see ``process_file``; None if we have no standby.

    """

    def __init__(self, wire: Wire, life: int | None = None) -> None:
        self._wire = wire
        self._life = life

    async def take_datagrams(self) -> Bequest:
        """Receive all flows of datagrams.

        Raises:
            HandOverError: there will be nothing from this predecessor; the wire is closed.

        """
        flows: list[Moving] = []
        clients: list[Waiting] = []  # there are to be none
        try:
            with trio.fail_after(PATIENCE):
                await self._introduce()
                while (kind := await self._receive(flows, clients))[:1] == DATAGRAMS:
                    pass
            if kind[:1] != NO_MORE_DATAGRAMS:
                raise HandOverError(f"datagrams should come, not {kind[:1]!r}")
            papers = read_papers(kind[1:])
            await self._settle()
        except (WireError, StateError, HandOverError, trio.TooSlowError) as error:
            self._refuse([*flows, *clients])
            raise HandOverError(f"the predecessor gives nothing: {error}") from error
        return Bequest(flows, papers)

    async def be_ready(self) -> None:
        """Say that what came is served, and streams may come.

        Raises:
            HandOverError: the predecessor is gone; the wire is closed.

        """
        try:
            with trio.fail_after(PATIENCE):
                await self._wire.send(READY, whole=False)
        except (WireError, trio.TooSlowError) as error:
            self._refuse([])
            raise HandOverError(f"the predecessor is gone: {error}") from error

    async def take_next(self) -> Batch:
        """Receive what comes next; when that is ``NOTHING_MORE``, the wire is closed.

        Raises:
            HandOverError: there will be no more from this predecessor; the wire is closed.

        """
        flows: list[Moving] = []
        clients: list[Waiting] = []
        try:
            kind = await self._receive(flows, clients)
            if kind in (STREAMS, CLIENTS):
                await self._settle()
            elif kind == NOTHING_MORE:
                self._wire.close()
            elif kind != ENDED:
                raise HandOverError(f"streams should come, not {kind!r}")
        except (WireError, StateError, HandOverError, trio.TooSlowError) as error:
            self._refuse([*flows, *clients])
            raise HandOverError(f"the predecessor gives no more: {error}") from error
        return Batch(kind, flows, clients)

    async def _introduce(self) -> None:
        """Say that datagrams may come, and who we are."""
        process = os.pidfd_open(os.getpid())
        files = [process] if self._life is None else [process, self._life]
        try:
            await self._wire.send(READY, files, whole=False)
        finally:
            os.close(process)

    async def _receive(self, flows: list[Moving], clients: list[Waiting]) -> bytes:
        """Receive a message, and add what is in it; return its kind, and what is of no flow."""
        message = await self._wire.receive()
        kind, rest = message.body[:1], message.body[1:]
        try:
            if kind == CLIENTS:
                clients += _dealt(read_clients(rest), lambda _: 1, message.files)
            elif kind == ENDED:
                flows += _dealt(read_states(rest), lambda _: 0, message.files)
            elif kind in (DATAGRAMS, STREAMS):
                flows += _dealt(read_states(rest), files_of, message.files)
            elif message.files:
                raise HandOverError(f"descriptors came with {kind!r}")
            else:
                return message.body
        except (StateError, HandOverError):
            for fd in message.files:
                os.close(fd)
            raise
        return kind

    async def _settle(self) -> None:
        """Say that all is here, and hear that it is ours; from then on only they can say no.

        Raises:
            HandOverError: it is not.

        """
        with trio.fail_after(PATIENCE):
            await self._wire.send(ACKNOWLEDGED, whole=False)
        try:
            message = await self._wire.receive()
        except WireError:  # it died: it can have closed nothing in order, nor thaw anything
            return
        if message.body != COMMITTED:
            raise HandOverError("it keeps them")

    def _refuse(self, flows: Sequence[Moving | Waiting]) -> None:
        """Close what came, and the wire."""
        self._wire.close()
        for _, files in flows:
            for fd in files:
                os.close(fd)


Each = TypeVar("Each", FlowState, ClientState)


def _dealt(
    states: Sequence[Each], count: Callable[[Each], int], files: tuple[int, ...]
) -> list[tuple[Each, tuple[int, ...]]]:
    """Give each state its descriptors.

    Raises:
        HandOverError: there are more, or fewer.

    """
    counts = [count(state) for state in states]
    if sum(counts) != len(files):
        raise HandOverError(f"{len(files)} descriptors, {sum(counts)} expected")
    ends = accumulate(counts)
    return [
        (state, files[end - each : end])
        for state, each, end in zip(states, counts, ends, strict=True)
    ]


def files_of(state: FlowState) -> int:
    """How many descriptors a flow has."""
    if state.datagrams is None:
        return 2
    return 1 if state.datagrams.responders is None else 2
