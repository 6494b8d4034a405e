"""One Chromium a test, watched: it makes no noise in its console and asks no other host."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, async_playwright
from support.server import Launcher

from browser.watch import Watch


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed")
    flags = ["--disable-quic", "--disable-dev-shm-usage", "--no-proxy-server"]
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=program, args=flags, chromium_sandbox=False)
        yield started
        await started.close()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
async def page(browser: Browser, watch: Watch, launch: Launcher) -> AsyncIterator[Page]:
    # After the launcher, so that the page ends before the servers: what is lost then is no error of the page.
    assert launch
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    made = await context.new_page()
    made.set_default_timeout(20000)
    watch.attach(made)
    yield made
    await context.close()
    assert watch.unexpected == []
    assert len(watch.hosts) <= 1
