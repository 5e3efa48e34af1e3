"""A real Chromium, driven from Trio.

Playwright's objects belong to the thread that made them, so one thread has them all, and a test
hands it functions of the page. What the page wrote to its console, what went wrong in it and what
it asked of anybody but its own server is collected, and fails the test in the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import trio
from playwright.sync_api import Browser as Program
from playwright.sync_api import Page, Playwright, sync_playwright

from tests.e2e.patience import PATIENCE, until
from tests.e2e.program import peer

ARGUMENTS: Final = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")

T = TypeVar("T")


class Chromium:
    """One browser for many tests, in its thread; each page has a context of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._playwright, self._browser = self._thread.submit(self._start).result()

    def close(self) -> None:
        self._thread.submit(self._stop).result()
        self._thread.shutdown()

    async def call(self, step: Callable[[Program], T]) -> T:
        """Run a function of the browser in its thread."""
        return await trio.to_thread.run_sync(
            lambda: self._thread.submit(step, self._browser).result()
        )

    def _start(self) -> tuple[Playwright, Program]:
        playwright = sync_playwright().start()
        path = peer("chromium")
        return playwright, playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))

    def _stop(self) -> None:
        self._browser.close()
        self._playwright.stop()


class Browser:
    """The window that a test looks at."""

    def __init__(self, chromium: Chromium, base: str) -> None:
        self.base = base
        self.complaints: list[str] = []
        self.forgiven: tuple[str, ...] = ()
        self._chromium = chromium
        self._page: Page | None = None

    async def do(self, step: Callable[[Page], T]) -> T:
        """Have a step done on the page."""
        assert self._page is not None
        page = self._page
        return await self._chromium.call(lambda _: step(page))

    async def open(self, hash_: str = "", **context: object) -> None:
        """Open the page in a window of its own, in place of the one before."""
        await self.close()
        self._page = await self._chromium.call(
            lambda browser: self._open(browser, f"{self.base}/{hash_}", context)
        )

    async def close(self) -> None:
        if self._page is not None:
            with trio.CancelScope(shield=True):
                await self.do(lambda page: page.context.close())

    async def text(self, selector: str) -> str:
        return await self.do(lambda page: page.locator(selector).inner_text())

    async def wait(self, script: str) -> None:
        """Wait until a JavaScript expression is true.

        It is asked for again and again: Playwright's own waiting evaluates text inside the page,
        which the page forbids.
        """
        await until(lambda: self.do(lambda page: page.evaluate(script)), script)

    async def rows(self) -> list[dict[str, str]]:
        """The rows that are there as elements: each cell by its column's title."""
        return await self.do(lambda page: page.evaluate(ROWS))

    def unforgiven(self) -> list[str]:
        return [each for each in self.complaints if not any(part in each for part in self.forgiven)]

    def _open(self, browser: Program, url: str, context: dict[str, object]) -> Page:
        page = browser.new_context(**context).new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", lambda request: self._requested(request.url))
        page.goto(url)
        return page

    def _requested(self, url: str) -> None:
        if not url.startswith(self.base):
            self.complaints.append(f"asked another server: {url}")


ROWS: Final = """() => [...document.querySelectorAll("main tbody tr:not(.space)")].map((row) =>
  Object.fromEntries([...row.cells].map((cell) => [cell.dataset.column, cell.textContent])))"""


@asynccontextmanager
async def browser_at(chromium: Chromium, base: str) -> AsyncIterator[Browser]:
    """A window for one server; at the end it must have had nothing to complain of."""
    browser = Browser(chromium, base)
    try:
        yield browser
    finally:
        await browser.close()
    assert browser.unforgiven() == []
