"""Ids while flows change their worker: no heir gives one that the predecessor has given."""

from __future__ import annotations

import os
from socket import socketpair

import pytest
import trio

from proxy.engine.handover.transfer import NOTHING_MORE, STREAMS, Heir
from proxy.engine.wire import wire_on
from tests.engine.heirs import TO_ONE
from tests.engine.lab import accept, connect, listening
from tests.engine.test_preface import LINE, proxied, waiting


@pytest.mark.parametrize("late", [1, 3])
async def test_who_says_its_header_meanwhile_has_no_id_of_the_heirs(late: int) -> None:
    endpoint = listening()
    async with proxied(endpoint) as lab, trio.open_nursery() as nursery:
        clients = [await connect(lab.address) for _ in range(late)]
        while waiting(lab) < late:
            await trio.sleep(0.002)
        ours, theirs = socketpair()
        nursery.start_soon(lab.worker.leave, TO_ONE, [ours], 1.0)
        heir = Heir(wire_on(theirs))
        settle = heir._settle

        async def late_headers() -> None:
            """Acknowledge the flows of datagrams, of which there are none, only now."""
            for client in clients:
                await client.send(LINE)
                await accept(endpoint)
            await settle()

        heir._settle = late_headers  # type: ignore[method-assign]
        _, papers = await heir.take_datagrams()
        heir._settle = settle  # type: ignore[method-assign]
        await heir.be_ready()
        ids: list[int] = []
        while (batch := await heir.take_next()).kind != NOTHING_MORE:
            for state, files in batch.flows:
                ids.append(state.id)
                for fd in files:
                    os.close(fd)
            if batch.kind == STREAMS:
                await heir.be_ready()
        assert len(ids) == late
        assert max(ids) < papers.next_id
