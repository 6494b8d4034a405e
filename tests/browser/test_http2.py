"""Plain EventSources over HTTP/2, through nginx: more than HTTP/1.1 has connections, and over a deploy."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg
import pytest
from playwright.async_api import Browser, Route
from support.pages import Page
from support.process import free_port, process
from support.proxies import proxy
from support.server import Launcher
from support.waiting import eventually

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

OPEN = """async (count) => {
  const opened = Array.from({ length: count }, () => new Promise((resolve) => {
    const source = new EventSource('/api/events/stream?channels=a')
    source.addEventListener('sse-pg.hello', () => resolve(source))
  }))
  await Promise.all(opened)
  const answer = await fetch('/healthz')
  return [answer.status, performance.getEntriesByType('navigation')[0].nextHopProtocol]
}"""


#: The scripts of pages that need nothing but a server.
SNIPPETS = [
    text
    for path in ("README.md", "docs/start.md", "docs/clients.md")
    for kind, text in Page(path).blocks
    if kind == "js" and re.search(r"new EventSource\(.\/api|from '/sse-pg.js'", text)
]


def script(text: str) -> Callable[[Route], Awaitable[None]]:
    """Return a handler that answers with a script."""

    async def fulfill(route: Route) -> None:
        await route.fulfill(body=text, content_type="text/javascript")

    return fulfill


async def test_twelve_streams_on_a_page(browser: Browser, launch: Launcher, tmp_path: Path) -> None:
    server = await launch()
    async with proxy("nginx", tmp_path, server.url) as url:
        context = await browser.new_context(ignore_https_errors=True)
        page = await context.new_page()
        await page.goto(f"{url}/docs")
        assert await page.evaluate(OPEN, 12) == [200, "h2"]
        assert len(server.bus.hub.streams) == 12
        await context.close()


async def test_the_snippets_of_the_pages_survive_a_deploy(browser: Browser, database_url: str, tmp_path: Path) -> None:
    assert len(SNIPPETS) == 4
    port = free_port()
    variables = {"PORT": str(port), "SSE_PG_RETRY_MS": "200", "SSE_PG_DRAIN_SECONDS": "1", "DATABASE_URL": database_url}
    said: list[list[str]] = [[] for _ in SNIPPETS]
    html = '<link rel="icon" href="data:,"><script type="module" src="/snippet.js"></script>'
    async with (
        proxy("nginx", tmp_path, f"http://127.0.0.1:{port}") as url,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn,
    ):

        async def publish(item: str) -> None:
            for channel, kind in (("orders", "PLACED"), ("greetings", "HELLO")):
                await conn.execute("SELECT sse_pg.publish(%s, %s, to_jsonb(%s::text))", (channel, kind, item))

        def have(item: str) -> bool:
            return all(any(item in line for line in lines) for lines in said)

        context = await browser.new_context(ignore_https_errors=True)
        with process("serve", **variables) as server:
            await asyncio.to_thread(server.url)
            for text, lines in zip(SNIPPETS, said, strict=True):
                page = await context.new_page()
                page.on("console", lambda message, lines=lines: lines.append(message.text))
                await page.route("**/page", lambda route: route.fulfill(body=html, content_type="text/html"))
                await page.route("**/snippet.js", script(text))
                await page.goto(f"{url}/page")
            for number in range(1, len(SNIPPETS) + 1):
                await asyncio.to_thread(server.line, f'"stream":{number},', err=True)
            await publish("lamp")
            await eventually(lambda: have("lamp"))
            assert await asyncio.to_thread(server.end) == 0
        await publish("book")
        with process("serve", **variables) as server:
            await asyncio.to_thread(server.url)
            await eventually(lambda: have("book"))
        await context.close()
    for lines in said:
        assert [sum(item in line for line in lines) for item in ("lamp", "book")] == [1, 1], lines


SOURCES = 30
PLAIN = """(count) => {
  window.got = Array.from({ length: count }, () => [])
  window.sources = window.got.map((got) => {
    const source = new EventSource('/api/events/stream?channels=a')
    source.addEventListener('sse-pg.hello', () => { source.greeted = true })
    source.onmessage = (event) => got.push(JSON.parse(event.data))
    return source
  })
}"""
ALL_HAVE = """(expected) => {
  const dead = window.sources.filter((source) => source.readyState === EventSource.CLOSED).length
  if (dead) throw new Error(`${dead} of ${window.sources.length} gave up`)
  return window.sources.every((source) => source.greeted) && window.got.every((got) => `${got}` === `${expected}`)
}"""


async def test_plain_event_sources_survive_a_deploy(browser: Browser, database_url: str, tmp_path: Path) -> None:
    """The only server is replaced. Meanwhile nginx has none, and an EventSource gives up after a 502."""
    port = free_port()
    # They come back while the server still drains.
    variables = {"PORT": str(port), "SSE_PG_RETRY_MS": "200", "SSE_PG_DRAIN_SECONDS": "1", "DATABASE_URL": database_url}
    async with (
        proxy("nginx", tmp_path, f"http://127.0.0.1:{port}") as url,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn,
    ):

        async def publish(what: str) -> None:
            await conn.execute("SELECT sse_pg.publish('a', 'message', to_jsonb(%s::text))", (what,))

        context = await browser.new_context(ignore_https_errors=True)
        page = await context.new_page()
        with process("serve", **variables) as server:
            await asyncio.to_thread(server.url)
            await page.goto(f"{url}/docs")
            await page.evaluate(PLAIN, SOURCES)
            await page.wait_for_function(ALL_HAVE, arg=[])
            await publish("before")
            await page.wait_for_function(ALL_HAVE, arg=["before"])
            assert await asyncio.to_thread(server.end) == 0
        await publish("meanwhile")
        with process("serve", **variables) as server:
            await asyncio.to_thread(server.url)
            await page.wait_for_function(ALL_HAVE, arg=["before", "meanwhile"])
            await publish("after")
            await page.wait_for_function(ALL_HAVE, arg=["before", "meanwhile", "after"])
            await context.close()
