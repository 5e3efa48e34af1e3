"""Endpoints of the file, written short or as tables: what they become, and what is said of them."""

from __future__ import annotations

import re

import pytest

from proxy.config.load import ConfigError, parse
from proxy.config.plan import plan

LISTENER = '[listener.web]\nlisten = "tcp://0.0.0.0:8080"\nupstream = "web"\n[upstream.web]\n'


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(LISTENER + text, "f")
    return [str(each) for each in caught.value.problems]


def test_an_endpoint_is_the_same_however_it_is_written() -> None:
    short = parse(LISTENER + 'endpoints = ["10.0.0.1:80"]', "f")
    inline = parse(LISTENER + 'endpoints = [{ address = "10.0.0.1:80" }]', "f")
    table = parse(LISTENER + '[[upstream.web.endpoints]]\naddress = "10.0.0.1:80"', "f")
    assert short == inline == table


def test_a_table_says_more() -> None:
    text = 'endpoints = ["10.0.0.1:80", { address = "10.0.0.2:80", weight = 2, backup = true }]'
    one, two = parse(LISTENER + text, "f").upstream["web"].endpoints
    assert (str(one), one.weight, one.backup) == ("10.0.0.1:80", 1, False)
    assert (str(two), two.weight, two.backup) == ("10.0.0.2:80", 2, True)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{ }", "f:6: upstream.web.endpoints[0].address: missing; add it, for example address ="),
        ("{ address = 5 }", "f:6: upstream.web.endpoints[0].address: expected text such as"),
        ('{ address = "10.0.0.1" }', "f:6: upstream.web.endpoints[0].address: "),
        ('{ address = "a:1", weight = 0 }', "f:6: upstream.web.endpoints[0].weight: expected at l"),
        ('{ address = "a:1", weight = 999 }', "f:6: upstream.web.endpoints[0].weight: expected at"),
        ('{ address = "a:1", wieght = 1 }', '[0].wieght: unknown key; did you mean "weight"?'),
        ('{ address = "a:1", backup = 1 }', "f:6: upstream.web.endpoints[0].backup: expected true"),
        ("true", "f:6: upstream.web.endpoints[0]: expected text such as"),
        ('"10.0.0.1"', "f:6: upstream.web.endpoints[0]: "),
        ('"' + "a" * 301 + ':80"', "f:6: upstream.web.endpoints[0]: expected text such as"),
        ('{ address = "127.0.0.1:8080" }', "f:6: upstream.web.endpoints[0]: "),  # a loop
    ],
)
def test_what_is_wrong_with_an_entry_is_said_at_its_line(entry: str, expected: str) -> None:
    (problem,) = problems(f"endpoints = [\n{entry}]")
    assert re.search(re.escape(expected), problem), problem


def test_an_address_is_repeated_however_it_is_written() -> None:
    (problem,) = problems('endpoints = ["10.0.0.1:80", { address = "10.0.0.1:80", weight = 2 }]')
    assert 'endpoints[1]: "10.0.0.1:80" is already in the list' in problem


def test_original_stands_alone_in_a_table_too() -> None:
    (problem,) = problems('endpoints = [{ address = "original" }, "10.0.0.1:80"]')
    assert 'endpoints[0]: "original" is where the client meant to go' in problem


def test_a_plan_says_what_changes_of_an_endpoint() -> None:
    old = parse(LISTENER + 'endpoints = ["10.0.0.1:80", "10.0.0.2:80"]', "f")
    new = parse(
        LISTENER + 'endpoints = [{ address = "10.0.0.1:80", weight = 2, backup = true }]', "f"
    )
    assert plan(old, new).lines() == [
        "~ endpoint 10.0.0.1:80 of upstream web: weight 1 -> 2",
        "~ endpoint 10.0.0.1:80 of upstream web: backup false -> true",
        "- endpoint 10.0.0.2:80 of upstream web: no new flows, those it has live on",
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            'balance = "first"\nendpoints = [{ address = "a:1", weight = 2 }]',
            'endpoints[0].weight: has no effect with balance = "first"',
        ),
        (
            'balance = "maglev"\nslow_start = "5s"\nendpoints = ["a:1"]',
            'web.slow_start: has no effect with balance = "maglev"',
        ),
        ('when_full = "wait"\nendpoints = ["a:1"]', "web.when_full: has no effect: no endpoint"),
        (
            'endpoints = [{ address = "original", weight = 2 }]',
            'endpoints[0].weight: has no effect on "original"; remove it',
        ),
    ],
)
def test_keys_that_would_do_nothing_are_refused(keys: str, expected: str) -> None:
    (problem,) = problems(keys)
    assert expected in problem
