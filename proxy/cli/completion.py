"""Names that the shell offers: those of the running sockpair, asked by its admin socket.

It is asked for what a person is about to type, so nothing may be in the way of that: there is no
word on the terminal but names, no wait for longer than ``PATIENCE``, and nothing at all where
nobody answers, or who asks may not.

bash takes a colon for the end of a word: there an address is completed up to what it shares with
others, and not from its port on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import click

from proxy.cli.client import DEFAULT_ADMIN, AdminClient

PATIENCE: Final = 1.0
"""Seconds; an answer takes milliseconds."""

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[str]]


def _completes(path: str, read: Callable[[Any], Iterable[str]]) -> Complete:
    """A completion by what an answer of the API names."""

    def complete(context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        admin = context.params.get("admin") or os.environ.get("SOCKPAIR_ADMIN") or DEFAULT_ADMIN
        try:
            names = [*read(AdminClient(admin, PATIENCE).get(path))]
        except (click.ClickException, LookupError, TypeError):  # of another version, or a stranger
            return []
        return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]

    return complete


def _listeners(answer: Any) -> Iterable[str]:
    return (row["listener"] for row in answer["listeners"])


def _upstreams(answer: Any) -> Iterable[str]:
    return (row["upstream"] for row in answer["upstreams"])


def _endpoints(answer: Any) -> Iterable[str]:
    return (each["endpoint"] for row in answer["upstreams"] for each in row["endpoints"])


def _addresses(answer: Any) -> Iterable[str]:
    rows = (each for row in answer["upstreams"] for each in row["endpoints"])
    return (address["address"] for each in rows for address in each["addresses"])


def _orders(answer: Any) -> Iterable[str]:
    return (str(row["number"]) for row in answer["orders"])


LISTENERS: Final = _completes("/api/v1/listeners", _listeners)
UPSTREAMS: Final = _completes("/api/v1/upstreams", _upstreams)
ENDPOINTS: Final = _completes("/api/v1/upstreams", _endpoints)
"""As they stand in the file."""
ADDRESSES: Final = _completes("/api/v1/upstreams", _addresses)
"""Those of endpoints, as flows have them."""
ORDERS: Final = _completes("/api/v1/limits", _orders)


def targets(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """What can be drained: listeners, and endpoints."""
    return [name for each in (LISTENERS, ENDPOINTS) for name in each(context, param, incomplete)]


upstream_option: Final = click.option(
    "--upstream",
    metavar="NAME",
    shell_complete=UPSTREAMS,
    help="Of this upstream only; by default of all.",
)
"""For who names an endpoint."""
