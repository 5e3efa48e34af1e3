"""Routes by server name: what is most specific wins, as a naive search finds it too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.server_names import RoutePattern, ServerNames, fits, parse_pattern

LABELS = st.sampled_from(["a", "b", "www"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PROTOCOLS = st.sampled_from(["h2", "http/1.1"])
PATTERNS = st.builds(
    RoutePattern,
    NAMES | NAMES.map(lambda name: f"*.{name}") | NAMES.map(lambda name: f".{name}") | st.just(""),
    PROTOCOLS | st.just(""),
)


def naive(routes: dict[RoutePattern, int], name: str | None, alpn: tuple[str, ...]) -> int | None:
    """Rank every pattern that fits."""
    ranked: list[tuple[tuple[int, int, int], int]] = []
    for pattern, value in routes.items():
        if pattern.name == name:
            rank = (3, 0)
        elif pattern.name.startswith("*.") and (name or "").partition(".")[2] == pattern.name[2:]:
            rank = (2, 2 * len(pattern.name) - 1)  # its star is no part of the ending
        elif pattern.name.startswith(".") and (name or "").endswith(pattern.name):
            rank = (2, 2 * len(pattern.name))
        elif not pattern.name:
            rank = (1, 0)
        else:
            continue
        if pattern.alpn and pattern.alpn not in alpn:
            continue
        liked = -alpn.index(pattern.alpn) if pattern.alpn else -len(alpn)
        ranked.append(((*rank, liked), value))
    return max(ranked)[1] if ranked else None


@given(
    st.dictionaries(PATTERNS, st.integers(), max_size=12),
    st.none() | NAMES,
    st.lists(PROTOCOLS, unique=True, max_size=2).map(tuple),
)
def test_the_most_specific_wins(
    routes: dict[RoutePattern, int], name: str | None, alpn: tuple[str, ...]
) -> None:
    assert ServerNames(routes).find(name, alpn) == naive(routes, name, alpn)


@pytest.mark.parametrize(
    ("pattern", "name", "answer"),
    [
        ("www.example.org", "www.example.org", True),
        ("www.example.org", "a.www.example.org", False),
        ("*.example.org", "www.example.org", True),
        ("*.example.org", "a.www.example.org", False),
        ("*.example.org", "example.org", False),
        (".example.org", "a.www.example.org", True),
        (".example.org", "example.org", False),
        (".example.org", "www.badexample.org", False),
        ("www.example.org", None, False),
    ],
)
def test_a_name_alone_fits_as_in_routes(pattern: str, name: str | None, answer: bool) -> None:
    assert fits(pattern, name) is answer


def test_an_example() -> None:
    names = ServerNames(
        {
            parse_pattern(text): text
            for text in (
                *("www.example.org", "*.example.org", ".example.org", ".org", "/acme-tls/1"),
                "www.example.org/h2",
            )
        }
    )
    assert names.find("www.example.org") == "www.example.org"
    assert names.find("www.example.org", ("http/1.1", "h2")) == "www.example.org/h2"
    assert names.find("api.example.org") == "*.example.org"
    assert names.find("a.b.example.org") == ".example.org"
    assert names.find("example.org") == ".org"
    assert names.find("example.com", ("acme-tls/1",)) == "/acme-tls/1"
    assert names.find(None, ("acme-tls/1",)) == "/acme-tls/1"
    assert names.find("example.com") is None
    assert names.find(None) is None
    assert names.find("badexample.org") == ".org"


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("WWW.Example.ORG.", RoutePattern("www.example.org")),
        ("*.example.org", RoutePattern("*.example.org")),
        (".example.org", RoutePattern(".example.org")),
        ("xn--bcher-kva.example", RoutePattern("xn--bcher-kva.example")),
        ("localhost/http/1.1", RoutePattern("localhost", "http/1.1")),
        ("/h2", RoutePattern("", "h2")),
    ],
)
def test_patterns(text: str, pattern: RoutePattern) -> None:
    assert parse_pattern(text) == pattern
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (".", "no server name"),
        ("*", "no server name"),
        ("*.", "no server name"),
        ("*www.example.org", "a star that is not a label"),
        ("www.*.org", "no server name"),
        ("a..b", "no server name"),
        ("a b", "no server name"),
        ("x" * 64, "no server name"),
        (".".join(["x" * 60] * 5), "no server name"),
        ("www.example.org/", "no protocol behind its slash"),
        ("/", "no protocol behind its slash"),
        ("bücher.example", 'write "xn--bcher-kva.example"'),
        ("*.bücher.example", 'write "\\*.xn--bcher-kva.example"'),
        (f"{'ü' * 64}.example", "write it as punycode"),
    ],
)
def test_what_is_no_pattern(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pattern(text)
