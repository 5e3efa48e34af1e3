"""Questions: what a request asks, from its parameters; whatever is wrong with them is a 400.

What a parameter may be stands in ``params``; what several of them mean together stands here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

from proxy.core.events import EventKind
from proxy.core.explanation import FlowQuestion
from proxy.observe.http import HttpError
from proxy.observe.params import (
    EXPLAINING,
    STREAMED,
    ParamError,
    explained_client,
    flow_query,
    read_params,
)
from proxy.observe.reader import Wish

if TYPE_CHECKING:
    from proxy.core.counters import ListenerSnapshot
    from proxy.observe.http import Request

FLOW_PARAMS: Final = (*STREAMED, "sort", "limit")
"""What of a stream's parameters says which flows."""


def params_of(
    request: Request, known: Collection[str], verbatim: Collection[str] = ()
) -> dict[str, Any]:
    """The values of a request's parameters, of which these are known; see ``read_params``."""
    try:
        return read_params(request.query, known, verbatim)
    except ParamError as exc:
        raise refused(exc) from exc
    except ValueError as exc:
        raise HttpError(400, str(exc)) from exc


def flow_question(values: dict[str, Any]) -> FlowQuestion:
    """Which flow is to be explained.

    Raises:
        HttpError: it is not said, or there are none such.

    """
    missing = [name for name in EXPLAINING[:3] if name not in values]
    if missing:
        example = '"?transport=tcp&client=192.0.2.7&listener=web"'
        raise HttpError(400, f"say which flow, by {', '.join(missing)} too: {example}")
    transport = values["transport"]
    if transport.is_unix:
        raise refused(ParamError("transport", f'"{transport}" has no clients with an address'))
    try:
        client = explained_client(values["client"])
    except ParamError as error:
        raise refused(error) from None
    return FlowQuestion(**{**values, "client": client})


def event_wish(values: dict[str, Any], last_event: str | None) -> Wish:
    """What a reader wants to be told; a browser that comes back says where it was in a header."""
    query = flow_query({name: values[name] for name in FLOW_PARAMS if name in values})
    after = values.get("after")
    if after is None and last_event:
        is_number = last_event.isascii() and last_event.isdigit() and len(last_event) <= 18
        after = int(last_event) if is_number else 0  # which is no number of an event
    return Wish(
        query=query,
        kinds=values.get("event", frozenset(EventKind)),
        snapshot=values.get("snapshot", True),
        counters=values.get("counters", False),
        after=after,
    )


def check_evictable(values: dict[str, Any]) -> None:
    """Refuse what makes no sense with, or without, ``evictable``: it has an order of its own."""
    if values.get("evictable"):
        for name in ("recent", "sort"):
            if values.get(name):
                reason = "not with evictable, which lists live flows in the order they would go"
                raise refused(ParamError(name, reason))
    elif "newcomer" in values:
        raise refused(ParamError("newcomer", "only with evictable=true"))


def refused(error: ParamError) -> HttpError:
    """The answer to a parameter that is not allowed."""
    return HttpError(400, str(error), parameter=error.parameter, reason=error.reason)


def flow_id(word: str) -> int:
    """The id of a flow that stands in a path."""
    return whole_number(word, "the id of a flow: ids")


def whole_number(word: str, what: str) -> int:
    """A number that stands in a path; ``what`` is the beginning of "... are whole numbers"."""
    if not (word.isascii() and word.isdigit() and len(word) <= 18):
        raise HttpError(400, f'"{word}" is not {what} are whole numbers')
    return int(word)


def no_such_listener(rows: Sequence[ListenerSnapshot], question: FlowQuestion) -> str | None:
    """Why no listener is meant, and which there are; None if one is."""
    there = [f"{row['transport']} {row['listener']}" for row in rows]
    asked = f"{question.transport.value} {question.listener}"
    if asked in there:
        return None
    return f'there is no listener "{asked}"; there are: {", ".join(there)}'
