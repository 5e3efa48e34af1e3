"""Which route a server name takes: exact names, wildcards, suffixes, and what the client speaks.

====================  ==========================================================
``www.example.org``   this name
``*.example.org``     one label before ``.example.org``, as in certificates
``.example.org``      all that ends so: any number of labels, one at least
(nothing)             whoever, also who names nobody
====================  ==========================================================

each alone, or with a protocol (ALPN) behind a slash: ``www.example.org/h2``, ``/acme-tls/1``. The
name decides first, the exact one, then the longest ending, of these the wildcard before the suffix.
Of what a pattern has, the protocol that the client likes best decides, and last what has none; if
nothing of it fits, the next pattern is asked. However many routes there are, a look-up costs one
question for each label of the name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

Value = TypeVar("Value")

NAME_MAX: Final = 253
LABEL_MAX: Final = 63
"""Characters: RFC 1035 section 2.3.4."""

ALPN_MAX: Final = 255
"""Bytes: RFC 7301."""

ANY: Final = ""


class RoutePattern(NamedTuple):
    """Who takes a route: the name, or its ending, or anybody; and a protocol, or any."""

    name: str
    alpn: str = ANY

    def __str__(self) -> str:
        return f"{self.name}/{self.alpn}" if self.alpn else self.name


def parse_pattern(text: str) -> RoutePattern:
    """Read a pattern; names become small, and lose their final dot.

    Raises:
        ValueError: with a message for people.

    """
    name, slash, alpn = text.partition("/")
    if slash and not (alpn and alpn.isascii() and alpn.isprintable() and len(alpn) <= ALPN_MAX):
        raise ValueError(f'"{text}" has no protocol behind its slash, such as "h2" or "http/1.1"')
    if not name and not slash:
        raise ValueError("is empty: the upstream of the listener takes all that have no route")
    plain = name.lower().removesuffix(".")
    _check_name(plain, text)
    return RoutePattern(plain, alpn)


def _check_name(name: str, text: str) -> None:
    labels = name.removeprefix("*").removeprefix(".") if name[:1] in {"*", "."} else name
    if name and not labels.isascii():
        raise ValueError(f'"{text}" is not as clients send it: {_remedy(name)}')
    if (name or text[:1] == ".") and not (
        len(name) <= NAME_MAX and all(map(_is_label, labels.split(".")))
    ):
        raise ValueError(
            f'"{text}" is no server name: expected "www.example.org", "*.example.org" or '
            '".example.org"'
        )
    if name.startswith("*") and not name.startswith("*."):
        raise ValueError(f'"{text}" has a star that is not a label: write "*.{labels}"')


def _remedy(name: str) -> str:
    try:
        return f'write "{name.encode("idna").decode()}"'
    except UnicodeError:
        return "write it as punycode"


def _is_label(label: str) -> bool:
    plain = label.replace("-", "").replace("_", "")
    return 0 < len(label) <= LABEL_MAX and plain.isalnum()


class ServerNames(Generic[Value]):
    """Routes by server name and protocol; it does not change.

    Args:
        routes: by pattern; none of the values is None.

    Attributes:
        values: all of them.

    """

    __slots__ = ("_routes", "values")

    def __init__(self, routes: Mapping[RoutePattern, Value]) -> None:
        self.values = tuple(routes.values())
        self._routes: dict[str, dict[str, Value]] = {}
        for (name, alpn), value in routes.items():
            self._routes.setdefault(name, {})[alpn] = value

    def __getitem__(self, pattern: RoutePattern) -> Value:
        return self._routes[pattern.name][pattern.alpn]

    def find(self, name: str | None, alpn: tuple[str, ...] = ()) -> Value | None:
        """The route of a client; None if there is none.

        Args:
            name: of the server it wants, in small letters, without a final dot; None if it does
                not say.
            alpn: the protocols it speaks, the best first.

        """
        pattern = self.pattern(name, alpn)
        return None if pattern is None else self[pattern]

    def pattern(self, name: str | None, alpn: tuple[str, ...] = ()) -> RoutePattern | None:
        """Which pattern decides about a client; see ``find``."""
        for pattern in _patterns(name):
            routes = self._routes.get(pattern)
            if routes is not None:
                for protocol in (*alpn, ANY):
                    if protocol in routes:
                        return RoutePattern(pattern, protocol)
        return None


def fits(pattern: str, name: str | None) -> bool:
    """Whether a server name is this one, or ends as ``*.example.org`` or ``.example.org`` say."""
    return name is not None and pattern in _patterns(name)


def _patterns(name: str | None) -> Iterator[str]:
    """The patterns that a name fits, the one that says most first."""
    if name:
        yield name
        _, dot, rest = name.partition(".")
        if dot:
            yield f"*.{rest}"
        while dot:
            yield f".{rest}"
            _, dot, rest = rest.partition(".")
    yield ANY
