"""One Chromium for all tests of this folder, and a page for each that is watched: it makes no noise in its console and
asks no other host.

What is awaited belongs to an event loop, so these tests share a loop, too: each file says so, and the fixtures here.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright
from support.client import Client
from support.server import Launcher

from browser.watch import Watch


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed")
    flags = ["--disable-quic", "--disable-dev-shm-usage", "--no-proxy-server"]
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=program, args=flags, chromium_sandbox=False)
        yield started
        await started.close()


@pytest_asyncio.fixture(loop_scope="session")
async def launch(database_url: str) -> AsyncIterator[Launcher]:
    """Start servers in this process: ``server = await launch(heartbeat=0.2)``."""
    launcher = Launcher(database_url)
    yield launcher
    await launcher.close()


@pytest_asyncio.fixture(loop_scope="session")
async def client(launch: Launcher) -> AsyncIterator[Client]:
    """A client of one server with default settings."""
    server = await launch()
    async with Client(server.url) as made:
        yield made


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest_asyncio.fixture(loop_scope="session")
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
