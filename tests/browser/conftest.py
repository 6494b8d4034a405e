"""One Chromium a test, watched: it makes no noise in its console and asks no other host."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright
from support import Launcher


@dataclass
class Watch:
    """What a page did that nobody sees."""

    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    expected: tuple[str, ...] = ()
    """Parts of errors that belong to the test: a server that is cut is an error in every console."""

    def attach(self, page: Page) -> None:
        """Watch a page."""

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.errors.append(message.text)

        def asked(request: Request) -> None:
            self.hosts.add(urlsplit(request.url).netloc)

        page.on("console", said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", asked)

    @property
    def unexpected(self) -> list[str]:
        """Errors that do not belong to the test."""
        return [text for text in self.errors if not any(part in text for part in self.expected)]


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
