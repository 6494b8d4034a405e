"""One stream for all tabs: ten pages of one browser, the one that leads is closed, crashes, or loses its connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page
from support.client import Client
from support.server import Launcher
from support.tokens import SECRET, token
from support.waiting import eventually

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

TABS = 10
FOLLOW = """async (options) => {
  const { listen } = await import('/sse-pg.js')
  const { acrossTabs } = await import('/static/sse-pg-tabs.js')
  window.got = []
  window.gaps = []
  window.lost = []
  await new Promise((resolve) => {
    const all = {
      channels: ['a'], fetch: acrossTabs, ...options, onOpen: resolve, onGap: (gap) => window.gaps.push(gap),
      onLost: ({ error }) => window.lost.push(error.message),
      onEnd: (error) => { window.ended = error.status; resolve() }
    }
    window.stream = listen('/api/events/stream', all, ({ number }) => { window.got.push(number) })
  })
}"""
LEADS = """() => {
  const own = crypto.randomUUID()
  return navigator.locks.request(own, async () => {
    const { held } = await navigator.locks.query()
    const { clientId } = held.find(({ name }) => name === own)
    return held.some((lock) => lock.name.startsWith('sse-pg ') && lock.clientId === clientId)
  })
}"""


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser, launch: Launcher) -> AsyncIterator[BrowserContext]:
    assert launch  # so that the tabs end before the servers
    made = await browser.new_context()
    made.set_default_timeout(20000)
    yield made
    await made.close()


async def tab(context: BrowserContext, url: str, **options: Any) -> Page:
    """Open a tab that follows channel a, and wait until its stream is open."""
    page = await context.new_page()
    await page.goto(f"{url}/docs")
    await page.evaluate(FOLLOW, options)
    return page


async def leader(tabs: list[Page]) -> Page:
    """Wait until one of the tabs leads."""
    while True:
        for page in tabs:
            if await page.evaluate(LEADS):
                return page


async def crash(page: Page) -> None:
    """Kill the process of a tab."""
    session = await page.context.new_cdp_session(page)
    with contextlib.suppress(Exception):  # there is nobody left who could answer
        await asyncio.wait_for(session.send("Page.crash"), 1)
    await page.close()


class Publisher:
    """Publishes all the time: most events in order, some late."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.numbers: list[int] = []

    async def __aenter__(self) -> Publisher:
        self._tasks = [asyncio.create_task(self._publish(pause)) for pause in (0.002, 0.01, 0.1)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> None:
        """Wait until so many more are committed."""
        target = len(self.numbers) + count
        await eventually(lambda: len(self.numbers) >= target)

    async def _publish(self, pause: float) -> None:
        async with await psycopg.AsyncConnection.connect(self._url) as conn:
            while not self._stopping:
                row = await (await conn.execute("SELECT sse_pg.publish('a', 't', '1')")).fetchone()
                assert row is not None
                await asyncio.sleep(pause)  # so that others commit in between
                await conn.commit()
                self.numbers.append(row[0])


async def test_ten_tabs_have_one_connection_and_lose_nothing(
    context: BrowserContext, launch: Launcher, database_url: str
) -> None:
    server = await launch(position_refresh=0.3)
    tabs = [await tab(context, server.url) for _ in range(TABS)]
    await eventually(lambda: len(server.bus.hub.streams) == 1)
    async with Publisher(database_url) as publisher:
        await publisher.more(50)
        for end in (crash, Page.close, crash, Page.close):
            page = await leader(tabs)
            tabs.remove(page)
            await end(page)
            await publisher.more(50)
        for page in tabs:  # they have noticed nothing
            assert await page.evaluate("window.lost") == []
        await eventually(lambda: len(server.bus.hub.streams) == 1)
        for stream in server.bus.hub.streams:  # that of the leader
            stream.transport.abort()
        await publisher.more(50)
        late = await tab(context, server.url, **{"from": "0"})
        await publisher.more(50)
    expected = sorted(publisher.numbers)
    for page in [*tabs, late]:
        await page.wait_for_function("(count) => window.got.length >= count", arg=len(expected))
        assert sorted(await page.evaluate("window.got")) == expected
        assert await page.evaluate("window.gaps") == []
    assert sum([len(await page.evaluate("window.lost")) for page in tabs]) == 1
    await eventually(lambda: len(server.bus.hub.streams) == 1)


async def test_more_tabs_than_http_1_has_connections(context: BrowserContext, launch: Launcher) -> None:
    server = await launch()
    tabs = [await tab(context, server.url) for _ in range(8)]
    async with Client(server.url) as client:
        number = await client.publish("a", 1)
    for page in tabs:
        await page.wait_for_function("() => window.got.length === 1")
        assert await page.evaluate("[window.got, window.lost]") == [[number], []]
        assert await page.evaluate("fetch('/healthz').then(({ status }) => status)") == 200
    assert len(server.bus.hub.streams) == 1


async def test_each_tab_begins_with_the_last_events(context: BrowserContext, launch: Launcher) -> None:
    server = await launch(position_refresh=0.3)
    async with Client(server.url) as client:
        numbers = [await client.publish("a", n) for n in range(3)]
        tabs = []
        for _ in range(3):
            tabs.append(await tab(context, server.url, latest=2))
            await tabs[-1].wait_for_function("() => window.got.length === 2")
        await eventually(lambda: len(server.bus.hub.streams) == 1)
        numbers.append(await client.publish("a", 4))
    for page in tabs:
        await page.wait_for_function("() => window.got.length === 3")
        assert await page.evaluate("[window.got, window.lost]") == [numbers[1:], []]


async def test_a_tab_that_is_refused_follows_one_that_is_not(context: BrowserContext, launch: Launcher) -> None:
    """It hears of the refusal when it has to read by itself."""
    server = await launch(token_secret=SECRET)
    good = await tab(context, server.url, token=token(subscribe=["*"]))
    bad = await tab(context, server.url, token="bad")
    assert len(server.bus.hub.streams) == 1
    await good.close()
    await bad.wait_for_function("() => window.ended === 401")


async def test_every_tab_hears_what_is_denied(context: BrowserContext, launch: Launcher) -> None:
    """Those that follow, too, and then get the same events."""
    server = await launch()
    async with Client(server.url) as client:
        await client.post("/api/events/channels/subscribe", {"userId": "7", "channel": "a"})
        tabs = []
        for _ in range(3):
            page = await context.new_page()
            await page.goto(f"{server.url}/docs")
            await page.evaluate("() => { window.denied = [] }")
            await page.evaluate(
                FOLLOW.replace("onOpen:", "onDenied: (names) => window.denied.push(names), onOpen:"),
                {"channels": ["a", "b"], "userId": 7},
            )
            tabs.append(page)
        assert len(server.bus.hub.streams) == 1
        number = await client.publish("a", 1)
        for page in tabs:
            await page.wait_for_function("() => window.got.length === 1")
            assert await page.evaluate("[window.got, window.denied, window.lost]") == [[number], [["b"]], []]


async def test_a_leader_that_does_not_respond_holds_nobody_up(context: BrowserContext, launch: Launcher) -> None:
    server = await launch()
    first = await context.new_page()
    await first.goto(f"{server.url}/docs")
    name = f"sse-pg {server.url}/api/events/stream?channels=a"
    await first.evaluate("(name) => { navigator.locks.request(name, () => new Promise(() => {})) }", name)
    page = await tab(context, server.url)
    async with Client(server.url) as client:
        number = await client.publish("a", 1)
    await page.wait_for_function("() => window.got.length === 1")
    assert await page.evaluate("window.got") == [number]
