"""Lines: whatever tomli finds in a text, the scanner finds on a line that names it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.locate import Place, locate
from proxy.config.problem import Path


def paths(value: object, above: Path = ()) -> Iterator[Path]:
    """Every path of a document."""
    if isinstance(value, dict):
        children: Iterator[tuple[str | int, object]] = iter(value.items())
    elif isinstance(value, list):
        children = enumerate(value)
    else:
        return
    for step, child in children:
        yield (*above, step)
        yield from paths(child, (*above, step))


def find(place: Place | None, path: Path) -> Place | None:
    for step in path:
        place = place and place.children.get(step)
    return place


def line_of(text: str, path: Path) -> int:
    place = find(locate(text), path)
    assert place is not None, path
    return place.line


DOCUMENT = textwrap.dedent('''\
    # [not] a = "header"
    title = "a [b] = c # d" # e = 1
    when = 1979-05-27 07:32:00.999-07:00
    half = 1.5
    [listener.web]              # 5
    listen = "tcp://[::]:80"
    "quoted \\"key\\"" = 1
    'lit.eral' = 2
    a . b."c.d" = 3
    text = """
    fake = 1
    [fake]
    say \\""" and ""two"""""
    raw = \'\'\'
    fake = \\
    \'\'\'\'\'
    list = [ # 17
      1, [2, 3],
      "]", # , "no"
      { x = 1, y.z = [4,
        5] },
    ]
    [[array]]                  # 23
    n = 1
    [array.sub]
    [[array.inner]]
    [[array]]
    n = 2
    [array.sub]                # 29
    k = {}
    [listener]
    z = []''')


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("when",), 3),
        (("half",), 4),
        (("listener",), 31),
        (("listener", "web"), 5),
        (("listener", "web", "listen"), 6),
        (("listener", "web", 'quoted "key"'), 7),
        (("listener", "web", "lit.eral"), 8),
        (("listener", "web", "a", "b", "c.d"), 9),
        (("listener", "web", "text"), 10),
        (("listener", "web", "raw"), 14),
        (("listener", "web", "list"), 17),
        (("listener", "web", "list", 0), 18),
        (("listener", "web", "list", 1, 1), 18),
        (("listener", "web", "list", 2), 19),
        (("listener", "web", "list", 3, "x"), 20),
        (("listener", "web", "list", 3, "y", "z", 1), 21),
        (("array", 0), 23),
        (("array", 0, "inner", 0), 26),
        (("array", 1), 27),
        (("array", 1, "sub"), 29),
        (("array", 1, "sub", "k"), 30),
        (("listener", "z"), 32),
    ],
)
def test_lines_of_a_document_with_every_syntax(path: Path, line: int) -> None:
    assert line_of(DOCUMENT, path) == line


def test_exactly_the_paths_of_the_document_are_found() -> None:
    found = set(paths(tomli.loads(DOCUMENT)))
    places = locate(DOCUMENT)
    assert all(find(places, path) for path in found)
    assert find(places, ("fake",)) is None
    assert find(places, ("listener", "web", "fake", "deeper")) is None


def test_what_is_missing_is_located_at_what_should_hold_it() -> None:
    assert locate(DOCUMENT).nearest_line(("listener", "web", "upstream")) == 5
    assert locate(DOCUMENT).nearest_line(("upstream",)) == 1
    assert locate("").nearest_line(("listener",)) == 1


def test_carriage_returns_are_no_lines() -> None:
    assert line_of("a = 1\r\nb = '''x\r\ny'''\r\nc = 2\r\n", ("c",)) == 4


def test_deep_nesting_needs_no_deep_stack() -> None:
    places = locate("a = " + "[" * 390 + "]" * 390 + "\nb" + ".c" * 900 + " = 1")
    assert find(places, ("a", *[0] * 389)) is not None
    assert find(places, ("b", *["c"] * 900)) is not None


QUOTES = [
    ('v=["""""", """a""""]\nb = 1', ("b",), 2),
    ("v=['''''', '''a'''']\nb = 1", ("b",), 2),
    ('a = [{b = """a""""},] # "\nb = 1', ("b",), 2),
    ('[[k]]\nv=["""""", [{b = """a""""},]] # "\n[[c]] #"""\n"d" = {}', ("c", 0, "d"), 4),
]


@pytest.mark.parametrize(("text", "path", "line"), QUOTES)
def test_quotes_beside_the_closing_ones(text: str, path: Path, line: int) -> None:
    """With possessive quantifiers Python 3.11.2 read them wrong, raised, or went on for ever."""
    assert line_of(text, path) == line


def test_long_texts_need_no_more_than_a_walk() -> None:
    for text in (
        '"' + "\\n" * 500_000 + '"',
        '"""' + 'x""\n' * 300_000 + '"""',
        "'" + "x" * 10**6 + "'",
    ):
        assert line_of(f"a = {text}\nb = 1", ("b",)) == 2 + text.count("\n")


PIECES = [
    "=",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    ",",
    ".",
    "\n",
    "a",
    '"',
    "'",
    '"""',
    "'''",
    "\\",
    "#",
    " ",
]


