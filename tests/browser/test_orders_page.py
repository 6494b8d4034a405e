"""The page of docs/frameworks/django.md in a real Chromium: its script shows the orders that come after the page."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from aiohttp import ClientSession
from playwright.async_api import Page, expect
from support.client import Client
from support.examples import EXAMPLES, running
from support.pages import Page as Described
from support.process import free_port
from support.proxies import nginx_words, no_files_of_the_machine, started

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]
ORDER = "WITH placed AS (INSERT INTO orders (item) VALUES (%s) RETURNING item) "
ORDER += "SELECT sse_pg.publish('orders', 'PLACED', jsonb_build_object('item', item)) FROM placed"


@pytest_asyncio.fixture(loop_scope="session")
async def django(db: psycopg.Connection, database_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the example, with its table."""
    table, _, _ = (EXAMPLES / "trigger.sql").read_text().partition("\n\n")
    db.execute(table.encode())
    words = ("gunicorn", "--bind", "127.0.0.1:0", "django_app:application")
    async with running(tmp_path / "log", *words, DATABASE_URL=database_url) as program:
        yield program.url


async def test_the_page_shows_each_order_once(page: Page, client: Client, django: str, database_url: str) -> None:
    """Chromium stands for the proxy of the page: what is Django's comes from Django, the rest from the bus."""
    async with ClientSession(django) as session:
        with psycopg.connect(database_url) as late:
            late.execute(ORDER, ["in flight"])  # its id is below that of the lamp; it commits after the page
            async with session.post("/orders/new", json={"item": "<b>lamp</b>"}) as answer:
                assert answer.status == 201
            async with session.get("/orders") as answer:
                html = await answer.text()
            late.commit()
        await page.route("**/orders", lambda route: route.fulfill(body=html, content_type="text/html"))
        await page.route("**/static/orders.js", lambda route: route.fulfill(path=EXAMPLES / "orders.js"))
        await page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        await page.goto(f"{client.url}/orders")
        await expect(page.locator("#orders li")).to_have_text(["<b>lamp</b>", "in flight"])
        async with session.post("/orders/new", json={"item": "book"}) as answer:
            assert answer.status == 201
        await expect(page.locator("#orders li")).to_have_text(["<b>lamp</b>", "in flight", "book"])


@contextlib.asynccontextmanager
async def before_both(home: Path, django: str, bus: str) -> AsyncIterator[str]:
    """Run nginx with the server block of the page; yield its URL."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed; Debian's package is nginx")
    (block,) = [text for kind, text in Described("docs/frameworks/django.md").blocks if kind == "nginx"]
    port = free_port()
    for old, new in {
        "127.0.0.1:8090": f"127.0.0.1:{port}",
        "http://127.0.0.1:8080": bus,
        "http://127.0.0.1:8000": django,
        "/srv/shop": str(home),
    }.items():
        assert old in block
        block = block.replace(old, new)
    (home / "static").mkdir()
    shutil.copy(EXAMPLES / "orders.js", home / "static")
    http = f"{no_files_of_the_machine(home)} types {{ text/javascript js; }} {block}"
    (home / "nginx.conf").write_text(f"events {{ worker_connections 100; }} http {{ {http} }}")
    async with started(home, port, *nginx_words(program, home)):
        yield f"http://127.0.0.1:{port}"


async def test_the_page_behind_the_proxy_of_its_description(
    page: Page, client: Client, django: str, tmp_path: Path
) -> None:
    async with (
        before_both(tmp_path, django, client.url) as url,
        ClientSession(url) as session,
    ):
        await page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        for item, seen in (("lamp", ["lamp"]), ("book", ["lamp", "book"])):
            async with session.post("/orders/new", json={"item": item}) as answer:
                assert answer.status == 201
            if item == "lamp":
                await page.goto(f"{url}/orders")
            await expect(page.locator("#orders li")).to_have_text(seen)
        await page.goto("about:blank")  # the stream ends before nginx does
