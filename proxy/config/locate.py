"""On which line of a TOML text every key stands.

tomli answers with plain values and forgets where they stood; problems must name lines. This
scanner walks a text *that tomli has accepted* and notes the line of every key and array element
in a tree. It therefore judges nothing: it only has to tell keys from values, strings from
punctuation, and one table from the next.

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
      (?P<blank>   [ \t\r]++ | \#[^\n]*+ )
    | (?P<newline> \n )
    | (?P<text>    \"{3} (?: [^"\\]++ | \\. | "{1,2}(?!") )*+ "{3,5}
                 | '{3} .*? '{3,5}
                 | " (?: [^"\\]++ | \\. )*+ "
                 | ' [^']*+ '
                 | [^\s.,=\[\]{}"'\#]++ )
    | (?P<mark>    [.,=\[\]{}] )
    """,
    re.VERBOSE | re.DOTALL,
)


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
        table = self.children[len(self.children) - 1] if self.is_array else self
        if key not in table.children:
            table.children[key] = Place(line)
        return table.children[key]

    def _append(self, line: int) -> Place:
        self.is_array = True
        place = self.children[len(self.children)] = Place(line)
        return place


def locate(text: str) -> Place:
    """Find the line of everything in a valid TOML text; the root stands on line 1."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._token = next(self._tokens)

    def scan(self) -> Place:
        root = table = Place(1)
        while self._token.kind != "end":
            if self._token.kind == "newline":
                self._take()
            elif self._token.text == "[":
                table = self._header(root)
            else:
                place = self._key(table)
                self._take()  # =
                self._value(place)
        return root

    def _take(self) -> Token:
        token = self._token
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
        self._take()  # =
        self._skip_newlines()
        return place

    def _begin(self, place: Place, open_places: list[Place]) -> None:
        """Enter a container, or pass over a scalar: 1.5 and 2001-02-03 04:05 are many tokens."""
        if self._token.text in {"[", "{"}:
            place.is_array = self._take().text == "["
            open_places.append(place)
            return
        while self._token.kind == "text" or self._token.text == ".":
            self._take()


def _tokens(text: str) -> Iterator[Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind, found = match.lastgroup or "", match.group()
        if kind != "blank":
            yield Token(kind, found, line)
            line += found.count("\n")
    while True:
        yield Token("end", "", line)


def _unquoted(key: str) -> str:
    """Read a key: bare, literal or basic; escapes are tomli's business."""
    if key[0] not in "\"'":
        return key
    if "\\" not in key or key[0] == "'":
        return key[1:-1]
    value = tomli.loads(f"key = {key}")["key"]
    assert isinstance(value, str)
    return value
