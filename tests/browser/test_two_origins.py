"""A page of one origin, a bus at another: EventSource with credentials in a real Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import test_utils, web
from playwright.async_api import Browser, Page
from support.client import Client
from support.server import Launcher
from support.tokens import SECRET, token

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

LOG_IN = """async ([bus, token]) => (await fetch(bus + "/api/events/session", {
    method: "POST", credentials: "include", headers: { Authorization: "Bearer " + token } })).status"""
LISTEN = """([bus, path]) => new Promise((resolve) => {
    window.seen = [];
    window.source = new EventSource(bus + path, { withCredentials: true });
    source.addEventListener("PLACED", (event) => seen.push(JSON.parse(event.data)));
    source.addEventListener("sse-pg.hello", () => resolve("open"));
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve("closed"); };
})"""
PUBLISH = """async ([bus]) => {
    try {
        const answer = await fetch(bus + "/api/events/publish", { method: "POST", credentials: "include",
            headers: { "Content-Type": "application/json" }, body: '{"channel": "a", "payload": 1}' });
        return answer.status;
    } catch (error) { return String(error); }
}"""


@pytest_asyncio.fixture(loop_scope="session")
async def elsewhere() -> AsyncIterator[str]:
    """A page of another origin: another port is enough."""

    async def blank(_request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>elsewhere</title>", content_type="text/html")

    app = web.Application()
    app.add_routes([web.get("/", blank)])
    async with test_utils.TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("")).rstrip("/")


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, elsewhere: str) -> AsyncIterator[Page]:
    context = await browser.new_context()
    made = await context.new_page()
    made.set_default_timeout(20000)
    await made.goto(elsewhere + "/")
    yield made
    await context.close()


async def test_a_page_of_an_allowed_origin_logs_in_and_listens(launch: Launcher, page: Page, elsewhere: str) -> None:
    server = await launch(token_secret=SECRET, cors_origins=elsewhere)
    text = token(subscribe=["a"], publish=["a"])
    assert await page.evaluate(LISTEN, [server.url, "/api/events/stream?channels=a"]) == "closed"
    assert await page.evaluate(LOG_IN, [server.url, text]) == 200
    assert await page.evaluate("document.cookie") == ""  # no script reads it
    assert await page.evaluate(LISTEN, [server.url, "/api/events/stream?channels=a"]) == "open"
    async with Client(server.url, {"Authorization": f"Bearer {text}"}) as client:
        await client.publish("a", "first", "PLACED")
        await page.wait_for_function("seen.length === 1")
        # The stream is cut; the browser comes back with cookie and Last-Event-ID by itself.
        for stream in list(server.bus.hub.streams):
            stream.transport.abort()
        await client.publish("a", "second", "PLACED")
        await page.wait_for_function("seen.length === 2")
    assert await page.evaluate("seen") == ["first", "second"]
    assert await page.evaluate(PUBLISH, [server.url]) == 201


async def test_a_page_of_any_other_origin_does_neither(launch: Launcher, page: Page) -> None:
    server = await launch(token_secret=SECRET, cors_origins="https://app.example")
    host = {"name": "sse_pg_token", "value": token(subscribe=["a"], publish=["a"]), "url": server.url}
    await page.context.add_cookies([host])  # type: ignore[list-item]
    assert await page.evaluate(LISTEN, [server.url, "/api/events/stream?channels=a"]) == "closed"
    assert "TypeError" in await page.evaluate(PUBLISH, [server.url])
    async with Client(server.url, {"Authorization": f"Bearer {token(subscribe=['a'])}"}) as client:
        assert (await client.get("/api/events/history?channel=a"))[1]["events"] == []
