"""What the access rule allows a user, as operators ask it."""

from __future__ import annotations

from urllib.parse import quote

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.tokens import SECRET, bearer, token

RIGHTS = "/api/events/rights"
RULE = """
    CREATE OR REPLACE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean
    LANGUAGE sql STABLE AS $$ SELECT {} $$
"""


async def test_the_rule_is_asked_about_each_channel(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute(RULE.format("channel = 'news' AND action = 'subscribe' OR channel = 'order:' || user_id"))
    server = await launch(authorize_cache=60)
    async with Client(server.url) as client:
        asked = "channels=news,order:42,order:43"
        expected = {"userId": "42", "subscribe": ["news", "order:42"], "publish": ["order:42"]}
        assert await client.get(f"{RIGHTS}?userId=42&{asked}") == (200, expected)
        expected = {"userId": "43", "subscribe": ["news", "order:43"], "publish": ["order:43"]}
        assert await client.get(f"{RIGHTS}?userId=43&{asked}") == (200, expected)


async def test_the_rule_as_shipped_allows_everything(client: Client) -> None:
    odd = "a/ö?&"
    expected = {"userId": "42", "subscribe": ["b", odd], "publish": ["b", odd]}
    assert await client.get(f"{RIGHTS}?userId=42&channels=b,{quote(odd)}") == (200, expected)


async def test_a_rule_that_fails_is_an_error_and_not_a_no(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute(RULE.format("1 / 0 = 1"))
    server = await launch()
    async with Client(server.url) as client:
        assert (await client.get(f"{RIGHTS}?userId=42&channels=a"))[0] == 500


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("", {"userId", "channels"}),
        ("?userId=42", {"channels"}),
        ("?channels=a", {"userId"}),
        ("?userId=42&channels=a&x=1", {"x"}),
        ("?userId=42&channels=a%20b", {"channels"}),
        (f"?userId=42&channels={','.join(f'c{n}' for n in range(1001))}", {"channels"}),
    ],
)
async def test_what_is_wrong_is_named(client: Client, query: str, wrong: set[str]) -> None:
    status, body = await client.get(RIGHTS + query)
    assert (status, {each["field"] for each in body["errors"]}) == (422, wrong)


async def test_who_may_ask(launch: Launcher) -> None:
    server = await launch(token_secret=SECRET)
    async with Client(server.url) as client:
        assert (await client.get(f"{RIGHTS}?userId=ada&channels=a"))[0] == 401
    for rights, status in (({}, 403), ({"actFor": ["*"]}, 403), ({"observe": True}, 200)):
        async with Client(server.url, bearer(token("ada", subscribe=["*"], **rights))) as client:  # type: ignore[arg-type]
            assert (await client.get(f"{RIGHTS}?userId=ada&channels=a"))[0] == status, rights
