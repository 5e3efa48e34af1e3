"""Of several workers the one that a client belongs to explains what its next flow gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from proxy.core.address import Transport
from proxy.core.explanation import FlowQuestion
from tests.control.test_crew import (
    CLIENTS,
    asks,
    client_from,
    crewed,
    echo,
    listener,
    port_of,
    rows_by_worker,
    settings,
)
from tests.engine.lab import listening

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_clients_worker_explains(tmp_path: Path) -> None:
    endpoint = listening()
    text = settings(tmp_path) + listener("web", "tcp://127.0.0.1:0", endpoint.getsockname())
    limits = "[listener.web.limits.per_source]\nflows = 1\n"
    async with crewed(text + limits) as house, trio.open_nursery() as nursery:
        nursery.start_soon(echo, endpoint)
        port = await port_of(house, "web")
        for host in CLIENTS:
            question = FlowQuestion(Transport.TCP, (host, 0), "web")
            answer = await house.worker.explain(question)
            assert answer is not None
            assert answer["outcome"] == "admit"
            before = await rows_by_worker(house)
            assert await asks(await client_from(host, port))
            after = await rows_by_worker(house)
            grown = [index for index in after if len(after[index]) > len(before.get(index, ()))]
            assert grown == [answer["worker"]]
            answer = await house.worker.explain(question)
            assert answer is not None
            assert (answer["outcome"], answer["reason"]) == ("refuse", "source_flows")
        there_is_not = FlowQuestion(Transport.TCP, ("127.0.0.1", 0), "wbe")
        assert await house.worker.explain(there_is_not) is None
        nursery.cancel_scope.cancel()
