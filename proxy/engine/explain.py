"""Explains what a new flow would meet with; see ``core.explanation``. Looks, and changes nothing.

What time alone changes is not foreseen but done, as each scrape does: an endpoint whose ejection is
over comes back. Not looked at is what only packets tell: a loop, a broadcast, a bad header.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core.address import format_address
from proxy.core.address_rows import address_row
from proxy.core.explanation import (
    Explanation,
    RuleRow,
    Trust,
    candidate_rows,
    gate_rows,
    limit_row,
    order_rows,
    verdict,
)
from proxy.core.flow import Refusal
from proxy.core.original import OriginalUpstream
from proxy.engine.datagram import FILES_PER_FLOW as FILES_PER_DATAGRAM_FLOW
from proxy.engine.queue import UpstreamQueue
from proxy.engine.stream import FILES_PER_FLOW

if TYPE_CHECKING:
    from proxy.core.explanation import ChoiceRow, FlowQuestion, LimitRow, QueueRow, RouteRow
    from proxy.core.flow import Flow
    from proxy.engine.preface import ProxyTerms
    from proxy.engine.relay import Relay
    from proxy.engine.roster import Roster
    from proxy.engine.search import FlowSearch
    from proxy.engine.specs import ListenerSpec

NO_KEY: Final = ""


class Explainer:
    """Explains what a relay would do.

    Args:
        relay: where flows live.
        roster: its listeners and upstreams.
        search: finds who would go for a newcomer.

    """

    def __init__(self, relay: Relay, roster: Roster, search: FlowSearch) -> None:
        self._relay = relay
        self._roster = roster
        self._search = search

    async def explain(
        self, question: FlowQuestion, now: float, offset: float
    ) -> Explanation | None:
        """Explain one flow; None if there is no such listener.

        Args:
            question: which flow.
            now: monotonic seconds.
            offset: Unix time less monotonic time.

        """
        spec = self._roster.spec_of(question.listener, question.transport)
        if spec is None:
            return None
        question = believed(question, spec)
        evicted = await self._evicted(question, spec)
        self._roster.upstreams.refresh(now)
        rule = rule_of(question, spec)
        route = self._route(question, spec)
        choice = self._choice(question, spec, route["upstream"], now, offset)
        limits = self._limits(question, spec, evicted, now)
        waiting = self._waiting(spec)
        draining = self._relay.draining or spec.name in self._roster.closed_listeners()
        datagrams = spec.transport.is_datagram
        found = verdict(rule, limits, waiting, choice, draining=draining, room_first=datagrams)
        return {
            "transport": spec.transport.value,
            "client": _text(question),
            "listener": spec.name,
            "worker": self._relay.index,
            "outcome": found.outcome.value,
            "reason": found.reason,
            "rule": rule,
            "limits": limits,
            "waiting": waiting,
            "route": route,
            "endpoint": choice,
            "evicted": None if evicted is None else evicted.id,
        }

    async def _evicted(self, question: FlowQuestion, spec: ListenerSpec) -> Flow | None:
        """The flow that goes for this one, where the table is full; None if none does."""
        if not self._relay.table.full:
            return None
        proven = not spec.transport.is_datagram
        return await self._search.victim(spec.admission.key(question.client[0]) if proven else None)

    def _limits(
        self, question: FlowQuestion, spec: ListenerSpec, evicted: Flow | None, now: float
    ) -> list[LimitRow]:
        relay, counters = self._relay, self._roster.counters_of(spec)
        table, files, gate = relay.table, relay.files, counters.gate
        needed = FILES_PER_DATAGRAM_FLOW if spec.transport.is_datagram else FILES_PER_FLOW
        return [
            limit_row(
                Refusal.TABLE_FULL.value,
                len(table),
                table.limit,
                reached=table.full,
                refuses=table.full and evicted is None,
            ),
            limit_row(
                Refusal.FILE_DESCRIPTORS.value,
                files.used,
                files.limit,
                reached=not files.has(needed),
            ),
            *order_rows(relay.orders.admitting(counters, question.client)),
            *gate_rows(gate.levels(gate.key(question.client[0]), now), dry_run=gate.limits.dry_run),
        ]

    def _waiting(self, spec: ListenerSpec) -> QueueRow | None:
        room = self._roster.terms_of(spec).waiting
        if room is None or spec.waiting is None:
            return None
        limits = spec.waiting
        return {"flows": len(room), "ceiling": limits.flows, "seconds": limits.time}

    def _route(self, question: FlowQuestion, spec: ListenerSpec) -> RouteRow:
        routes = self._roster.terms_of(spec).routes
        if routes is None:
            return {"upstream": spec.upstream, "pattern": None, "routes": 0}
        asked = question.server_name, question.alpn
        # Whoever sends no ClientHello takes the default, whatever the patterns say.
        pattern = routes.names.pattern(*asked) if asked != (None, ()) else None
        way = None if pattern is None else routes.names.find(*asked)
        return {
            "upstream": spec.upstream if way is None else way.name,
            "pattern": None if pattern is None else str(pattern),
            "routes": len(routes.names.values),
        }

    def _choice(
        self, question: FlowQuestion, spec: ListenerSpec, name: str, now: float, offset: float
    ) -> ChoiceRow:
        route = self._roster.upstreams[name]
        upstream, balance = route.upstream, route.spec.balance
        if isinstance(upstream, OriginalUpstream):
            empty: ChoiceRow = {
                "balance": balance.value,
                "original": True,
                "queue": None,
                "candidates": [],
            }
            return empty
        source = spec.admission.key(question.client[0]) if upstream.by_source else NO_KEY
        rows = [address_row(each, now, offset) for each in upstream.endpoints]
        datagrams = spec.transport.is_datagram
        foreseen = upstream.foresee(source, now, upstream.shunned(now) if datagrams else ())
        queue = None if datagrams else upstream.queue  # datagrams do not wait
        return {
            "balance": balance.value,
            "original": False,
            "queue": _queue_row(queue) if isinstance(queue, UpstreamQueue) else None,
            "candidates": candidate_rows(upstream, balance, foreseen, rows),
        }


def believed(question: FlowQuestion, spec: ListenerSpec) -> FlowQuestion:
    """The question, of the client itself where nobody believes whom it declares."""
    if question.via is None or _trust(spec.proxied, question.via) in BELIEVED:
        return question
    return question._replace(client=(question.via, 0), via=None)


BELIEVED = frozenset({Trust.TRUSTED, Trust.REFUSED})
"""Who is refused is so, whatever it declares."""


def rule_of(question: FlowQuestion, spec: ListenerSpec) -> RuleRow:
    """Whether the client may come, and by which entry; who must say for whom it comes."""
    host = question.client[0]
    trust = _trust(spec.proxied, question.peer)
    entry = spec.access.entry(host)
    return {
        "admitted": trust is not Trust.REFUSED and spec.access.admits(host),
        "entry": None if entry is None else str(entry),
        "proxy": trust.value,
    }


def _trust(terms: ProxyTerms | None, peer: str) -> Trust:
    if terms is None:
        return Trust.NONE
    if terms.trusted.admits(peer):
        return Trust.TRUSTED
    return Trust.REFUSED if terms.alone else Trust.UNTRUSTED


def _queue_row(queue: UpstreamQueue) -> QueueRow:
    return {
        "flows": len(queue),
        "ceiling": queue.limits.flows,
        "seconds": queue.limits.time,
    }


def _text(question: FlowQuestion) -> str:
    """The client as it was asked for; without a port that nobody named."""
    client = question.client
    return format_address(client) if client[1] else str(client[0])
