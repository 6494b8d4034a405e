"""The page of docs/ends.md in a real Chromium: the answer goes on while the page is reloaded and the server killed."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from playwright.async_api import Page, expect
from support.examples import EXAMPLES
from support.process import Process, free_port

from browser.watch import Watch
from sse_pg.client import Publisher

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]
#: Each part of the answer, as many pieces.
PIECES = 40


async def test_the_answer_is_whole(page: Page, watch: Watch, database_url: str) -> None:
    """First the page is there, then it is reloaded, then the server is killed, then all of that is over."""
    watch.expected = ("net::ERR", "Failed to load resource")
    random = Random(1)
    parts = [["".join(random.choices('ab <b>&"\\é日🙂\n', k=5)) for _ in range(PIECES)] for _ in range(4)]
    port = free_port()

    def serve() -> Process:
        server = Process("serve", "--port", str(port), DATABASE_URL=database_url)
        server.url()
        return server

    server = await asyncio.to_thread(serve)
    try:
        url = f"http://127.0.0.1:{port}"
        await page.route("**/answer?id=7", lambda route: route.fulfill(path=EXAMPLES / "answer.html"))
        await page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        await page.goto(f"{url}/answer?id=7")
        text, state = page.locator("#answer"), page.locator("#state")
        shown = ""

        async def write(bus: Publisher, part: list[str]) -> None:
            nonlocal shown
            for piece in part:
                await bus.publish("answer.7", piece)
                shown += piece

        async def is_shown() -> None:
            await page.wait_for_function("(text) => document.getElementById('answer').textContent === text", arg=shown)

        async with Publisher(url) as bus:
            await write(bus, parts[0])
            await is_shown()
            await page.reload()
            await write(bus, parts[1])
            await is_shown()
            await asyncio.to_thread(server.kill)
            await write(bus, parts[2])
            await expect(state).to_have_text("reconnecting")
            server = await asyncio.to_thread(serve)
            await write(bus, parts[3])
            await bus.finish("answer.7")
            await is_shown()
            await expect(state).to_have_text("complete", timeout=20_000)
        await page.reload()
        await is_shown()
        await expect(state).to_have_text("complete", timeout=20_000)
        assert await text.text_content() == shown
    finally:
        await asyncio.to_thread(server.kill)
