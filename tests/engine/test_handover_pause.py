"""How long flows stand still while they change their worker, as the predecessor tells it."""

from __future__ import annotations

import pytest
import trio

from proxy.core.address import Transport
from proxy.engine.handover import transfer
from proxy.engine.handover.transfer import Heir
from tests.engine.heirs import successor_of
from tests.engine.lab import datagram_socket, listening, pair, relaying

SLOW = 0.05
"""Seconds that an heir takes until it serves what it was given."""


def serve_late(monkeypatch: pytest.MonkeyPatch, times: list[float]) -> None:
    """Have an heir take so long for what it was given before: datagrams first, then streams."""
    be_ready = Heir.be_ready

    async def late(heir: Heir) -> None:
        await trio.sleep(times.pop(0))
        await be_ready(heir)

    monkeypatch.setattr(Heir, "be_ready", late)


@pytest.mark.parametrize("times", [[SLOW, 0.0], [0.0, SLOW]], ids=["datagrams", "streams"])
async def test_it_lasts_until_the_heir_serves_the_flow(
    monkeypatch: pytest.MonkeyPatch, times: list[float]
) -> None:
    transport = Transport.UDP if times[0] else Transport.TCP
    endpoint = datagram_socket() if times[0] else listening()
    async with relaying([endpoint.getsockname()], transport) as lab:
        if times[0]:
            client = datagram_socket()
            await client.sendto(b"1", lab.address)
            await endpoint.recvfrom(10)
        else:
            await pair(lab, endpoint)
        serve_late(monkeypatch, times)
        async with successor_of(lab) as (_, left):
            assert left.handed == 1
            assert left.longest >= SLOW


async def test_an_heir_that_is_slow_with_nothing_holds_up_no_flow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint = listening()
    async with relaying([endpoint.getsockname()]) as lab:
        serve_late(monkeypatch, [SLOW])
        async with successor_of(lab) as (_, left):
            assert left.longest == 0.0


async def test_flows_of_datagrams_go_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "DATAGRAM_BATCH", 2)
    endpoint = datagram_socket()
    async with relaying([endpoint.getsockname()], Transport.UDP) as lab:
        clients = [datagram_socket() for _ in range(5)]
        for number, client in enumerate(clients):
            await client.sendto(b"%d" % number, lab.address)
            assert (await endpoint.recvfrom(10))[0] == b"%d" % number
        async with successor_of(lab) as (heir, left):
            assert left.handed == 5
            assert len(await heir.live()) == 5
            for client in reversed(clients):
                await client.sendto(b"again", lab.address)
                _, outbound = await endpoint.recvfrom(10)
                await endpoint.sendto(b"yes", outbound)
                assert (await client.recvfrom(10))[0] == b"yes"
            assert len(await heir.live()) == 5
