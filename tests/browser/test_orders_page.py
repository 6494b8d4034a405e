"""The page of docs/frameworks/django.md in a real Chromium: its script shows the orders that come after the page."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from aiohttp import ClientSession
from example_support import EXAMPLES, running
from playwright.async_api import Page, expect
from support import Client

pytestmark = pytest.mark.browser
ORDER = "WITH placed AS (INSERT INTO orders (item) VALUES (%s) RETURNING item) "
ORDER += "SELECT sse_pg.publish('orders', 'PLACED', jsonb_build_object('item', item)) FROM placed"


async def test_the_page_shows_each_order_once(
    page: Page, client: Client, db: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    """Chromium stands for the proxy of the page: what is Django's comes from Django, the rest from the bus."""
    table, _, _ = (EXAMPLES / "trigger.sql").read_text().partition("\n\n")
    db.execute(table.encode())
    django = ("gunicorn", "--bind", "127.0.0.1:0", "django_app:application")
    async with (
        running(tmp_path / "log", *django, DATABASE_URL=database_url) as program,
        ClientSession(program.url) as session,
    ):
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
