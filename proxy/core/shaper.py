"""Bandwidth of streams: who may move how many bytes now, and who must wait until when.

A listener's direction has one ``Shaper``. It is a tree of three levels: the listener, its sources,
their flows (a flow's direction is a ``Share``). Each of them may have a ceiling, which is a bucket
(``core.rate``). Nothing is buffered here: who gets no grant is not read, and the kernel's window
pushes back on the sender.

Strategy. When nobody waits and the buckets have something, ``ask`` grants at once and nothing is
queued. Otherwise a share *lines up*. What lacks tokens of its own, a share or a source, waits on
the *clock* for the moment when it has a piece; everything else waits in the line of the level
above. Its *tag* is what it has been served, in full grants divided by its weight, and served first
is who would be done first: the least tag plus what it wants next. So whoever waits has had as much
as its neighbours, within a grant: that is max-min fairness, first between sources, then in each
between its flows. A level's *virtual time* is the largest tag that was served. Who comes back has
at least that but for one grant, so nobody saves up; and what a ceiling of its own held back wants
little, so that it is next and keeps its ceiling beside thousands without one. Who is new pays
first: its tag is one grant behind. So newcomers never overtake without end those who wait, and it
gains nobody anything to go and come back as somebody new.

A *full grant* is what the shared ceilings let pass at once, as they are at the time: so who has had
one is one behind, whatever they become. Counted in bytes, one of two flows below 1 Gbit/s had
nothing for up to 16 s when that became 64 kbit/s: its neighbour had to catch up with 128 KiB.

The one grant is for streams that run dry: a TCP sender, whose window is used up, is out of line for
a fraction of a millisecond, and what it was due by then would be lost each time. A source with one
stream had 1.4 to 1.9 times as much as its neighbours where its weight said 2. It is no more than
who stays in line may be behind, and is given once, because only what is served raises a tag.

While nobody waits, moves go by *leases* and are booked later; see ``core.lease``. A level lends
what its bucket holds, up to a part of its burst, and nothing while somebody waits below it. Who is
far from all limits needs no share at all until it has moved what a new bucket holds, and most flows
never do; see ``core.share``.

Rejected: deficit round robin, which is served in O(1) where this is O(log n) with a small constant.
A turn comes once in a round; with many sources that takes longer than a bucket holds, and one with
a low ceiling then gets a part of it only, however much there is. The same happens when the least
tag alone goes first, without what is wanted: all that stand level are before one a byte ahead.

Invariants:

- In any span of ``t`` seconds each of the three passes at most ``burst + per_second * t``.
- A share that waits is in exactly one line, and so is each source with shares in its own.
- A share leaves the line only by moving less than it was granted, or by ``leave``.

Units: bytes, seconds, bytes a second. Pure: time is an argument, monotonic.

Source: P. Goyal, H. Vin, H. Cheng, "Start-time fair queueing" (1996), for the virtual time, which
needs no knowledge of the server's rate and so holds below ceilings, and for hierarchies; A. Demers,
S. Keshav, S. Shenker, "Analysis and simulation of a fair queueing algorithm" (1989), for the order.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from proxy.core.admission import Limit
from proxy.core.ceiling import GRANT_MAX, PAUSE, SLACK, Ceiling, ShapeRates
from proxy.core.kept import Kept
from proxy.core.lease import Lease
from proxy.core.line import Line
from proxy.core.share import Group, Node, Share, lacks

if TYPE_CHECKING:
    from proxy.core.rate import Rate
    from proxy.core.share import Newcomer


class Shaper:
    """Grants of one direction of one listener.

    Args:
        rates: the ceilings at the start.
        now: monotonic seconds.

    Attributes:
        let_go: tell, by its source, that a direction that was let in has ended without a share;
            exactly once for each.

    """

    __slots__ = (
        "_clock",
        "_flow",
        "_full_grant",
        "_listener",
        "_numbers",
        "_root",
        "_served_at",
        "_source",
        "_sources",
        "_whole",
        "let_go",
    )

    def __init__(self, rates: ShapeRates, now: float) -> None:
        self._listener = Ceiling(rates.listener)
        self._source = Ceiling(rates.source)
        self._flow = Ceiling(rates.flow)
        self._full_grant = self._largest_grant()
        self._numbers = count()
        self._root = Group(None, self._listener, 0.0, now, numbers=self._numbers)
        self._clock: Line[Node] = Line(self._numbers)
        self._served_at = now - PAUSE
        self._whole = Lease(self._listener.first_lease)
        self._sources: Kept[Group] = Kept()
        self.let_go = self._sources.leave

    def become(self, rates: ShapeRates) -> None:
        """Have other ceilings, for the flows that exist too; O(1). See ``Ceiling.become``.

        Nobody moves by a lease of the old ones: each share goes by the listener's lease that it
        knows, and that has nothing left; who comes new has its source's called back.
        """
        before = self._whole
        self._whole = Lease(0, before.lent - before.left)
        before.left = 0
        self._listener.become(rates.listener)
        self._source.become(rates.source)
        self._flow.become(rates.flow)
        self._full_grant = self._largest_grant()

    def join(
        self, source_key: Hashable, now: float, weight: float = 1, flow_rate: Rate | None = None
    ) -> Share:
        """Enter a flow's direction, which does not wait for anything yet.

        Args:
            source_key: whose it is.
            now: monotonic seconds.
            weight: of the source beside others, more than 0; the latest that was told holds.
            flow_rate: a ceiling of its own, in place of the common one.

        """
        source = self._joined(source_key, now, weight)
        source.weight = weight
        return Share(source, flow_rate, self._whole, now)

    def let_in(
        self, newcomer: Newcomer, source_key: Hashable, now: float, weight: float = 1
    ) -> None:
        """Enter a flow's direction without a share; the arguments are those of ``join``.

        Until it has one it may move what it has left at each level, and needs not ask.
        """
        source = self._sources.get(source_key)
        if source is not None and source.members:
            source.members += 1
            if source.whole is not self._whole:
                self._call_back(source)
        else:
            source = self._joined(source_key, now, weight)
        source.weight = weight
        newcomer.source = source
        newcomer.whole = self._whole
        newcomer.left = self._flow.first_lease

    def share_of(self, newcomer: Newcomer, since: float, moved: int) -> Share:
        """Make the share of a direction that was let in, in its place.

        Args:
            newcomer: which; nothing is left for it any more.
            since: when it was let in.
            moved: bytes since then.

        """
        share = Share(newcomer.source, None, self._whole, since)
        share.left, share.lent = 0, moved
        return share

    def weigh(self, share: Share, weight: float) -> None:
        """Give a share's source another weight, from its next grant on."""
        share.source.weight = weight

    def leave(self, share: Share) -> None:
        """It ended, wherever it is; exactly once for each ``join`` or ``share_of``."""
        self._sources.leave(share.source)
        if share.line is not None:
            self._withdraw(share)
        share.granted = 0

    def ask(self, share: Share, now: float) -> int:
        """Say how many bytes it may move now; 0: it waits in line, and ``serve`` will grant."""
        if share.line is not None:
            return 0
        source, root = share.source, self._root
        share.book(now)
        source.book(now)
        self._book_whole(now)
        if source.queue.heap or root.queue.heap:
            self._line_up(share, now)
            return 0
        if (
            share.full_at - now <= share.ceiling.at_most
            and source.full_at - now <= source.ceiling.at_most
            and root.full_at - now <= root.ceiling.at_most
        ):
            return GRANT_MAX
        if lacks(share, now) or lacks(source, now) or lacks(root, now):
            self._line_up(share, now)
            return 0
        return self._grant(share, now)

    def spent(self, share: Share, size: int, now: float) -> None:
        """Book what it moved, of what ``ask`` or ``serve`` granted.

        After a grant of ``serve``: if that was all of it, the share is still hungry and lines up
        again; if it was less, there is no more to move, and it waits no longer.
        """
        # Three times the same, without a loop or max(): half the time of the way of a request.
        source, root, whole = share.source, self._root, self._whole
        moved = size + share.lent - share.left
        full_at = share.full_at
        share.full_at = (full_at if full_at > now else now) + moved * share.ceiling.cost  # noqa: FURB136
        moved = size + source.lent - source.left
        full_at = source.full_at
        source.full_at = (full_at if full_at > now else now) + moved * source.ceiling.cost  # noqa: FURB136
        moved = size + whole.lent - whole.left
        full_at = root.full_at
        root.full_at = (full_at if full_at > now else now) + moved * root.ceiling.cost  # noqa: FURB136
        self._lend(share, now)
        if share.granted:
            self._settle(share, size, now)

    def held_by(self, share: Share) -> Limit | None:
        """Say which limit makes a share wait; None: it does not wait."""
        if share.line is None:
            return None
        if share.line is self._clock:
            return Limit.FLOW_BANDWIDTH
        if share.source.line is self._clock:
            return Limit.SOURCE_BANDWIDTH
        return Limit.LISTENER_BANDWIDTH

    def waiting(self) -> float:
        """The weight of the sources that wait for the listener's bandwidth."""
        return sum(node.weight for node in self._root.queue)

    def next_at(self) -> float:
        """When to call ``serve`` next, which may be in the past; inf: nobody waits."""
        root = self._root
        if root.queue.heap:
            at = root.full_at - root.ceiling.at_piece
        elif self._clock.heap:
            at = self._clock.heap[0][0]
        else:
            return inf
        return max(at, self._served_at + PAUSE)

    def serve(self, now: float) -> Iterator[tuple[Share, int]]:
        """Grants in fair order, until the listener has no more or nobody waits.

        The caller moves the bytes and calls ``spent`` (or ``leave``) before it takes the next
        grant. It may stop at any time, and has to where its time is over: who waits keeps its
        place, and without a ceiling for the listener there may be no end as long as bytes come.
        """
        self._served_at = now
        self._ring(now)
        root = self._root
        while root.queue.heap and not lacks(root, now):
            share = self._first()
            share.granted = grant = self._grant(share, now)
            yield share, grant
            assert not share.granted, "a grant was not settled"

    def _ring(self, now: float) -> None:
        """Line up those whose own tokens have come."""
        clock = self._clock
        while clock.heap and clock.heap[0][0] <= now:
            node = clock.first
            clock.drop(node)
            self._line_up(node, now)

    def _first(self) -> Share:
        group = self._root
        while True:
            node = group.queue.first
            group.virtual = max(group.virtual, node.tag)
            if isinstance(node, Share):
                return node
            assert isinstance(node, Group)
            group = node

    def _grant(self, share: Share, now: float) -> int:
        """All that its buckets hold; where others wait too, a piece or its part of ``SLACK``."""
        grant = float(GRANT_MAX)
        sharers = 1
        node: Node | None = share
        while node is not None:
            ceiling = node.ceiling
            grant = min(grant, ceiling.tokens(node.full_at - now))
            if sharers > 1:
                part = min(ceiling.piece, ceiling.per_second * SLACK / sharers)
                grant = min(grant, max(ceiling.quantum, part))
            node = node.parent
            if isinstance(node, Group):
                sharers *= len(node.queue) or 1
        return max(1, int(grant))

    def _settle(self, share: Share, size: int, now: float) -> None:
        """Move the share and its source to where they belong after a turn."""
        granted, share.granted = share.granted, 0
        again = size >= granted
        node: Node = share
        while (group := node.parent) is not None:
            assert node.line is group.queue
            group.queue.drop(node)
            group.latest = granted / self._full_grant
            node.tag += size / self._full_grant / node.weight
            if again:
                self._put(node, now)
            again = bool(group.queue.heap)
            node = group

    def _line_up(self, node: Node, now: float) -> None:
        """Put a node into its line, and each level above that had nobody in line until now."""
        while (group := node.parent) is not None and node.line is None:
            node.tag = max(node.tag, group.oldest_tag(node.weight))
            if not self._put(node, now):
                return
            node = group

    def _put(self, node: Node, now: float) -> bool:
        """Put a node into the line of its group, or else on the clock; return whether the first.

        Who goes on after a grant keeps its tag, even behind the virtual time: that is its due.
        """
        group = node.parent
        assert group is not None
        if lacks(node, now):
            self._clock.push(node.full_at - node.ceiling.at_piece, node)
            return False
        wants = min(self._quantum(), node.ceiling.tokens(node.full_at - now))
        if isinstance(node, Group):
            wants = min(wants, node.queue.first.wants)
        node.wants = wants
        if not group.queue.heap:
            self._call_in(group, now)
        group.queue.push(node.tag + wants / self._full_grant / node.weight, node)
        return True

    def _quantum(self) -> float:
        """What is wanted at most, so that among those who want a lot only what they had counts."""
        return max(self._listener.quantum, self._source.quantum)

    def _largest_grant(self) -> float:
        """What the ceilings that are shared let pass at once; tags are counted in it."""
        return min(GRANT_MAX, self._listener.burst, self._source.burst)

    def _withdraw(self, node: Node) -> None:
        """Take a node out of its line, and each level above that has nobody else in line."""
        while node.line is not None:
            in_group = node.parent is not None and node.line is node.parent.queue
            node.line.drop(node)
            if not in_group or node.parent is None or node.parent.queue.heap:
                return
            node = node.parent

    def _lend(self, share: Share, now: float) -> None:
        """Lend at each level what it can spare; a share in line is granted instead."""
        source, root, whole = share.source, self._root, self._whole
        ceiling = share.ceiling
        calm = share.line is None and share.full_at - now <= ceiling.at_lease
        share.left = share.lent = ceiling.lease if calm else 0
        share.whole = whole
        ceiling = source.ceiling
        calm = not source.queue.heap and source.full_at - now <= ceiling.at_lease
        source.left = source.lent = ceiling.lease if calm else 0
        source.whole = whole
        ceiling = root.ceiling
        calm = not root.queue.heap and root.full_at - now <= ceiling.at_lease
        whole.left = whole.lent = ceiling.lease if calm else 0

    def _book_whole(self, now: float) -> None:
        """Book what was moved by the lease of the listener."""
        whole, root = self._whole, self._root
        moved = whole.lent - whole.left
        if moved:
            root.full_at = root.ceiling.after_lease(root.full_at, moved, now)
            whole.lent = whole.left

    def _call_in(self, group: Group, now: float) -> None:
        """End the lease of a level below which somebody waits now."""
        if group is self._root:
            self._book_whole(now)
            self._whole.left = self._whole.lent = 0
        else:
            group.book(now)
            group.left = group.lent = 0

    def _joined(self, key: Hashable, now: float, weight: float) -> Group:
        source = self._sources.join(key, now)
        if source is None:
            return self._new_source(key, now, weight)
        if source.whole is not self._whole:
            self._call_back(source)
        return source

    def _call_back(self, source: Group) -> None:
        """End a lease of before the ceilings changed; who is new knows the listener's new one."""
        source.lent -= source.left
        source.left = 0
        source.whole = self._whole

    def _new_source(self, key: Hashable, now: float, weight: float) -> Group:
        root = self._root
        tag = root.newest_tag(weight)
        source = Group(root, self._source, tag, now, numbers=self._numbers)
        source.key = key
        source.inside = self._flow
        source.left = source.lent = self._source.first_lease
        source.whole = self._whole
        return self._sources.enter(source, now)
