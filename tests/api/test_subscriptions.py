"""Subscribe, unsubscribe, list."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import psycopg
import pytest
from support.client import Client
from support.server import Launcher

SUBSCRIBE = "/api/events/channels/subscribe"
UNSUBSCRIBE = "/api/events/channels/unsubscribe"
LIST = "/api/events/channels"
both = pytest.mark.parametrize("path", [SUBSCRIBE, UNSUBSCRIBE])


async def listed(client: Client, user: str) -> list[str]:
    status, body = await client.get(LIST, params={"userId": user})
    assert status == 200
    assert body["userId"] == user
    assert [entry["channel"] for entry in body["subscriptions"]] == body["channels"]
    return body["channels"]


def named(problem: dict[str, Any]) -> list[str]:
    return [error["field"] for error in problem["errors"]]


async def test_a_new_subscription_is_201_and_a_known_one_200(kit_client: Client) -> None:
    body = {"userId": "u", "channel": "a"}
    told = {**body, "subscribed": True}
    assert await kit_client.post(SUBSCRIBE, body) == (201, told)
    assert await kit_client.post(SUBSCRIBE, body) == (200, told)
    assert await listed(kit_client, "u") == ["a"]


async def test_unsubscribe_is_200_whether_or_not_there_was_one(kit_client: Client) -> None:
    body = {"userId": "u", "channel": "a"}
    await kit_client.post(SUBSCRIBE, body)
    for _ in range(2):
        assert await kit_client.post(UNSUBSCRIBE, body) == (200, {**body, "subscribed": False})
    assert await listed(kit_client, "u") == []
    assert (await kit_client.post(SUBSCRIBE, body))[0] == 201


async def test_the_list_is_the_user_s_own_and_in_order(client: Client, db: psycopg.Connection) -> None:
    for user, channel in [("u", "c"), ("u", "a"), ("v", "x"), ("u", "b")]:
        await client.post(SUBSCRIBE, {"userId": user, "channel": channel})
    assert await listed(client, "u") == ["a", "b", "c"]
    assert await listed(client, "v") == ["x"]
    assert await listed(client, "nobody") == []
    _, body = await client.get(LIST, params={"userId": "v"})
    row = db.execute(
        "SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        " FROM sse_pg.subscriptions WHERE user_id = 'v'"
    ).fetchone()
    assert row == (body["subscriptions"][0]["createdAt"],)


async def test_sql_and_http_have_the_same_subscriptions(client: Client, db: psycopg.Connection) -> None:
    assert db.execute("SELECT sse_pg.subscribe('7', 'a')").fetchone() == (True,)
    assert await listed(client, "7") == ["a"]
    assert (await client.post(SUBSCRIBE, {"userId": 7, "channel": "a"}))[0] == 200
    await client.post(UNSUBSCRIBE, {"userId": "7", "channel": "a"})
    assert db.execute("SELECT count(*) FROM sse_pg.subscriptions").fetchone() == (0,)


@pytest.mark.parametrize(
    ("given", "kept"), [(7, "7"), ("7", "7"), (-1, "-1"), (0, "0"), (2**64, str(2**64)), (10**254, str(10**254))]
)
async def test_an_integer_stands_for_its_digits(kit_client: Client, given: Any, kept: str) -> None:
    status, body = await kit_client.post(SUBSCRIBE, {"userId": given, "channel": "a"})
    assert (status, body["userId"]) == (201, kept)
    assert await listed(kit_client, kept) == ["a"]


@pytest.mark.parametrize(("user", "channel"), [("é 🐘 ,*&=?#%+", "a/b&c=d?é🐘%+#"), ("u" * 255, "c" * 255)])
async def test_names_come_through_as_they_are(kit_client: Client, user: str, channel: str) -> None:
    status, body = await kit_client.post(SUBSCRIBE, {"userId": user, "channel": channel})
    assert (status, body["userId"], body["channel"]) == (201, user, channel)
    assert await listed(kit_client, user) == [channel]


WRONG: list[tuple[Any, list[str]]] = [
    ({}, ["userId", "channel"]),
    ({"userId": "u"}, ["channel"]),
    ({"channel": "a"}, ["userId"]),
    ({"userId": None, "channel": None}, ["userId", "channel"]),
    ({"userId": True, "channel": "a"}, ["userId"]),
    ({"userId": 1.0, "channel": "a"}, ["userId"]),
    ({"userId": ["u"], "channel": {"a": 1}}, ["userId", "channel"]),
    ({"userId": "", "channel": ""}, ["userId", "channel"]),
    ({"userId": "u" * 256, "channel": "c" * 256}, ["userId", "channel"]),
    ({"userId": 10**255, "channel": "a"}, ["userId"]),
    ({"userId": "u", "channel": "a", "role": "x"}, ["role"]),
    ({"userId": "u", "channel": "a", "user_id": "x"}, ["user_id"]),
    *(({"userId": f"u{c}", "channel": "a"}, ["userId"]) for c in "\0\1\t\n\r\x7f"),
    *(({"userId": "u", "channel": f"a{c}"}, ["channel"]) for c in "\0\1\t\n\r \x7f\u2028,*"),
    ([], [""]),
    ("u", [""]),
    (None, [""]),
]


@both
@pytest.mark.parametrize(("body", "fields"), WRONG)
async def test_a_wrong_field_is_named(
    client: Client, db: psycopg.Connection, path: str, body: Any, fields: list[str]
) -> None:
    status, answer, _ = await client.request(
        "POST", path, data=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert status == 422, answer
    assert named(answer) == fields
    assert db.execute("SELECT count(*) FROM sse_pg.subscriptions").fetchone() == (0,)


@both
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"u",
        b'{"userId": "u", "channel": "a"',
        b'{"userId": "u", "channel": "a"} x',
        b"\xff",
        b'{"userId": "\xff", "channel": "a"}',
        b'{"userId": "\\ud800", "channel": "a"}',
        b'{"userId": "u", "channel": "\\udc00"}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"userId": "u", "channel": ' + b"[" * 100_000,
    ],
    ids=lambda body: ascii(body[:30]),
)
async def test_what_cannot_be_read_gets_400_with_a_reason(kit_client: Client, path: str, body: bytes) -> None:
    status, answer, _ = await kit_client.request(
        "POST", path, data=io.BytesIO(body), headers={"Content-Type": "application/json"}
    )
    assert status == 400, answer
    assert answer["detail"]


@both
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-ndjson", "application/x-www-form-urlencoded"])
async def test_another_content_type(kit_client: Client, path: str, content_type: str) -> None:
    status, _, _ = await kit_client.request(
        "POST", path, data=b'{"userId": "u", "channel": "a"}', headers={"Content-Type": content_type}
    )
    assert status == 415


@both
async def test_a_body_beyond_the_limit(launch: Launcher, path: str) -> None:
    server = await launch(max_body=1024)
    async with Client(server.url) as client:
        status, _ = await client.post(path, {"userId": "u" * 2000, "channel": "a"})
    assert status == 413


async def test_of_duplicate_fields_the_last_stays(kit_client: Client) -> None:
    status, body, _ = await kit_client.request(
        "POST",
        SUBSCRIBE,
        data=b'{"userId": "x", "userId": "u", "channel": "b", "channel": "a"}',
        headers={"Content-Type": "application/json"},
    )
    assert (status, body["userId"], body["channel"]) == (201, "u", "a")


@pytest.mark.parametrize("query", ["", "?userId=", "?userId=%00", "?userId=a%0Ab", "?userId=" + "u" * 256])
async def test_the_list_needs_a_user(kit_client: Client, query: str) -> None:
    status, body = await kit_client.get(LIST + query)
    assert (status, named(body)) == (422, ["userId"])


async def test_many_at_once_are_one_subscription(kit_client: Client) -> None:
    body = {"userId": "u", "channel": "a"}
    answers = await asyncio.gather(*(kit_client.post(SUBSCRIBE, body) for _ in range(30)))
    assert sorted(status for status, _ in answers) == [200] * 29 + [201]
    assert await listed(kit_client, "u") == ["a"]


async def test_without_a_database_503(launch: Launcher) -> None:
    server = await launch(ready=False, database_url="postgresql://127.0.0.1:1/none", pool_timeout=0.2)
    async with Client(server.url) as client:
        for method, path in [("POST", SUBSCRIBE), ("POST", UNSUBSCRIBE), ("GET", LIST + "?userId=u")]:
            sent = {"json": {"userId": "u", "channel": "a"}} if method == "POST" else {}
            status, _, response = await client.request(method, path, **sent)
            assert status == 503
            assert int(response.headers["Retry-After"]) > 0


@pytest.mark.parametrize("user", ["1e309", "1.5", "true", "null", "9" * 5000, "-" + "9" * 255, "[]"])
async def test_a_user_id_that_is_no_integer_is_named(kit_client: Client, user: str) -> None:
    body = '{"channel": "a", "userId": ' + user + "}"
    headers = {"Content-Type": "application/json"}
    status, problem, _ = await kit_client.request("POST", "/api/events/channels/subscribe", data=body, headers=headers)
    assert (status, [error["field"] for error in problem["errors"]]) == (422, ["userId"])


async def test_a_user_with_too_many_subscriptions(client: Client, db: psycopg.Connection) -> None:
    db.execute("INSERT INTO sse_pg.subscriptions SELECT 'u', 'c' || n FROM generate_series(1, 10000) n")
    for channel, expected in (("more", 422), ("c1", 200)):
        status, body = await client.post("/api/events/channels/subscribe", {"userId": "u", "channel": channel})
        assert status == expected
    _, body = await client.post("/api/events/channels/subscribe", {"userId": "u", "channel": "more"})
    assert [error["field"] for error in body["errors"]] == ["userId"]
