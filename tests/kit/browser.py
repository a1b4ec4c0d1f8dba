"""A real browser: the Chromium of this machine, driven by Playwright; no browser is downloaded.

``KVGATE_TEST_CHROMIUM`` names one that is not on the path. Where there is none the tests that need
one are skipped and say so, unless ``TESTS_REQUIRE_CHROMIUM`` is set, as ``.ci/run`` does.
"""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",  # Chromium refuses to run as root with one
    "--disable-dev-shm-usage",  # small in containers
)


def chromium() -> str | None:
    """Where the browser is."""
    given = os.environ.get("KVGATE_TEST_CHROMIUM")
    return given or next(filter(None, map(shutil.which, NAMES)), None)


needs_chromium = pytest.mark.skipif(
    chromium() is None and "TESTS_REQUIRE_CHROMIUM" not in os.environ,
    reason="no Chromium on this machine: apt-get install chromium, or set KVGATE_TEST_CHROMIUM",
)


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """The browser, until the block ends."""
    path = chromium()
    assert path is not None, "TESTS_REQUIRE_CHROMIUM is set, and there is no Chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()
