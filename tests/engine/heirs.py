"""A second worker that takes over from a lab's worker, in the same process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from socket import socket as Socket
from socket import socketpair
from typing import Any

import trio

from proxy.engine.leaving import Left
from proxy.engine.specs import Change, LeaveOrder, OpenListener, Steered
from proxy.engine.worker import Worker
from tests.engine.lab import UPSTREAMS, Lab, change

TO_ONE: LeaveOrder = {"lab": Steered(1)}


@asynccontextmanager
async def successor_of(
    lab: Lab, order: LeaveOrder = TO_ONE, patience: float = 1.0, **parts: Any
) -> AsyncIterator[tuple[Lab, Left]]:
    """Have another worker take over; ``parts`` are of its listener where it differs."""
    worker = Worker(10_000, recent=10_000)
    ours, theirs = socketpair()
    left: list[Left] = []

    async def leave() -> None:
        left.append(await lab.worker.leave(order, [ours], patience))

    async with trio.open_nursery() as running:
        running.start_soon(worker.run)
        try:
            await worker.expect([theirs])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave)
                await worker.apply(same_as(lab, **parts))
            await worker.wait_taken_over()
            yield Lab(worker, lab.address, lab.transport), left[0]
        finally:
            worker.stop()
            running.cancel_scope.cancel()


def same_as(lab: Lab, **parts: Any) -> Change:
    """What makes another worker of what a lab's worker is; with a duplicate of its socket."""
    roster = lab.worker._roster
    (listener,) = roster._listeners["lab"]
    spec = replace(roster._specs["lab"], **parts)
    socket = Socket(fileno=os.dup(listener.socket.fileno()))
    return change(*UPSTREAMS[lab.worker].values(), opened=(OpenListener(spec, (socket,)),))