@given(st.lists(st.sampled_from(PIECES)).map("".join) | st.text())
def test_any_text_has_an_end(text: str) -> None:
    """Also one that is no TOML, such as this scanner would see if it misread a part of it."""
    locate(text)


@pytest.mark.parametrize("text", ["a =", "a = =", "a = [=", "=", "[", '"\\q" = 1', "a = {=}"])
def test_what_is_not_understood_has_no_line(text: str) -> None:
    places = locate("first = 1\n" + text)
    assert places.nearest_line(("first",)) == 1
    assert places.nearest_line(("other",)) == 0


# Documents are drawn as TOML text, statement by statement, with every key unique, so that each
# line of the text that should hold a key is known by the key's number alone.

BLANK = st.sampled_from(["", " ", "\t", "  "])
COMMENT = st.sampled_from(["", " # k1 = [", ' # "', " #'''", ' # """'])
NUMBERS = ["1", "-1.5e3", "true", "inf", "1979-05-27 07:32:00", "07:32:00.5"]
TEXTS = ['""', "''", '"]}=#,\\""', "'\\'", '"""a""""', '"""a"""""', '""""""']
LONG_TEXTS = ['"""\n[x]\nk1 = \\"""\n"""', "'''\nk2 = \n''''"]
SCALAR = st.sampled_from([*NUMBERS, *TEXTS, *LONG_TEXTS])


class Keys:
    """Draws keys that differ from each other, in every way TOML can write them."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.count = 0

    def simple(self) -> str:
        self.count += 1
        form = self.draw(
            st.sampled_from(["k{}", "{}-k_", '"k{} .="', "'k{}]#'", '"k{}\\u00e9\\""'])
        )
        return form.format(self.count)

    def dotted(self) -> str:
        parts = [self.simple() for _ in range(self.draw(st.integers(1, 3)))]
        return (self.draw(BLANK) + "." + self.draw(BLANK)).join(parts)


def value(keys: Keys, depth: int = 0) -> str:
    draw = keys.draw
    kind = draw(st.sampled_from(["scalar", "array", "table"])) if depth < 3 else "scalar"
    if kind == "scalar":
        return draw(SCALAR)
    size = draw(st.integers(0, 3))
    if kind == "table":
        pairs = [f"{keys.dotted()} = {value(keys, depth + 1)}" for _ in range(size)]
        return "{" + ", ".join(pairs) + "}"
    separator = draw(st.sampled_from([", ", "\n,\n", " , # ]\n"]))
    close = draw(st.sampled_from(["]", "\n]", ",]"])) if size else "]"
    return "[" + separator.join(value(keys, depth + 1) for _ in range(size)) + close


@st.composite
def documents(draw: st.DrawFn) -> str:
    keys = Keys(draw)
    lines = []
    arrays: list[str] = []
    for _ in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(["pair", "pair", "table", "array", "again"]))
        if kind == "pair":
            lines.append(f"{keys.dotted()}{draw(BLANK)}={draw(BLANK)}{value(keys)}")
        elif kind == "table":
            parents = [*arrays, ""]
            parent = draw(st.sampled_from(parents))
            name = f"{parent}.{keys.dotted()}" if parent else keys.dotted()
            lines.append(f"[{draw(BLANK)}{name}{draw(BLANK)}]")
        else:
            if kind == "array" or not arrays:
                arrays.append(keys.dotted())
            lines.append(f"[[{arrays[-1]}]]")
        lines[-1] = draw(BLANK) + lines[-1] + draw(COMMENT)
    return "\n".join(lines)


@given(documents())
def test_every_path_stands_on_a_line_that_holds_its_key(text: str) -> None:
    document = tomli.loads(text)
    places = locate(text)
    lines = text.split("\n")
    for path in paths(document):
        place = find(places, path)
        assert place is not None, path
        key = path[-1]
        if isinstance(key, str):
            assert key.split("é")[0] in lines[place.line - 1]


@given(documents())
def test_nothing_is_located_that_the_document_does_not_hold(text: str) -> None:
    found = set(paths(tomli.loads(text)))
    stack = [((), locate(text))]
    while stack:
        path, place = stack.pop()
        for step, child in place.children.items():
            assert (*path, step) in found
            stack.append(((*path, step), child))
