"""What is wrong with a configuration, said so that its owner can put it right.

A problem names the place (file, line, key), the value found, what was expected and, where one is
known, the remedy. The file was written by somebody else than the reader of the terminal, perhaps,
so nothing of it reaches the terminal raw: what does not print is escaped, what is long is cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

from proxy.core.printable import printable

Path: TypeAlias = tuple[str | int, ...]
"""Where a value stands in the document: the keys, and the indexes of arrays, that lead to it."""

SHOWN_MAX: Final = 60
"""Characters of a value or key that a message repeats: enough to recognise it."""

CANDIDATES_MAX: Final = 200
"""Names that are compared to a misspelt one; each costs some 20 microseconds."""

PROBLEMS_MAX: Final = 1000
"""More than anybody reads; it bounds the work on a file that is something else."""

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


class Problem(NamedTuple):
    """One problem; the line is 0 when it concerns the file as a whole."""

    file: str
    line: int
    path: str
    message: str
    is_warning: bool = False

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        kind = "warning" if self.is_warning else ""
        return printable(": ".join(filter(None, (place, self.path, kind, self.message))))


class ConfigError(Exception):
    """The configuration cannot be used. ``problems`` are in the order of their lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line, problem.path)))
        super().__init__(*self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def dotted(path: Path) -> str:
    """Write a path as TOML does: ``listener."a.b".limits``, ``upstream.web.endpoints[1]``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            key = step if _BARE_KEY.fullmatch(step) else json.dumps(_cut(step), ensure_ascii=False)
            text += f".{_cut(key)}" if text else _cut(key)
    return text


def shown(value: object) -> str:
    """Describe a value of a TOML document in a few words."""
    match value:
        case str():
            return f'"{_cut(value)}"'
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if value.bit_length() <= 64 else "a huge number"
        case float():
            return str(value)
        case dict():
            return "a table"
        case list() | tuple():
            return "an array"
        case _:
            return "a date or time"


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return ``; did you mean "..."?`` for the nearest candidate, else nothing."""
    near = nearest(word, candidates)
    return f'; did you mean "{near}"?' if near else ""


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that a misspelt word was meant to be, if one is near enough."""
    known = list(islice(candidates, CANDIDATES_MAX))
    near = get_close_matches(word, known, n=1) if len(word) <= SHOWN_MAX else []
    return near[0] if near else None


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "..."
