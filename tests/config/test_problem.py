"""Problems: one line each, and nothing of the file reaches the terminal raw."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.problem import (
    ConfigError,
    Path,
    Problem,
    did_you_mean,
    dotted,
    shown,
)


def test_the_form_of_a_problem() -> None:
    problem = Problem("f.toml", 7, "listener.web", "is wrong")
    assert str(problem) == "f.toml:7: listener.web: is wrong"
    assert str(problem._replace(line=0, path="")) == "f.toml: is wrong"
    assert str(problem._replace(is_warning=True)) == "f.toml:7: listener.web: warning: is wrong"


def test_an_error_tells_its_problems_in_the_order_of_lines() -> None:
    error = ConfigError([Problem("f", 9, "", "b"), Problem("f", 2, "", "a")])
    assert str(error) == "f:2: a\nf:9: b"


@given(st.text())
def test_a_problem_is_one_line_that_prints(text: str) -> None:
    line = str(Problem(text, 1, text, text))
    assert line.isprintable()
    line.encode()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("upstream", "web", "endpoints", 1), "upstream.web.endpoints[1]"),
        (("listener", "a.b", "x"), 'listener."a.b".x'),
        (("", 'q"'), '""."q\\""'),
    ],
)
def test_paths_are_written_as_in_toml(path: Path, text: str) -> None:
    assert dotted(path) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", '"x"'),
        (True, "true"),
        (5, "5"),
        (2**65, "a huge number"),
        (1.5, "1.5"),
        (float("nan"), "nan"),
        ({}, "a table"),
        ([], "an array"),
        (datetime.date(2020, 1, 1), "a date or time"),
    ],
)
def test_values_are_described_in_few_words(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_text_is_cut() -> None:
    assert len(shown("x" * 1000)) < 70
    assert len(dotted(("x" * 1000, " " * 1000))) < 150


def test_the_nearest_name_is_proposed() -> None:
    assert did_you_mean("limts", ["listen", "limits"]) == '; did you mean "limits"?'
    assert did_you_mean("zzz", ["listen", "limits"]) == ""
    assert did_you_mean("x" * 10_000, ["x" * 10_000]) == ""
