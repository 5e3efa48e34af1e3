"""From endpoints of the file, and what is known of their names, to addresses with weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from proxy.config.load import parse
from proxy.config.model import Config
from proxy.control.dns import Asking, Resolver
from proxy.control.endpoints import unresolved, upstream_specs
from proxy.control.names import Names
from proxy.core.endpoint import WEIGHT_MAX
from proxy.core.names import Answer, Failure, Parts, Target
from proxy.engine.specs import EndpointSpec

WEB = "web.example"
NOT_ROUTED = "2001:db8::1"  # documentation, RFC 3849; where there is a default route this is routed

DOWN = Failure("no answer within 5 s")
GONE = Failure("there is no such name", final=True)


class Book(Resolver):
    """Answers from a book."""

    def __init__(self, book: Mapping[str, Parts | Failure]) -> None:
        super().__init__(Path("/nowhere"), Path("/nowhere"))
        self.book = book

    async def host(self, name: str, asking: Asking) -> Parts | Failure:
        return self.book[name]

    service = host


def config(endpoints: str, more: str = "") -> Config:
    return parse(
        '[listener.web]\nlisten = "tcp://127.0.0.1:0"\nupstream = "web"\n'
        f"[upstream.web]\nendpoints = [{endpoints}]\n{more}",
        "f",
    )


async def known(config_: Config, *targets: Target, parts: Parts | Failure | None = None) -> Names:
    names = Names(Book({WEB: parts or {"A": Answer(targets, 60.0)}}))
    await names.look_up(config_)
    return names


async def specs(config_: Config, *targets: Target) -> tuple[EndpointSpec, ...]:
    names = await known(config_, *targets)
    return upstream_specs(config_, names)["web"].endpoints


def v4(number: int, port: int = 0, weight: int = 1, priority: int = 0) -> Target:
    return Target((f"127.0.0.{number}", port), weight, priority)


def v6(port: int = 0) -> Target:
    return Target(("::1", port, 0, 0))


def parts_of(found: tuple[EndpointSpec, ...]) -> list[tuple[str, int, int, bool]]:
    return [(each.address[0], each.address[1], each.weight, each.backup) for each in found]


async def test_a_name_is_as_many_endpoints_as_it_has_addresses() -> None:
    found = await specs(
        config(f'"10.0.0.1:70", {{ address = "{WEB}:80", weight = 3, backup = true }}'),
        v4(1),
        v6(),
    )
    assert parts_of(found) == [
        ("10.0.0.1", 70, 1, False),
        ("127.0.0.1", 80, 3, True),
        ("::1", 80, 3, True),
    ]
    assert [each.name for each in found] == ["10.0.0.1:70", f"{WEB}:80", f"{WEB}:80"]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0, 0], [1, 1]),
        ([1, 3], [1, 3]),
        ([0, 3], [1, 3]),
        ([WEIGHT_MAX, 1], [WEIGHT_MAX, 1]),
        ([65535, 32768, 1], [WEIGHT_MAX, 128, 1]),
    ],
)
async def test_weights_of_a_service_are_within_our_bounds(
    weights: list[int], expected: list[int]
) -> None:
    targets = [v4(n + 1, 80, weight) for n, weight in enumerate(weights)]
    found = await specs(config(f'"srv://{WEB}"'), *targets)
    assert [each.weight for each in found] == expected


async def test_the_lowest_priority_of_a_service_is_asked_and_the_others_are_backups() -> None:
    targets = v4(1, 80, priority=20), v4(2, 81, priority=10), v4(3, 82, priority=30)
    found = await specs(config(f'"srv://{WEB}"'), *targets)
    assert parts_of(found) == [
        ("127.0.0.2", 81, 1, False),
        ("127.0.0.1", 80, 1, True),
        ("127.0.0.3", 82, 1, True),
    ]
    backup = f'{{ address = "srv://{WEB}", backup = true }}'
    assert all(each.backup for each in await specs(config(backup), *targets))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", ["127.0.0.1", "::1"]),
        ('family = "ipv4"', ["127.0.0.1"]),
        ('family = "ipv6"', ["::1"]),
        ('source = ["127.0.0.9"]', ["127.0.0.1"]),
        ('source = ["::1", "127.0.0.9"]', ["127.0.0.1", "::1"]),
    ],
)
async def test_families_that_the_upstream_cannot_use_are_left_out(
    more: str, expected: list[str]
) -> None:
    found = await specs(config(f'"{WEB}:80"', more), v4(1), v6())
    assert [each.address[0] for each in found] == expected


async def test_what_this_host_has_no_route_to_is_left_out_while_others_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "proxy.control.endpoints._has_route", lambda address: address[0] != NOT_ROUTED
    )
    there, away = v4(1), Target((NOT_ROUTED, 0, 0, 0))
    text = f'"{WEB}:80"'
    assert [each.address[0] for each in await specs(config(text), there, away)] == ["127.0.0.1"]
    assert [each.address[0] for each in await specs(config(text), away)] == [NOT_ROUTED]
    marked = await specs(config(text, "mark = 7"), there, away)
    assert len(marked) == 2, "another routing table may have one"


async def test_what_has_no_address_is_told_with_its_reason() -> None:
    asked = config(f'"10.0.0.1:80", "{WEB}:80"')
    for parts, reason, final in [
        (DOWN, "no answer within 5 s", False),
        (GONE, "there is no such name", True),
        ({"A": Answer((), 1.0), "AAAA": Answer((), 1.0)}, "it has no address", True),
        ({"A": DOWN, "AAAA": Answer((), 1.0)}, "no answer within 5 s", False),
    ]:
        (problem,) = unresolved(asked, await known(asked, parts=parts))  # type: ignore[arg-type]
        assert problem.text == (
            f'upstream.web: cannot resolve "{WEB}": {reason}; check the name, or use an address'
        )
        assert problem.final is final
    assert unresolved(asked, await known(asked, v4(1))) == []


async def test_an_address_of_the_wrong_family_is_none() -> None:
    asked = config(f'"{WEB}:80"', 'family = "ipv6"')
    (problem,) = unresolved(asked, await known(asked, v4(1)))
    assert "it has no IPv6 address" in problem.text
    assert problem.final


async def test_an_interface_that_is_not_there_is_a_problem() -> None:
    asked = config('"[fe80::1%nowhere0]:80"')
    (problem,) = unresolved(asked, Names())
    assert 'there is no interface "nowhere0"' in problem.text
    assert problem.final
    assert upstream_specs(asked, Names())["web"].endpoints == ()


async def test_original_destinations_and_unix_sockets_need_no_names(tmp_path: Path) -> None:
    original = config('"original"')
    assert unresolved(original, Names()) == []
    assert upstream_specs(original, Names())["web"].original
    unix = config(f'"unix://{tmp_path}/x"')
    assert unresolved(unix, Names()) == []
    assert len(upstream_specs(unix, Names())["web"].endpoints) == 1


async def test_a_name_is_looked_up_once_for_all_that_have_it() -> None:
    asked = config(f'"{WEB}:80", "{WEB.upper()}:81", "srv://{WEB}"')
    calls: list[str] = []

    class Counting(Book):
        async def host(self, name: str, asking: Asking) -> Parts | Failure:
            calls.append(name)
            return {"A": Answer((v4(1),), 60.0)}

        async def service(self, name: str, asking: Asking) -> Parts | Failure:
            calls.append(f"srv {name}")
            return {"A": Answer((v4(1, 82),), 60.0)}

    names = Names(Counting({}))
    await names.look_up(asked)
    assert sorted(calls) == [f"srv {WEB}", WEB]
    ports = [each.address[1] for each in upstream_specs(asked, names)["web"].endpoints]
    assert ports == [80, 81, 82]
    assert [row["endpoint"] for row in names.rows(asked)] == [
        f"{WEB}:80",
        f"{WEB.upper()}:81",
        f"srv://{WEB}",
    ]
