"""A thousand who say little to the admin: neither scrapes nor flows are the worse for it."""

from __future__ import annotations

from http import HTTPStatus
from urllib.request import urlopen

import trio

from tests.e2e.conftest import Stage
from tests.e2e.patience import PATIENCE
from tests.e2e.sockets import connect, echo, listen, say
from tests.e2e.subject import Forward
from tests.observe.slowloris import Slowloris

CLIENTS = 1000
TURNS = 5


def scrape(port: int) -> None:
    """One connection, one answer; whoever is thrown out has failed."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        assert answer.status == HTTPStatus.OK
        assert b"sockpair_flows" in answer.read()


async def test_slowloris_disturbs_nobody(stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    port = sockpair.settings.admin_port
    async with await connect(web.address) as client:
        with Slowloris(("127.0.0.1", port), CLIENTS) as crowd:
            for turn in range(TURNS):
                await trio.to_thread.run_sync(scrape, port)
                await say(client, bytes(100_000))
                async with await connect(web.address) as another:
                    await say(another, b"%d" % turn)
                crowd.say_a_byte()
            assert crowd.thrown_out > CLIENTS / 2
    books = await sockpair.books("web", flows=TURNS + 1)
    assert books.reasons == {"finished": TURNS + 1}
    assert len(sockpair.log_records("admin_connections_full")) == 1
