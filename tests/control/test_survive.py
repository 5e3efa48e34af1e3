"""Where flows live, by what they are to live on through."""

from __future__ import annotations

import pytest
import trio

from proxy.config.load import parse
from proxy.control.opening import open_house

TEXT = """
admin.socket = ""
admin.http = ""
[listener.web]
listen = "tcp://127.0.0.1:0"
upstream = "web"
survive = "{}"
[upstream.web]
endpoints = ["127.0.0.1:9"]
"""


@pytest.mark.parametrize(("survive", "is_alone"), [("crash", False), ("restart", True)])
async def test_who_outlives_a_crash_lives_in_another_process(
    survive: str, nursery: trio.Nursery, *, is_alone: bool
) -> None:
    house = await open_house(parse(TEXT.format(survive), "f"))
    await nursery.start(house.worker.run)
    assert (house.is_alone, house.workers) == (is_alone, 1)
    (row,) = (await house.worker.status())["workers"]
    assert (row["pid"] == (await house.worker.status())["pid"]) is is_alone
    await house.worker.finish()
