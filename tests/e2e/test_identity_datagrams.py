"""The client of datagrams, between real programs: dnsdist has PROXY headers over UDP, in and out.

It answers each question with the address that it takes the client for; its own health checks have
LOCAL headers, and must be answered before it sends anything on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.peers import HOST
from tests.e2e.program import free_port, output_of, peer, program
from tests.e2e.test_identity import TRUSTED, Known, accepts, folder_of

pytestmark = pytest.mark.peers("dnsdist", "dig")

CLIENT: Final = "127.0.0.77"

BOTH = pytest.mark.parametrize("transport", ["udp", "tcp"])

COMMON: Final = """
setLocal("127.0.0.1:PORT")
setACL("127.0.0.0/8")
setSecurityPollSuffix("")
"""

RECEIVER: Final = """
setProxyProtocolACL("127.0.0.0/8")
addAction(AllRule(), LuaAction(function(dq)
    return DNSAction.Spoof, dq.remoteaddr:toString()
end))
"""

SENDER: Final = """
newServer({address = "TARGET", useProxyProtocol = true, tcpOnly = TCP, checkInterval = 1})
"""


@asynccontextmanager
async def dnsdist(folder: Path, lines: str) -> AsyncIterator[str]:
    """dnsdist with these lines; ``host:port``, of both transports."""
    port = free_port()
    file = folder / "dnsdist.conf"
    file.write_text(COMMON.replace("PORT", str(port)) + lines)
    command = [peer("dnsdist"), "--supervised", "--disable-syslog", "-C", file]
    async with program(command, folder, accepts(port), name="dnsdist"):
        yield f"{HOST}:{port}"


async def asked_client(address: str, transport: str) -> str:
    """Ask from ``CLIENT`` for the client."""
    host, _, port = address.rpartition(":")
    return await output_of(
        *(peer("dig"), f"@{host}", "-p", port, "-b", CLIENT, "+tries=1", "+short"),
        *(f"+{'tcp' if transport == 'tcp' else 'notcp'}", "who.example", "A"),
    )


@BOTH
@pytest.mark.parametrize("checksum", ["false", "true"])
async def test_a_real_receiver_is_told_the_client(
    stage: Stage, transport: str, checksum: str
) -> None:
    keys = f'send_proxy = "v2"\nsend_proxy_crc32c = {checksum}\n'
    async with dnsdist(folder_of(stage, "receiver"), RECEIVER) as endpoint:
        dns = Known("dns", transport, [endpoint], upstream=keys)
        await stage.sockpair(dns)
        assert (await asked_client(dns.text, transport)).split() == [CLIENT]


@BOTH
async def test_a_real_sender_tells_the_client_and_its_checks_speak_for_itself(
    stage: Stage, transport: str
) -> None:
    async with dnsdist(folder_of(stage, "receiver"), RECEIVER) as endpoint:
        dns = Known("dns", transport, [endpoint], listener=TRUSTED, upstream='send_proxy = "v2"')
        sockpair = await stage.sockpair(dns)
        lines = SENDER.replace("TARGET", dns.text)
        lines = lines.replace("TCP", str(transport == "tcp").lower())
        async with dnsdist(folder_of(stage, "sender"), lines) as front:

            async def is_answered() -> bool:
                """It asks nobody until its first check has been answered."""
                return (await asked_client(front, transport)).split() == [CLIENT]

            await until(is_answered, "an answer through both")
            rows = await sockpair.flows() + await sockpair.flows(recent="true")
    told = [row for row in rows if row["client"]["remote"].startswith(f"{CLIENT}:")]
    assert told
    assert {row["client"]["local"] for row in told} == {front}
    assert all(row["client"]["via"]["local"] == dns.text for row in told)
    checks = [row for row in rows if row not in told]
    assert checks
    for client in (row["client"] for row in checks):  # LOCAL: it speaks for itself
        assert client["remote"] == (client["via"] or client)["remote"]
    assert (await sockpair.metrics()).sum("sockpair_flows_refused_total") == 0
