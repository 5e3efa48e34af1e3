"""The page in a real browser, on a real proxy with real traffic."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proxy.core.flow import CloseReason
from tests.e2e.conftest import Stage
from tests.e2e.patience import until
from tests.e2e.program import free_port
from tests.e2e.sockets import connect, echo, expect_refusal, listen, say, text_of
from tests.e2e.subject import Forward, Sockpair
from tests.e2e.subject import sockpair as again
from tests.observe.admin import admin_server
from tests.observe.fake_relay import FakeRelay
from tests.page.browser import Browser, Chromium, browser_at

pytestmark = pytest.mark.peers("chromium")

MANY = 5000
ELEMENTS_MOST = 150
"""Rows that exist as elements, however many there are: what a large window shows, and margins."""

BURST = 100
"""Datagrams sent at once: what the receive buffer of a socket holds for certain."""

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


@asynccontextmanager
async def page_of(
    chromium: Chromium, sockpair: Sockpair, hash_: str = "", **context: Any
) -> AsyncIterator[Browser]:
    base = f"http://127.0.0.1:{sockpair.settings.admin_port}"
    async with browser_at(chromium, base) as browser:
        await browser.open(hash_, **context)
        yield browser


async def row_with(browser: Browser, text: str) -> dict[str, str]:
    """Wait for the row that has this text in a cell."""

    async def look() -> dict[str, str] | None:
        rows = await browser.rows()
        return next((row for row in rows if text in row.values()), None)

    found: dict[str, str] = await until(look, f"a row with {text}")
    return found


async def test_rows_appear_as_traffic_runs_and_leave_with_their_reason(
    chromium: Chromium, stage: Stage
) -> None:
    endpoint = await listen(stage.nursery, echo)
    web = Forward("web", "tcp", [endpoint])
    dead = Forward("dead", "tcp", [f"127.0.0.1:{free_port()}"])
    sockpair = await stage.sockpair(web, dead)
    async with page_of(chromium, sockpair) as browser:
        await browser.wait("document.querySelector('.empty').textContent == 'No flow is live.'")
        async with await connect(web.address) as client:
            await say(client, b"x" * 2048)
            (row,) = await sockpair.wait_flows(1)
            await row_with(browser, "2.00 KiB")
            shown = await row_with(browser, text_of(client.socket.getsockname()))
            assert shown["Id"] == str(row["id"])
            assert shown["State"] == "established"
            assert shown["Local"] == row["client"]["local"]
            assert shown["Outbound"] == row["endpoint"]["local"]
            assert shown["Endpoint"] == endpoint
            assert shown["→ bytes"] == shown["← bytes"] == "2.00 KiB"
            await say(client, b"x" * 2048)
            await browser.wait("document.querySelector('main').innerText.includes('4.00 KiB')")
        await browser.wait("document.querySelector('.empty').textContent == 'No flow is live.'")
        await expect_refusal(dead.address)
        await browser.do(lambda page: page.get_by_role("tab", name="Closed").click())
        assert (await row_with(browser, "finished"))["Side"] == "client"
        assert (await row_with(browser, "connect refused"))["Listener"] == "dead"


async def test_filters_narrow_and_are_part_of_the_address(chromium: Chromium, stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    one, other = Forward("one", "tcp", [endpoint]), Forward("other", "tcp", [endpoint])
    sockpair = await stage.sockpair(one, other)
    async with await connect(one.address) as first, await connect(other.address) as second:
        await sockpair.wait_flows(2, state="established")
        async with page_of(chromium, sockpair) as browser:
            await browser.wait("document.querySelector('#count').textContent == '2 flows'")
            await browser.do(lambda page: page.get_by_label("Listener").select_option("one"))
            await browser.wait("document.querySelector('#count').textContent == '1 of 2 flows'")
            (row,) = await browser.rows()
            assert row["Client"] == text_of(first.socket.getsockname())
            await browser.do(lambda page: page.reload())
            await browser.wait("document.querySelector('#count').textContent == '1 of 2 flows'")
            await browser.do(lambda page: page.get_by_role("button", name="Clear").click())
            await browser.wait("document.querySelector('#count').textContent == '2 flows'")
            port = str(second.socket.getsockname()[1])
            await browser.do(lambda page: page.keyboard.press("/"))
            await browser.do(lambda page: page.keyboard.type(f":{port}"))
            await browser.wait("document.querySelector('#count').textContent == '1 of 2 flows'")
            (row,) = await browser.rows()
            assert row["Listener"] == "other"
            await browser.do(lambda page: page.get_by_label("State").select_option("connecting"))
            await browser.wait("document.querySelector('#count').textContent == '0 of 2 flows'")
            assert await browser.text(".empty") == "Nothing is left by the filters."


async def test_a_flow_opens_and_closes_by_keyboard(chromium: Chromium, stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    async with await connect(web.address) as client, page_of(chromium, sockpair) as browser:
        await say(client, b"hello")
        own = text_of(client.socket.getsockname())
        row = await row_with(browser, own)
        await browser.do(lambda page: page.locator("table").focus())
        for key in ("ArrowDown", "Enter"):
            await browser.do(lambda page, key=key: page.keyboard.press(key))
        await browser.wait("document.querySelector('#detail .pairs')")
        await browser.wait("document.querySelector('#detail').innerText.includes('5 B')")
        detail = await browser.text("#detail")
        assert f"Flow {row['Id']} · tcp · web" in detail
        for address in (own, row["Local"], row["Outbound"], endpoint):
            assert address in detail
        assert "idle 2h 04m" in detail
        await browser.wait("document.querySelector('#detail .legs').innerText.includes('Min rtt')")
        url = await browser.do(lambda page: page.url)
        assert f"flow={row['Id']}" in url
        await client.aclose()
        await browser.wait(
            "document.querySelector('#detail .facts')?.innerText.includes('finished')"
        )
        await browser.do(lambda page: page.keyboard.press("Escape"))
        await browser.wait("!document.querySelector('#detail').open")
        await browser.open(url.rpartition("/")[2])
        await browser.wait(
            "document.querySelector('#detail .facts')?.innerText.includes('finished')"
        )


async def test_a_flow_that_is_not_there_is_said_so(chromium: Chromium, stage: Stage) -> None:
    sockpair = await stage.sockpair(Forward("web", "tcp", ["127.0.0.1:9"]))
    async with page_of(chromium, sockpair, "#flows?flow=424242") as browser:
        browser.forgiven = ("404",)
        await browser.wait("document.querySelector('#detail').innerText.includes('no flow 424242')")


async def test_listeners_and_upstreams(chromium: Chromium, stage: Stage) -> None:
    endpoint = await listen(stage.nursery, echo)
    web = Forward("web", "tcp", [endpoint])
    sockpair = await stage.sockpair(web)
    async with (
        await connect(web.address) as client,
        page_of(chromium, sockpair, "#listeners") as browser,
    ):
        await say(client, b"x" * 1000)
        await browser.wait("document.querySelector('main').innerText.includes('1000 B')")
        row = await row_with(browser, "web")
        assert (row["Listens on"], row["Flows"], row["Opened"]) == (web.text, "1", "1")
        await browser.do(lambda page: page.keyboard.press("4"))
        row = await row_with(browser, endpoint)
        assert (row["Upstream"], row["Condition"], row["Flows"]) == ("web", "unknown", "1")


async def test_limits_of_the_file_and_those_that_were_ordered(
    chromium: Chromium, stage: Stage
) -> None:
    web = Forward("web", "tcp", ["127.0.0.1:9"], limits={"bandwidth_reply": "1MiB/s"})
    sockpair = await stage.sockpair(web)
    async with page_of(chromium, sockpair, "#limits") as browser:
        row = await row_with(browser, "limits.per_flow.bandwidth_reply")
        assert (row["For"], row["Value"], row["From"]) == ("web", "1MiB/s", "configuration")
        asked = "/api/v1/limits?client=192.0.2.0/24&bytes=2KiB&for=1h"
        assert (await sockpair.ask("POST", asked))[0] == 200
        row = await row_with(browser, "client 192.0.2.0/24")
        assert (row["Limit"], row["Value"], row["From"]) == ("bytes", "2.00 KiB", "order 1")


async def test_five_thousand_flows_cost_what_the_window_shows(
    chromium: Chromium, stage: Stage
) -> None:
    with ExitStack() as stack:
        endpoint = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        endpoint.bind(("127.0.0.1", 0))
        forward = Forward("dns", "udp", [text_of(endpoint.getsockname())])
        sockpair = await stage.sockpair(forward)
        for count in range(1, MANY + 1):
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.sendto(b"hello", forward.address)
            if count % BURST == 0:
                await until(partial(has_flows, sockpair, count), f"{count} flows")
        async with page_of(chromium, sockpair, viewport={"width": 1400, "height": 2000}) as browser:
            await browser.wait("document.querySelector('#count').textContent == '5,000 flows'")
            assert await browser.do(count_rows) < ELEMENTS_MOST
            await browser.do(lambda page: page.locator("table").focus())
            await browser.do(lambda page: page.keyboard.press("End"))
            await browser.wait(
                "[...document.querySelectorAll('main tbody tr')].some((row) =>"
                " row.getAttribute('aria-rowindex') === '5001' && row.className === 'active')"
            )
            assert await browser.do(count_rows) < ELEMENTS_MOST
            await browser.do(lambda page: page.get_by_role("button", name="Client").click())
            last = f":{client.getsockname()[1]}"
            await browser.do(lambda page: page.keyboard.press("/"))
            await browser.do(lambda page: page.keyboard.type(last))
            await browser.wait("document.querySelector('#count').textContent == '1 of 5,000 flows'")


async def has_flows(sockpair: Sockpair, count: int) -> bool:
    return bool((await sockpair.status())["flows"] == count)


def count_rows(page: Any) -> int:
    count: int = page.locator("main tbody tr").count()
    return count


async def test_text_from_outside_never_becomes_markup(chromium: Chromium, tmp_path: Path) -> None:
    relay = FakeRelay()
    hostile = "<img src=x onerror=document.title=1><script>document.title=2</script>"
    relay.web.listener = relay.web.upstream = hostile
    flow = relay.open_tcp()
    flow.endpoint_remote = (hostile, 80)
    relay.end(relay.open_tcp(), CloseReason.KILLED)
    async with (
        admin_server(relay, tmp_path) as admin,
        browser_at(chromium, "http://{}:{}".format(*admin.tcp)) as browser,
    ):
        await browser.open()
        row = await row_with(browser, hostile)
        assert row["Endpoint"] == f"{hostile}:80"
        await browser.do(lambda page: page.locator("main tbody tr:not(.space)").click())
        await browser.wait("document.querySelector('#detail .facts')")
        for key in ("Escape", "3", "4"):
            await browser.do(lambda page, key=key: page.keyboard.press(key))
            await row_with(browser, hostile if key != "4" else "web")
        assert await browser.do(lambda page: page.title()) == "sockpair"
        assert await browser.do(lambda page: page.locator("img[src=x]").count()) == 0


@pytest.mark.parametrize("tab", ["flows", "closed", "listeners", "upstreams", "limits"])
async def test_a_phone_shows_cards_and_scrolls_one_way(
    chromium: Chromium, stage: Stage, tab: str
) -> None:
    endpoint = await listen(stage.nursery, echo)
    sockpair = await stage.sockpair(web := Forward("web", "tcp", [endpoint]))
    async with await connect(web.address) as client:
        await say(client, b"hello")
        async with await connect(web.address):
            pass
        async with page_of(chromium, sockpair, f"#{tab}", **PHONE) as browser:
            await browser.wait("document.querySelector('main tbody tr:not(.space)')")
            wide = await browser.do(
                lambda page: page.evaluate("document.documentElement.scrollWidth > innerWidth")
            )
            assert not wide
            first = "main tbody tr:not(.space) td"
            label = await browser.do(
                lambda page: page.evaluate(
                    f"getComputedStyle(document.querySelector('{first}'), '::before').content"
                )
            )
            assert label != "none"


async def test_light_and_dark(chromium: Chromium, stage: Stage) -> None:
    sockpair = await stage.sockpair(Forward("web", "tcp", ["127.0.0.1:9"]))
    shade = "getComputedStyle(document.body).backgroundColor"
    async with page_of(chromium, sockpair, color_scheme="dark") as browser:
        dark = await browser.do(lambda page: page.evaluate(shade))
        for _ in range(len(("auto", "light"))):  # the button goes to light, then to dark
            await browser.do(lambda page: page.locator("#theme").click())
        assert await browser.do(lambda page: page.evaluate(shade)) == dark
        await browser.open(color_scheme="light")
        assert await browser.do(lambda page: page.evaluate(shade)) != dark


async def test_a_proxy_that_is_gone_is_missed_and_found_again(
    chromium: Chromium, stage: Stage
) -> None:
    sockpair = await stage.sockpair(Forward("web", "tcp", ["127.0.0.1:9"]))
    async with page_of(chromium, sockpair) as browser:
        browser.forgiven = ("ERR_CONNECTION", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE")
        await browser.wait("document.querySelector('#health').dataset.kind == 'good'")
        await sockpair.stop()
        await browser.wait("document.querySelector('#health').innerText.includes('no answer')")
        async with again(sockpair.settings):
            await browser.wait("document.querySelector('#health').innerText == 'ready'")


async def test_nothing_but_its_own_files_may_run(chromium: Chromium, stage: Stage) -> None:
    sockpair = await stage.sockpair(Forward("web", "tcp", ["127.0.0.1:9"]))
    async with page_of(chromium, sockpair) as browser:
        browser.forgiven = ("Content Security Policy",)
        ran = await browser.do(
            lambda page: page.evaluate(
                "() => { const script = document.createElement('script');"
                " script.textContent = 'document.title = 3';"
                " document.body.append(script); return document.title; }"
            )
        )
        assert ran == "sockpair"
        assert any("Content Security Policy" in each for each in browser.complaints)
