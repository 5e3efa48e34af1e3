"""Names that are looked up again and again, without a server: in their time, and not oftener."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import trio
from trio.testing import wait_all_tasks_blocked

from proxy.config.load import parse
from proxy.config.model import Config
from proxy.control.dns import Asking, Resolver
from proxy.control.names import Names
from proxy.core.names import Answer, Failure, Parts, Target


def config(*names: str, ttl_min: str = "50ms") -> Config:
    endpoints = ", ".join(f'"{name}:80"' for name in names)
    return parse(
        '[listener.web]\nlisten = "tcp://127.0.0.1:0"\nupstream = "web"\n'
        f'[upstream.web]\nendpoints = [{endpoints}]\n[names]\nttl_min = "{ttl_min}"\n',
        "f",
    )


class Oracle(Resolver):
    """Says what it was told to, and counts."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), Path("/nowhere"))
        self.asked: Counter[str] = Counter()
        self.address = "192.0.2.1"
        self.ttl = 0.0
        self.silent = set[str]()

    async def host(self, name: str, asking: Asking) -> Parts | Failure:
        self.asked[name] += 1
        await trio.lowlevel.checkpoint()
        if name in self.silent:
            await trio.sleep_forever()
        return {"A": Answer((Target((self.address, 0)),), self.ttl)}


class Adopted:
    """Counts how often it was called."""

    def __init__(self) -> None:
        self.times = 0

    async def __call__(self) -> None:
        await trio.lowlevel.checkpoint()
        self.times += 1


async def until(holds) -> None:  # type: ignore[no-untyped-def]
    with trio.fail_after(10):
        while not holds():
            await trio.sleep(0.005)


async def test_no_name_waits_for_another(nursery: trio.Nursery) -> None:
    oracle = Oracle()
    names, asked = Names(oracle), config("a.example", "b.example")
    await names.look_up(asked)
    oracle.silent = {"a.example"}
    nursery.start_soon(names.keep, lambda: asked, Adopted())
    await until(lambda: oracle.asked["b.example"] > 4)
    assert oracle.asked["a.example"] == 2, "one look-up of a name at a time"


async def test_what_has_not_changed_is_not_told_again(nursery: trio.Nursery) -> None:
    oracle, adopted = Oracle(), Adopted()
    names, asked = Names(oracle), config("a.example")
    await names.look_up(asked)
    nursery.start_soon(names.keep, lambda: asked, adopted)
    await until(lambda: oracle.asked["a.example"] > 4)
    assert adopted.times == 1
    oracle.address = "192.0.2.2"
    await until(lambda: adopted.times == 2)
    assert [each.address[0] for each in names.targets(asked.upstream["web"].endpoints[0].address)]


async def test_a_name_that_holds_is_not_asked_again(nursery: trio.Nursery) -> None:
    oracle = Oracle()
    oracle.ttl = 3600.0
    names, asked = Names(oracle), config("a.example")
    await names.look_up(asked)
    nursery.start_soon(names.keep, lambda: asked, Adopted())
    await wait_all_tasks_blocked(0.1)
    assert oracle.asked["a.example"] == 1


async def test_another_configuration_is_noticed_at_once_and_former_names_are_forgotten(
    nursery: trio.Nursery,
) -> None:
    oracle = Oracle()
    oracle.ttl = 3600.0
    names, before, after = Names(oracle), config("a.example"), config("b.example")
    work = before
    await names.look_up(before)
    nursery.start_soon(names.keep, lambda: work, Adopted())
    await wait_all_tasks_blocked(0.1)
    work = after
    names.wake()
    await until(lambda: oracle.asked["b.example"] == 1)
    assert len(names.rows(after)[0]["addresses"]) == 1
    assert names.rows(before)[0]["addresses"] == []


async def test_names_that_were_never_put_to_work_are_forgotten(nursery: trio.Nursery) -> None:
    oracle = Oracle()
    oracle.ttl = 3600.0
    names, asked = Names(oracle), config("a.example")
    await names.look_up(asked)
    nursery.start_soon(names.keep, lambda: asked, Adopted())
    await wait_all_tasks_blocked(0.1)
    for number in range(10):
        await names.look_up(config(f"n{number}.example"))
    assert len(names._known) == 2
    assert names.rows(asked)[0]["addresses"]
