"""A second worker that takes over from a lab's worker, in the same process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from socket import socket as Socket
from socket import socketpair
from typing import Any

import pytest
import trio

from proxy.core.flow import CloseReason
from proxy.core.live_limit import LiveLimit
from proxy.engine.handover.leaving import Left
from proxy.engine.sampler import Sampler
from proxy.engine.specs import Change, LeaveOrder, OpenListener, Steered, UpstreamSpec
from proxy.engine.worker import Worker
from tests.engine.lab import Lab, change, opened


def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody sample, so that rows of idle flows stay equal."""
    monkeypatch.setattr(Sampler, "look_on", lambda *_: False)


TO_ONE: LeaveOrder = {"lab": Steered(1)}


@asynccontextmanager
async def successor_of(
    lab: Lab,
    order: LeaveOrder | None = None,
    patience: float = 1.0,
    upstreams: Sequence[UpstreamSpec] | None = None,
    bounds: Mapping[str, int] | None = None,
    orders: Sequence[LiveLimit] = (),
    **parts: Any,
) -> AsyncIterator[tuple[Lab, Left]]:
    """Have another worker take over.

    Args:
        lab: whose flows it gets.
        order: of which listeners; of all, if it is not said.
        patience: for flows that connect.
        upstreams: its own, where they differ.
        bounds: those of its table, where they differ.
        orders: that are in force.
        parts: of its listeners, where they differ.

    """
    worker = Worker(10_000, recent=10_000)
    ours, theirs = socketpair()
    same = same_as(lab, upstreams, bounds or {}, **parts)
    opened.extend([ours, theirs, *(each for listener in same.opened for each in listener.sockets)])
    left: list[Left] = []
    if order is None:
        order = {name: Steered(1) for name in lab.worker._roster._listeners}

    async def leave() -> None:
        left.append(await lab.worker.leave(order, [ours], patience))

    async with trio.open_nursery() as running:
        running.start_soon(worker.run)
        try:
            await worker.expect([theirs])
            await worker.limit(orders)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave)
                await worker.apply(same)
            await worker._arriving.wait_over()
            await lab.worker.settle()
            yield Lab(worker, lab.address, lab.transport), left[0]
        finally:
            worker.stop()
            running.cancel_scope.cancel()


def same_as(
    lab: Lab,
    upstreams: Sequence[UpstreamSpec] | None = None,
    bounds: Mapping[str, int] | None = None,
    **parts: Any,
) -> Change:
    """What makes another worker of what a lab's worker is; with duplicates of its sockets."""
    roster = lab.worker._roster
    if upstreams is None:
        upstreams = [route.spec for route in roster.upstreams._routes.values()]
    listeners = [
        OpenListener(
            replace(roster.specs[name], **parts),
            tuple(again(each.socket) for each in known if each.is_open),
        )
        for name, known in roster._listeners.items()
    ]
    return change(*upstreams, opened=listeners, **(bounds or {}))


def again(socket: Socket) -> Socket:
    """A duplicate of a listening socket, of the same class."""
    return type(socket)(fileno=os.dup(socket.fileno()))


def nothing_left(lab: Lab) -> bool:
    """Whether the books of a worker are those of one without flows."""
    relay, roster = lab.worker._relay, lab.worker._roster
    endpoints = [each for upstream in roster.upstreams for each in upstream.endpoints]
    left = {
        "table": [len(relay.table)],
        "pairs": [len(relay.table._by_endpoint.flows)],
        "exits": [len(relay.exits)],
        "files": [relay.files.used - 2 * len(relay.pipes._free)],
        "orders": [len(relay.orders.held)],
        "endpoints": [each.flows for each in (*endpoints, *roster.upstreams.counters)],
        "gates": [each.gate.flows for each in roster.counters],
        "live": [each.flows for each in roster.counters],
        "original": [each.original.buffered for each in roster.counters],
        "reply": [each.reply.buffered for each in roster.counters],
        "lost": [each.closed[CloseReason.INTERNAL] for each in roster.counters],
    }
    assert {name: value for name, value in left.items() if any(value)} == {}
    return True
