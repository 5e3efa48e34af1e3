"""Names and health checks together: what a name brings is checked, and its backups step in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.peers import ZONE
from tests.e2e.program import free_port
from tests.e2e.subject import Forward
from tests.e2e.test_health import checked, health_of, rows
from tests.e2e.test_names_change import NAME, ONE, TWO, named, tell, until_reached, who
from tests.e2e.zone import Zone, zone

pytestmark = pytest.mark.peers("nsd")

WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
async def dns(tmp_path: Path) -> AsyncIterator[Zone]:
    async with zone(tmp_path / "nsd", f"web 0 A {ONE}\n") as served:
        yield served


def probed(forward: Forward) -> Forward:
    return checked(forward, check="tcp", rise=1, fall=1)


@WORKERS
async def test_backups_of_a_service_step_in_when_checks_fail(
    stage: Stage, dns: Zone, workers: int
) -> None:
    one, two = free_port(), free_port()
    await dns.become(
        f"a 0 A {ONE}\nb 0 A {TWO}\n_web._tcp 0 SRV 1 1 {one} a\n_web._tcp 0 SRV 2 1 {two} b\n"
    )
    await tell(stage.nursery, [TWO], two)
    async with trio.open_nursery() as primary:
        await tell(primary, [ONE], one)
        web = probed(named(dns, f"srv://_web._tcp.{ZONE}"))
        sockpair = await stage.sockpair(web, workers=workers)
        await health_of(sockpair, f"{ONE}:{one}", "up")
        await health_of(sockpair, f"{TWO}:{two}", "up")
        assert await who(web) == {ONE}
        primary.cancel_scope.cancel()
    await health_of(sockpair, f"{ONE}:{one}", "down")
    assert await who(web) == {TWO}
    up = (await sockpair.metrics()).sum("sockpair_endpoint_up", endpoint=f"srv://_web._tcp.{ZONE}")
    assert up == 1, "one of its addresses is"
    await tell(stage.nursery, [ONE], one)
    await health_of(sockpair, f"{ONE}:{one}", "up")
    assert await who(web) == {ONE}


async def test_each_address_of_a_name_is_checked_for_as_long_as_it_has_it(
    stage: Stage, dns: Zone
) -> None:
    port = free_port()
    await tell(stage.nursery, [ONE], port)
    web = probed(named(dns, f"{NAME}:{port}"))
    sockpair = await stage.sockpair(web)
    await health_of(sockpair, f"{ONE}:{port}", "up")
    await dns.become(f"web 0 A {ONE}\nweb 0 A {TWO}\n")
    await health_of(sockpair, f"{TWO}:{port}", "down")
    assert await who(web) == {ONE}
    await tell(stage.nursery, [TWO], port)
    await until_reached(web, {ONE, TWO})
    await dns.become(f"web 0 A {TWO}\n")

    async def only() -> bool:
        return set(await rows(sockpair)) == {f"{TWO}:{port}"}

    await until(only, "the former address to be checked no more")
    assert await who(web) == {TWO}
