"""The stage of the end-to-end tests, and one browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import stage
from tests.page.browser import Chromium

__all__ = ["stage"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    browser = Chromium()
    yield browser
    browser.close()
