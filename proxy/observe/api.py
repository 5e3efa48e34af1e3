"""The HTTP API: which path tells what, and which changes something.

Strategy: ``ROUTES`` is a table of paths and methods; each entry is a short method that asks the
relay and shapes the answer. HEAD is GET without its body.

Invariants:

* By TCP one can only read. Whatever else is asked for there is refused, with the reason.
* By TCP nothing is told to pages of strangers; see ``trust``.
* Every change that was asked for is logged, with who asked.
* Thousands of rows are encoded in slices, while they are sent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import structlog

from proxy.core.condition import Administration
from proxy.core.live_limit import ORDERS_MAX, LimitValues, problem_of
from proxy.core.query import FlowQuery
from proxy.engine.port import StandingDownError
from proxy.observe.events import READERS_MAX, EventHub
from proxy.observe.exposition import OPENMETRICS, content_type
from proxy.observe.flow_metrics import read_flows
from proxy.observe.http import TEXT, HttpError, Request, Response, json_response
from proxy.observe.media import EVENTS, MATCHED, NDJSON, SILENT, does_not_answer
from proxy.observe.metrics import render
from proxy.observe.page import INDEX as PAGE
from proxy.observe.page import read_assets, wants_page
from proxy.observe.params import (
    ADMINISTERING,
    DRAINING,
    EXPLAINING,
    FINDING,
    KILLING,
    LIMITED,
    LIMITING,
    LISTING,
    RELOADING,
    STREAMING,
    ParamError,
    flow_query,
)
from proxy.observe.paths import Paths
from proxy.observe.questions import (
    check_evictable,
    event_wish,
    flow_id,
    flow_question,
    no_such_listener,
    params_of,
    refused,
    whole_number,
)
from proxy.observe.reader import Wish, as_events, as_lines, read_events
from proxy.observe.rows import listener_rows, upstream_rows
from proxy.observe.samples import Reading
from proxy.observe.trust import Trust

if TYPE_CHECKING:
    from proxy.engine.port import RelayPort, ReloadAnswer, StewardPort, UpgradeAnswer
    from proxy.observe.reader import Message

SLICE_ROWS: Final = 25
"""Rows that are sent at once: a piece of an answer."""

ASKED_ROWS: Final = 100
"""Rows asked for at once. To ask, and be told, are two turns of the pump, and of a pump that has 64
sockets to serve in each a listing of 5,000 rows should not need more of them than rows do."""

LOOKING: Final = frozenset({"GET", "HEAD"})
"""Methods that order nothing."""

NOBODY_ELSE: Final = Trust()

log = structlog.get_logger()


class Api:
    """Answers requests about one relay.

    Args:
        port: the relay.
        steward: reloads and drains the house.
        log_dropped: log lines that were thrown away outside the relay.
        max_series: flows that ``/metrics/flows`` shows at most.
        trust: which names in ``Host`` are our own.

    Attributes:
        hub: numbers what happens to flows; whoever serves has it run.
        admin_refused: connections the server had no room for; it counts here, for the metrics.

    """

    def __init__(
        self,
        port: RelayPort,
        steward: StewardPort,
        log_dropped: Callable[[], int] = lambda: 0,
        max_series: int = 1000,
        trust: Trust = NOBODY_ELSE,
    ) -> None:
        self._port = port
        self._steward = steward
        self._log_dropped = log_dropped
        self._max_series = max_series
        self._trust = trust
        self.hub = EventHub(port)
        self.admin_refused = 0
        self._assets = read_assets()

    async def __call__(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            HttpError: what the client did wrong.

        """
        objection = None if request.local else self._trust.objection(request.headers)
        if objection is not None:
            raise HttpError(403, objection)
        answer, word = PATHS.find(request)
        try:
            if request.method not in LOOKING and self._steward.is_standing_down:
                raise StandingDownError
            return await answer(self, request, word)
        except StandingDownError as error:
            text = "a successor takes over at this moment; ask again, for that one"
            raise HttpError(503, text) from error

    async def index(self, request: Request, _word: str) -> Response:
        """The page, for browsers; for others a list of what there is."""
        if wants_page(request.headers.get("accept", "")):
            return self._assets[PAGE]
        return Response(INDEX.encode(), TEXT)

    async def asset(self, _request: Request, word: str) -> Response:
        """A file of the page."""
        if word not in self._assets:
            raise HttpError(404, f'the page has no file "{word}"')
        return self._assets[word]

    async def metrics(self, request: Request, _word: str) -> Response:
        """Every metric, in the format the scraper likes best."""
        counters = await self._port.counters()
        counters["log_dropped"] += self._log_dropped()
        status = await self._port.status()
        accept = request.headers.get("accept", "")
        reading = Reading(
            counters,
            status,
            self.admin_refused,
            self._steward.last_reload(),
            time() - monotonic(),
            self._steward.names(),
            self._steward.checks(),
        )
        content_type, body = render(reading, accept)
        return Response(body, content_type)

    async def flow_metrics(self, request: Request, _word: str) -> Response:
        """The largest flows as metrics."""
        kind = content_type(request.headers.get("accept", ""))
        openmetrics = kind.startswith(OPENMETRICS)
        body = await read_flows(self._port, self._max_series, openmetrics=openmetrics)
        return Response(body, kind)

    async def healthz(self, _request: Request, _word: str) -> Response:
        """Say that the process is alive, and its relay answers: a worker at least."""
        workers = (await self._port.status())["workers"]
        if all(row["silent"] is not None for row in workers):
            raise HttpError(503, "no worker answers")
        return Response(b"ok\n", TEXT)

    async def readyz(self, _request: Request, _word: str) -> Response:
        """Say whether new flows are welcome, and if not, why."""
        status = await self._port.status()
        reasons = [*(["draining"] if status["draining"] else []), *status["not_ready"]]
        if reasons:
            raise HttpError(503, f"not ready: {'; '.join(reasons)}", reasons=reasons)
        return Response(b"ready\n", TEXT)

    async def status(self, request: Request, _word: str) -> Response:
        """The relay's status."""
        params_of(request, ())
        status = await self._port.status()
        return json_response({**status, "predecessors": self._steward.predecessors()})

    async def listeners(self, request: Request, _word: str) -> Response:
        """Every listener: where it listens, and what its flows have done."""
        params_of(request, ())
        status, counters = await self._port.status(), await self._port.counters()
        return json_response({"listeners": listener_rows(status, counters)})

    async def upstreams(self, request: Request, _word: str) -> Response:
        """Every upstream with its endpoints."""
        params_of(request, ())
        checks = self._steward.checks()
        return json_response({"upstreams": upstream_rows(await self._port.counters(), checks)})

    async def names(self, request: Request, _word: str) -> Response:
        """What is known of the names of endpoints."""
        params_of(request, ())
        return json_response({"names": self._steward.names()})

    async def checks(self, request: Request, _word: str) -> Response:
        """How endpoints are, as active checks show."""
        params_of(request, ())
        return json_response({"checks": self._steward.checks()})

    async def flows(self, request: Request, _word: str) -> Response:
        """Rows of the flow table."""
        values = params_of(request, LISTING)
        check_evictable(values)
        await self._check_listener(values)
        query = flow_query(values)
        found = await self._port.flow_ids(query)
        parts = self._row_parts(found["ids"], recent=query.recent)
        if NDJSON in request.headers.get("accept", ""):
            headers = [(MATCHED, str(found["matched"]))]
            if found["silent"]:
                headers.append((SILENT, ",".join(map(str, found["silent"]))))
            return Response(as_row_lines(parts), NDJSON, headers=tuple(headers))
        return Response(as_object(parts, found["matched"], found["silent"]))

    async def find(self, request: Request, _word: str) -> Response:
        """Which flows own an address or port on either pair: live ones, then recently closed."""
        values = params_of(request, FINDING)
        if not values.keys() & {"address", "port"}:
            raise HttpError(400, 'say what to find: "?address=192.0.2.1:80" or "?port=80"')
        page = await self._port.flows(flow_query(values))
        recent = await self._port.flows(flow_query(values, recent=True, sort="opened"))
        matched = page["matched"] + recent["matched"]
        rows = [*page["rows"], *recent["rows"]]
        silent = sorted({*page["silent"], *recent["silent"]})
        return json_response({"flows": rows, "matched": matched, "silent": silent})

    async def explain(self, request: Request, _word: str) -> Response:
        """What a new flow would meet with, and why; nothing is sent, and nothing changes."""
        values = params_of(request, EXPLAINING, verbatim=("client",))
        question = flow_question(values)
        rows = (await self._port.counters())["listeners"]
        if (problem := no_such_listener(rows, question)) is not None:
            raise HttpError(404, problem)
        explanation = await self._port.explain(question)
        if explanation is None:
            asked = f'nobody serves this client at listener "{question.listener}" now'
            why = "it was closed, or its worker does not answer, or is being started again"
            raise HttpError(503, f"{asked}: {why}")
        return json_response(explanation)

    async def events(self, request: Request, _word: str) -> Response:
        """What happens to flows, for as long as the client listens."""
        values = params_of(request, STREAMING)
        await self._check_listener(values)
        if self.hub.full:
            raise HttpError(503, f"{READERS_MAX} others read events already; try again later")
        wish = event_wish(values, request.headers.get("last-event-id"))
        accepted = "ndjson" if NDJSON in request.headers.get("accept", "") else "sse"
        if values.get("format", accepted) == "ndjson":
            return Response(self._event_pieces(wish, as_lines), NDJSON, lasting=True)
        return Response(self._event_pieces(wish, as_events), EVENTS, lasting=True)

    async def flow(self, request: Request, word: str) -> Response:
        """One flow, live or recently closed."""
        params_of(request, ())
        number = flow_id(word)
        silent: set[int] = set()
        for recent in (False, True):
            page = await self._port.flows(flow_query({}, id=number, recent=recent))
            if page["rows"]:
                return json_response(page["rows"][0])
            silent.update(page["silent"])
        if silent:
            raise HttpError(503, f"{does_not_answer(sorted(silent))}, and may have flow {number}")
        raise HttpError(404, f"no flow {number} is live, or was closed recently")

    async def kill_flow(self, request: Request, word: str) -> Response:
        """End one flow."""
        params_of(request, ())
        number = flow_id(word)
        if not await self._kill(request, flow_query({}, id=number)):
            raise HttpError(404, f"no flow {number} is live")
        return json_response({"killed": 1})

    async def kill_flows(self, request: Request, _word: str) -> Response:
        """End every flow that matches."""
        values = params_of(request, KILLING)
        everything = values.pop("all", False)
        if bool(values) == everything:
            raise HttpError(
                400, 'say which flows: by filters, such as "?listener=web", or all=true'
            )
        await self._check_listener(values)
        return json_response({"killed": await self._kill(request, flow_query(values))})

    async def reload(self, request: Request, _word: str) -> Response:
        """Read the configuration again, and do what it says."""
        values = params_of(request, RELOADING)
        answer = await self._steward.reload(request.peer, dry_run=values.get("dry_run", False))
        return _unless_refused(answer)

    async def upgrade(self, request: Request, _word: str) -> Response:
        """Start the program anew, and leave everything to that."""
        values = params_of(request, RELOADING)
        answer = await self._steward.upgrade(request.peer, dry_run=values.get("dry_run", False))
        return _unless_refused(answer)

    async def drain(self, request: Request, _word: str) -> Response:
        """Begin to drain a listener, or an endpoint; the status tells how it goes on."""
        values = params_of(request, DRAINING, verbatim=("endpoint",))
        listener, endpoint = values.get("listener"), values.get("endpoint")
        if (listener is None) == (endpoint is None):
            raise HttpError(400, 'say what to drain: "?listener=web" or "?endpoint=192.0.2.1:80"')
        answer = await self._steward.drain(
            listener, endpoint, values.get("upstream"), values.get("timeout"), by=request.peer
        )
        if not answer["draining"]:
            raise HttpError(404, await self._no_target(listener, endpoint))
        return json_response(answer)

    async def disable(self, request: Request, _word: str) -> Response:
        """Give an endpoint no new flows until it is enabled; those it has live on."""
        return await self._administer(request, Administration.DISABLED)

    async def enable(self, request: Request, _word: str) -> Response:
        """Give an endpoint new flows again that was disabled, or drained."""
        return await self._administer(request, Administration.ENABLED)

    async def _administer(self, request: Request, administration: Administration) -> Response:
        values = params_of(request, ADMINISTERING, verbatim=("endpoint",))
        endpoint = values.get("endpoint")
        if endpoint is None:
            raise HttpError(400, 'say which endpoint: "?endpoint=192.0.2.1:80"')
        upstream = values.get("upstream")
        done = await self._steward.administer(endpoint, upstream, administration, request.peer)
        if not done:
            raise HttpError(404, await self._no_target(None, endpoint))
        return json_response({"endpoints": done})

    async def limits(self, request: Request, _word: str) -> Response:
        """Every limit in force, and where it comes from."""
        params_of(request, ())
        return json_response(await self._steward.limits())

    async def limit(self, request: Request, _word: str) -> Response:
        """Keep flows to an order from now on."""
        params = params_of(request, LIMITING)
        await self._check_listener(params)
        query = flow_query({name: params[name] for name in LIMITED if name in params})
        values = LimitValues(*map(params.get, LimitValues._fields))
        problem = problem_of(query, values)
        if problem is not None:
            raise HttpError(400, problem)
        if query.id is not None:
            page = await self._port.flows(FlowQuery(id=query.id))
            if not page["rows"] and not page["silent"]:  # a silent worker may have it
                raise HttpError(404, f'no flow {query.id} is live; "sockpair flows" lists them')
        row = await self._steward.limit(query, values, params.get("for"), by=request.peer)
        if row is None:
            there = f"{ORDERS_MAX} limits are set already"
            raise HttpError(507, f'{there}; lift some: "sockpair limits" lists them')
        return json_response(row)

    async def lift_limit(self, request: Request, word: str) -> Response:
        """Keep flows to an order no more."""
        params_of(request, ())
        number = whole_number(word, "the number of a limit: numbers")
        row = await self._steward.lift_limit(number, by=request.peer)
        if row is None:
            raise HttpError(404, f'there is no limit {number}; "sockpair limits" lists them')
        return json_response(row)

    async def _no_target(self, listener: str | None, endpoint: str | None) -> str:
        """Name what there is in place of what there is not."""
        counters = await self._port.counters()
        if listener is not None:
            there = sorted({row["listener"] for row in counters["listeners"]})
            return f'there is no listener "{listener}"; there are: {", ".join(there)}'
        there = sorted({row["endpoint"] for row in counters["endpoints"]})
        return f'no upstream has the endpoint "{endpoint}"; there are: {", ".join(there)}'

    async def _row_parts(self, ids: list[int], *, recent: bool) -> AsyncGenerator[list[str], None]:
        """Rows as JSON, made while they are sent: a slow reader holds ids, and some rows."""
        for start in range(0, len(ids), ASKED_ROWS):
            found = await self._port.flow_rows(ids[start : start + ASKED_ROWS], recent=recent)
            rows = [row for row in found if row is not None]
            for at in range(0, len(rows), SLICE_ROWS):
                yield rows[at : at + SLICE_ROWS]

    async def _event_pieces(
        self, wish: Wish, write: Callable[[Sequence[Message]], bytes]
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(read_events(self.hub, wish)) as messages:
            async for some in messages:
                yield write(some)

    async def _kill(self, request: Request, query: FlowQuery) -> int:
        killed = await self._port.kill(query)
        asked = f"{request.path}?{request.query}".rstrip("?")
        if killed:
            log.warning("flows_killed", killed=killed, asked=asked, by=request.peer)
        return killed

    async def _check_listener(self, values: dict[str, Any]) -> None:
        """Refuse the name of no listener, which would match nothing and look like an answer."""
        if "listener" not in values:
            return
        names = [row["listener"] for row in (await self._port.counters())["listeners"]]
        if values["listener"] not in names:
            named = f'there is no listener "{values["listener"]}"'
            raise refused(ParamError("listener", f"{named}; there are: {', '.join(names)}"))


async def as_object(
    parts: AsyncGenerator[list[str], None], matched: int, silent: list[int]
) -> AsyncGenerator[bytes, None]:
    """Rows as one object, which says how many match, and whose are missing."""
    separator = '{"flows":['
    async with aclosing(parts):
        async for rows in parts:
            yield (separator + ",".join(rows)).encode()
            separator = ","
    opening = "" if separator == "," else separator
    yield f'{opening}],"matched":{matched},"silent":{silent}}}\n'.encode()


async def as_row_lines(
    parts: AsyncGenerator[list[str], None],
) -> AsyncGenerator[bytes, None]:
    """Rows, each as a line."""
    async with aclosing(parts):
        async for rows in parts:
            yield "\n".join([*rows, ""]).encode()


def _unless_refused(answer: ReloadAnswer | UpgradeAnswer) -> Response:
    """What was done; an error with every problem where nothing was."""
    if answer["problems"]:
        raise HttpError(409, "nothing was changed; see the problems", **answer)
    return json_response(answer)


Method: TypeAlias = Callable[[Api, Request, str], Awaitable[Response]]

FLOW_PATH: Final = "/api/v1/flows/ID"
LIMIT_PATH: Final = "/api/v1/limits/NUMBER"
ASSET_PATH: Final = "/page/NAME"

ROUTES: Final[dict[str, dict[str, Method]]] = {
    "/": {"GET": Api.index},
    ASSET_PATH: {"GET": Api.asset},
    "/metrics": {"GET": Api.metrics},
    "/metrics/flows": {"GET": Api.flow_metrics},
    "/healthz": {"GET": Api.healthz},
    "/readyz": {"GET": Api.readyz},
    "/api/v1/status": {"GET": Api.status},
    "/api/v1/listeners": {"GET": Api.listeners},
    "/api/v1/upstreams": {"GET": Api.upstreams},
    "/api/v1/names": {"GET": Api.names},
    "/api/v1/checks": {"GET": Api.checks},
    "/api/v1/find": {"GET": Api.find},
    "/api/v1/explain": {"GET": Api.explain},
    "/api/v1/events": {"GET": Api.events},
    "/api/v1/flows": {"GET": Api.flows, "DELETE": Api.kill_flows},
    "/api/v1/reload": {"POST": Api.reload},
    "/api/v1/upgrade": {"POST": Api.upgrade},
    "/api/v1/drain": {"POST": Api.drain},
    "/api/v1/disable": {"POST": Api.disable},
    "/api/v1/enable": {"POST": Api.enable},
    "/api/v1/limits": {"GET": Api.limits, "POST": Api.limit},
    LIMIT_PATH: {"DELETE": Api.lift_limit},
    FLOW_PATH: {"GET": Api.flow, "DELETE": Api.kill_flow},
}

PATHS: Final = Paths(ROUTES, (FLOW_PATH, LIMIT_PATH, ASSET_PATH))

INDEX: Final = f"""sockpair

/                   the page, in a browser
/metrics            Prometheus metrics
/metrics/flows      the largest flows as metrics, for a scrape job of its own
/healthz            alive
/readyz             every listener bound, its upstream usable
/api/v1/status      the relay
/api/v1/listeners   where it listens, with counters
/api/v1/upstreams   endpoints, with counters
/api/v1/names       addresses of the names of endpoints, and how looking them up went
/api/v1/checks      health of endpoints, as active checks show
/api/v1/flows       the flow table; parameters: {", ".join(LISTING)}
/api/v1/flows/ID    one flow
/api/v1/limits      every limit in force, and where it comes from
/api/v1/find        ?address=HOST:PORT or ?port=PORT: the flows that own it on either pair
/api/v1/explain     what a new flow would meet with, and why; parameters:
                    {", ".join(EXPLAINING)}
/api/v1/events      the flow table, then what happens to its flows, as server-sent events or
                    NDJSON; parameters: {", ".join(STREAMING)}

On the admin socket also DELETE /api/v1/flows/ID, DELETE /api/v1/flows with filters,
POST /api/v1/reload, with dry_run=true to see what it would do, POST /api/v1/upgrade with the same
to have the new version check the file only, and POST /api/v1/drain with
listener=NAME, or with endpoint=HOST:PORT and perhaps upstream=NAME, and perhaps timeout=30s;
POST /api/v1/disable and /api/v1/enable with endpoint=HOST:PORT and perhaps upstream=NAME;
POST /api/v1/limits with {", ".join(LIMITING)}; and DELETE /api/v1/limits/NUMBER.
"""
