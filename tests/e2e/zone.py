"""A real DNS server whose zone changes under way."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Final

import dns.asyncbackend
import dns.asyncquery
import dns.message
import trio

from tests.e2e.patience import until
from tests.e2e.peers import HOST, ZONE, Origin, nsd, zone_text

ASKED: Final = 0.2
"""Seconds for one question to a server on this host."""


class Zone:
    """One zone, with a server of its own."""

    def __init__(self, origin: Origin, host: str) -> None:
        self.origin = origin
        self.host = host
        self._serials = count(2)

    @property
    def server(self) -> str:
        return f"{self.host}:{self.origin.port}"

    async def become(self, records: str) -> None:
        """Have these records from now on, and no others; return when they are served."""
        serial = next(self._serials)
        (self.origin.folder / "zone").write_text(zone_text(records, serial))
        self.origin.program.process.send_signal(signal.SIGHUP)
        await until(lambda: self._serves(serial), f"serial {serial} of the zone")

    def stop(self) -> None:
        """Have the server be there and answer nothing."""
        os.killpg(self.origin.program.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.origin.program.pid, signal.SIGCONT)

    async def _serves(self, serial: int) -> bool:
        question = dns.message.make_query(ZONE, "SOA")
        with trio.move_on_after(ASKED):
            answer = await dns.asyncquery.udp(
                question,
                self.host,
                port=self.origin.port,
                backend=dns.asyncbackend.get_backend("trio"),
            )
            return bool(answer.answer) and answer.answer[0][0].serial == serial
        return False


@asynccontextmanager
async def zone(folder: Path, records: str, host: str = HOST, port: int = 0) -> AsyncIterator[Zone]:
    """Serve a zone; it is killed in the end, also one that was stopped."""
    await trio.Path(folder).mkdir(exist_ok=True)
    async with nsd(folder, host, port, records) as origin:
        try:
            yield Zone(origin, host)
        finally:
            await origin.program.kill()
