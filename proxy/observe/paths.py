"""Paths: from a request to the way of answering it, or to an error that teaches what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import structlog

from proxy.observe.http import HttpError

if TYPE_CHECKING:
    from proxy.observe.http import Request

NEAR: Final = 0.75
"""How alike a word must be to one of ours to be taken for it, of 1."""

Way = TypeVar("Way")

log = structlog.get_logger()


class Paths(Generic[Way]):
    """Ways of answering, by path and method.

    Args:
        table: the ways by method, by path; HEAD is GET.
        worded: those of the paths whose last part stands for any word, such as an id.

    """

    def __init__(self, table: Mapping[str, Mapping[str, Way]], worded: Sequence[str]) -> None:
        self._table = table
        self._worded = {path.rpartition("/")[0]: path for path in worded}

    def find(self, request: Request) -> tuple[Way, str]:
        """The way to answer a request, and the word at the end of its path, if it has one.

        Raises:
            HttpError: says what there is in place of what was asked for.

        """
        path, word = self._split(request.path)
        methods = self._table.get(path)
        if methods is None:
            raise HttpError(404, self._no_path(request.path))
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            raise _not_allowed(request, methods)
        if method != "GET" and not request.control:
            raise _not_permitted(request)
        return methods[method], word

    def _split(self, path: str) -> tuple[str, str]:
        """Divide a path into that of the table and the word at its end."""
        head, _, word = path.rpartition("/")
        if word and head in self._worded:
            return self._worded[head], word
        return path, ""

    def _no_path(self, path: str) -> str:
        """Name the path whose last word is near; all paths of the API are alike in the rest."""
        worded = self._worded.values()
        ends = {each.rpartition("/")[2]: each for each in self._table if each not in worded}
        nearest = get_close_matches(path.rstrip("/").rpartition("/")[2], ends, 1, NEAR)
        hint = f'did you mean "{ends[nearest[0]]}"?' if nearest else '"/" lists what there is'
        return f'there is no "{path}"; {hint}'


def _not_permitted(request: Request) -> HttpError:
    """403: who asks may only read. A user of this host who tries is worth a line in the log."""
    if not request.local:
        method = request.method
        return HttpError(403, f"{method} needs the admin Unix socket; by TCP one can only read")
    log.warning("change_refused", asked=f"{request.method} {request.path}", by=request.peer)
    return HttpError(403, f"{request.peer} may only read: admin.users names who may change things")


def _not_allowed(request: Request, methods: Mapping[str, object]) -> HttpError:
    """405, with the methods that this client may use."""
    reading = ["GET", "HEAD"] if "GET" in methods else []
    allowed = [*reading, *(name for name in methods if name != "GET" and request.control)]
    use = ", ".join(allowed) or f"the admin Unix socket, and {', '.join(methods)}"
    error = HttpError(405, f"{request.method} is not for {request.path}; use {use}")
    error.headers = (("Allow", ", ".join(allowed)),)
    return error
