"""What a reload would do: the difference between two configurations, for people and programs.

A plan decides nothing that it does not show. Each of its steps is one line with a sign before it::

    + listener api: tcp://0.0.0.0:8081 to api
    - listener old: accepts no more, its flows drain
    ~ listener.web.limits.per_flow.idle: 2h4m -> 10m; live flows too
    + endpoint 10.0.0.3:80 of upstream web
    - endpoint 10.0.0.2:80 of upstream web: no new flows, those it has live on
    ! admin.http: 127.0.0.1:9600 -> 127.0.0.1:9700; needs a restart

Whatever can be applied to a running relay is. Only three things need a restart: the addresses of
the admin, because who asks for the reload may be connected there, and what flows would have to
change their process for, the number of workers and the first ``survive = "crash"``, for which
workers need standbys. Until then they stay as they are, and every further plan names them again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict

from pydantic import BaseModel

from proxy.core.printable import printable
from proxy.core.units import format_bandwidth, format_duration, format_size

if TYPE_CHECKING:
    from proxy.config.model import Config, Listener
    from proxy.config.upstream import Upstream
    from proxy.config.values import Survive

LINES_MAX: Final = 1000
"""Steps shown; a plan of more is another file. The rest is counted."""


NEED_RESTART: Final = ("admin.", "engine.workers")
"""How the keys begin that a reload leaves as they are."""


class Act(StrEnum):
    """What a step does."""

    ADD = "add"
    REMOVE = "remove"
    CHANGE = "change"
    REOPEN = "reopen"  # what was drained by hand
    RESTART = "restart"  # nothing, until the program is started again


SIGNS: Final = {
    Act.ADD: "+",
    Act.REMOVE: "-",
    Act.CHANGE: "~",
    Act.REOPEN: "+",
    Act.RESTART: "!",
}


class Step(NamedTuple):
    """One step of a plan.

    Attributes:
        act: what is done.
        subject: to what, as people call it.
        note: how, or from what to what.
        live: whether flows that exist are affected.

    """

    act: Act
    subject: str
    note: str = ""
    live: bool = False

    def __str__(self) -> str:
        text = f"{SIGNS[self.act]} {self.subject}"
        return f"{text}: {self.note}" if self.note else text


class StepRow(TypedDict):
    """A step, for programs."""

    act: str
    subject: str
    note: str
    affects_live_flows: bool


class Drained(NamedTuple):
    """What was drained by hand, and a reload brings back."""

    listeners: Collection[str] = ()
    endpoints: Collection[tuple[str, str]] = ()  # of an upstream


class Plan(NamedTuple):
    """What leads from one configuration to another."""

    steps: tuple[Step, ...]

    def lines(self) -> list[str]:
        """For people; bounded."""
        lines = [str(step) for step in self.steps[:LINES_MAX]]
        if len(self.steps) > LINES_MAX:
            lines.append(f"and {len(self.steps) - LINES_MAX} more")
        return lines

    def rows(self) -> list[StepRow]:
        """For programs; bounded."""
        return [
            {
                "act": step.act.value,
                "subject": step.subject,
                "note": step.note,
                "affects_live_flows": step.live,
            }
            for step in self.steps[:LINES_MAX]
        ]


NOTHING_DRAINED: Final = Drained()


def plan(
    old: Config, new: Config, drained: Drained = NOTHING_DRAINED, *, is_alone: bool = False
) -> Plan:
    """Find what changes.

    Args:
        old: what is at work.
        new: what shall be.
        drained: what of the old was drained by hand.
        is_alone: whether flows live in the supervisor's process.

    """
    listeners = _listener_steps(old.listener, new.listener, drained.listeners)
    steps = [
        *(_outlasting(step) if is_alone else step for step in listeners),
        *_upstream_steps(old.upstream, new.upstream, drained.endpoints),
        *_key_steps("engine", old.engine, new.engine),
        *_key_steps("names", old.names, new.names),
        *_key_steps("log", old.log, new.log),
        *_key_steps("admin", old.admin, new.admin),
    ]
    return Plan(tuple(_restarting(step) for step in steps))


def applicable(old: Config, new: Config, *, is_alone: bool = False) -> Config:
    """What of a new configuration can be at work without a restart."""
    engine = new.engine.model_copy(update={"workers": old.engine.workers})
    changes: dict[str, Any] = {"admin": old.admin, "engine": engine}
    if is_alone and new.keeps_crashed:
        changes["listener"] = {
            name: listener.model_copy(update={"survive": _lasting(listener.survive)})
            for name, listener in new.listener.items()
        }
    return new.model_copy(update=changes)


def _lasting(survive: Survive) -> Survive:
    """What can be had of this where flows have no standby."""
    return "restart" if survive == "crash" else survive


def _outlasting(step: Step) -> Step:
    """A step of a listener, where flows have no standby."""
    crash = step.subject.endswith(".survive") and step.note.endswith(" -> crash")
    return step._replace(act=Act.RESTART, note=f"{step.note}; needs a restart") if crash else step


def _restarting(step: Step) -> Step:
    if not step.subject.startswith(NEED_RESTART):
        return step
    return step._replace(act=Act.RESTART, note=f"{step.note}; needs a restart")


def _listener_steps(
    old: Mapping[str, Listener], new: Mapping[str, Listener], drained: Collection[str]
) -> Iterator[Step]:
    for name, listener in new.items():
        if name not in old:
            yield Step(Act.ADD, f"listener {name}", f"{listener.listen} to {listener.upstream}")
            continue
        if name in drained:
            yield Step(Act.REOPEN, f"listener {name}", "it was drained, and opens again")
        yield from _key_steps(f"listener.{name}", old[name], listener)
    for name in [name for name in old if name not in new]:
        note = "accepts no more, its flows drain"
        yield Step(Act.REMOVE, f"listener {name}", note, live=True)


def _upstream_steps(
    old: Mapping[str, Upstream],
    new: Mapping[str, Upstream],
    drained: Collection[tuple[str, str]],
) -> Iterator[Step]:
    for name, upstream in new.items():
        if name not in old:
            yield Step(Act.ADD, f"upstream {name}", value_text("endpoints", upstream.endpoints))
            continue
        yield from _endpoint_steps(name, old[name], upstream, drained)
        yield from _key_steps(f"upstream.{name}", old[name], upstream, without="endpoints")
    for name in [name for name in old if name not in new]:
        yield Step(Act.REMOVE, f"upstream {name}", "no new flows, those it has live on")


def _endpoint_steps(
    name: str, old: Upstream, new: Upstream, drained: Collection[tuple[str, str]]
) -> Iterator[Step]:
    before, after = ({str(each): each for each in one.endpoints} for one in (old, new))
    for endpoint in after:
        subject = f"endpoint {endpoint} of upstream {name}"
        if endpoint not in before:
            yield Step(Act.ADD, subject)
            continue
        if (name, endpoint) in drained:
            yield Step(Act.REOPEN, subject, "it was drained, and is chosen again")
        for step in _key_steps("", before[endpoint], after[endpoint]):
            yield Step(Act.CHANGE, subject, f"{step.subject[1:]} {step.note}")
    for endpoint in before:
        if endpoint not in after:
            subject = f"endpoint {endpoint} of upstream {name}"
            yield Step(Act.REMOVE, subject, "no new flows, those it has live on")


def _key_steps(path: str, old: BaseModel, new: BaseModel, without: str = "") -> Iterator[Step]:
    """The keys of a table that differ, those of tables in it included."""
    for key in type(new).model_fields:
        before, after = getattr(old, key), getattr(new, key)
        if before == after or key == without:
            continue
        place = f"{path}.{key}"
        if isinstance(before, BaseModel):
            yield from _key_steps(place, before, after)
        else:
            live = ".limits." in place
            note = f"{value_text(key, before)} -> {value_text(key, after)}"
            yield Step(Act.CHANGE, place, f"{note}; live flows too" if live else note, live)


def value_text(key: str, value: Any) -> str:
    """A value, nearly as the file has it."""
    match value:
        case None:
            return "not set"
        case bool():
            return "true" if value else "false"
        case float() | int() if key.startswith("bandwidth"):
            return format_bandwidth(value)
        case float():
            return f"{value:g}/s" if key.endswith("rate") else format_duration(value, parts=5)
        case int() if key == "mode":
            return f"{value:04o}"
        case int() if key == "bytes" or key.endswith("buffer"):
            return format_size(value)
        case bytes() | re.Pattern():
            data = value if isinstance(value, bytes) else value.pattern
            return f'"{printable(data.decode("utf-8", "backslashreplace"))}"'
        case range():
            return f"{value[0]}-{value[-1]}"
        case tuple() if hasattr(value, "_fields"):  # an address
            return str(value)
        case dict():
            return ", ".join(f"{name} = {each}" for name, each in value.items()) or "none"
        case tuple() | list():
            return ", ".join(value_text("", each) for each in value) or "none"
        case _:
            return str(value) or "off"
