"""On which line of a TOML text every key stands.

tomli answers with plain values and forgets where they stood; problems must name lines. This
scanner walks a text *that tomli has accepted* and notes the line of every key and array element
in a tree. It therefore judges nothing: it only has to tell keys from values, strings from
punctuation, and one table from the next.

A mistake of its own must not cost the report: when it meets what it does not understand it gives
up, and what it has not found has no line of its own.

It uses no recursion (TOML may nest 400 deep, and our caller's stack is unknown) and time linear
in the text, which is why places form a tree and are not a dict of whole paths. Lines count from 1.

Rejected: a parser that keeps positions, for it would be a second opinion on the syntax;
searching for the key by a regular expression, which finds it in comments and strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import tomli

from proxy.config.problem import Path

_TOKEN: Final = re.compile(
    r"""
      (?P<blank>   [ \t\r]+ | \#[^\n]* )
    | (?P<newline> \n )
    | (?P<quote>   "{3} | '{3} | ["'] )
    | (?P<mark>    [.,=\[\]{}] )
    | (?P<text>    [^ \t\r\n.,=\[\]{}"'\#]+ )
    """,
    re.VERBOSE,
)
"""Any character begins one of these, so the scan passes over none. A quote only opens its text."""

_CLOSING: Final = {
    '"""': re.compile(r'\\.|"{3,5}', re.DOTALL),  # up to two quotes may stand before the end
    "'''": re.compile(r"'{3,5}"),
    '"': re.compile(r'\\.|"', re.DOTALL),
    "'": re.compile(r"'"),
}
"""What ends a text, by what opened it; an escaped character is found too, and passed over.

Not one expression for a whole text: to be safe with a long one it needs possessive quantifiers, and
the ``re`` of CPython before 3.11.5 gives wrong answers where one repeats a choice."""


class Token(NamedTuple):
    """A piece of the text that means something: a string or word, a mark, or a newline."""

    kind: str
    text: str
    line: int


class Place:
    """A value of the document: the line of its key, and the values inside it."""

    __slots__ = ("children", "is_array", "line")

    def __init__(self, line: int) -> None:
        self.line = line
        self.children: dict[str | int, Place] = {}
        self.is_array = False

    def nearest_line(self, path: Path) -> int:
        """The line of this path, or of the last part of it that exists."""
        place = self
        for step in path:
            if step not in place.children:
                break
            place = place.children[step]
        return place.line

    def _enter(self, key: str, line: int) -> Place:
        """Go to a key, made when it is new; in an array of tables, that is of the last table."""
        table = self.children.get(len(self.children) - 1, self) if self.is_array else self
        if key not in table.children:
            table.children[key] = Place(line)
        return table.children[key]

    def _append(self, line: int) -> Place:
        self.is_array = True
        place = self.children[len(self.children)] = Place(line)
        return place


def locate(text: str) -> Place:
    """Find the line of everything in a valid TOML text; the root stands on line 1.

    Where the text is not understood after all, what comes later is not found, and the root stands
    on line 0, which is no line.
    """
    root = Place(1)
    try:
        _Scanner(text).scan(root)
    except _LostError:
        root.line = 0
    return root


class _LostError(Exception):
    """The scanner met what it did not expect here."""


class _Scanner:
    """Walks through the tokens. Whatever they are, every turn of a loop takes one or gives up."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._token = next(self._tokens)

    def scan(self, root: Place) -> None:
        table = root
        while self._token.kind != "end":
            if self._token.kind == "newline":
                self._take()
            elif self._token.text == "[":
                table = self._header(root)
            else:
                place = self._key(table)
                self._take("=")
                self._value(place)

    def _take(self, expected: str = "") -> Token:
        """Go on to the next token; there must be one here, and it must be the expected one."""
        token = self._token
        if token.kind == "end" or (expected and token.text != expected):
            raise _LostError
        self._token = next(self._tokens)
        return token

    def _skip_newlines(self) -> None:
        while self._token.kind == "newline":
            self._take()

    def _header(self, root: Place) -> Place:
        """``[table]`` or ``[[array of tables]]``; up to two brackets on either side."""
        line = self._take().line
        is_array = self._token.text == "["
        if is_array:
            self._take()
        place = self._key(root)
        while self._token.text == "]":
            self._take()
        if is_array:
            return place._append(line)
        place.line = line  # an earlier [table.child] named the table only in passing
        return place

    def _key(self, place: Place) -> Place:
        """A key, bare or quoted, of one part or many: ``a``, ``"a b".c``."""
        place = self._simple_key(place)
        while self._token.text == ".":
            self._take()
            place = self._simple_key(place)
        return place

    def _simple_key(self, place: Place) -> Place:
        token = self._take()
        if token.kind != "text":
            raise _LostError
        return place._enter(_unquoted(token.text), token.line)

    def _value(self, place: Place) -> None:
        """One value with all that is nested in it; containers that are still open are a stack."""
        open_places: list[Place] = []
        self._begin(place, open_places)
        while open_places and self._token.kind != "end":
            self._skip_newlines()
            if self._token.text in {"]", "}"}:
                self._take()
                open_places.pop()
            elif self._token.text == ",":
                self._take()
            else:
                self._begin(self._member(open_places[-1]), open_places)

    def _member(self, container: Place) -> Place:
        """The next element of an array, or key of an inline table, up to its value."""
        if container.is_array:
            return container._append(self._token.line)
        place = self._key(container)
        self._take("=")
        self._skip_newlines()
        return place

    def _begin(self, place: Place, open_places: list[Place]) -> None:
        """Enter a container, or pass over a scalar: 1.5 and 2001-02-03 04:05 are many tokens."""
        if self._token.text in {"[", "{"}:
            place.is_array = self._take().text == "["
            open_places.append(place)
            return
        if self._token.kind != "text" and self._token.text != ".":
            raise _LostError
        while self._token.kind == "text" or self._token.text == ".":
            self._take()


def _tokens(text: str) -> Iterator[Token]:
    line, start = 1, 0
    while match := _TOKEN.match(text, start):
        kind, start = match.lastgroup or "", match.end()
        if kind == "quote":
            kind, start = "text", _text_end(text, match.group(), start)
        if kind != "blank":
            found = text[match.start() : start]
            yield Token(kind, found, line)
            line += found.count("\n")
    while True:
        yield Token("end", "", line)


def _text_end(text: str, quote: str, start: int) -> int:
    """Where a quoted text ends that was opened before ``start``."""
    for match in _CLOSING[quote].finditer(text, start):
        if match.group()[0] != "\\":
            return match.end()
    return len(text)


def _unquoted(key: str) -> str:
    """Read a key: bare, literal or basic; escapes are tomli's business."""
    if key[0] not in "\"'":
        return key
    if "\\" not in key or key[0] == "'":
        return key[1:-1]
    try:
        value = tomli.loads(f"key = {key}")["key"]
    except tomli.TOMLDecodeError as exc:
        raise _LostError from exc
    assert isinstance(value, str)
    return value
