"""The header Idempotency-Key of a publish."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from support.client import Client

PUBLISH = "/api/events/publish"
EVENT = {"channel": "a", "payload": 1}


async def send(client: Client, body: Any, *keys: str, content_type: str = "application/json") -> tuple[int, Any]:
    status, answer, _ = await client.request(
        "POST",
        PUBLISH,
        data=json.dumps(body),
        headers=[("Content-Type", content_type), *(("Idempotency-Key", key) for key in keys)],
    )
    return status, answer


def keys(db: psycopg.Connection) -> list[str]:
    return [key for (key,) in db.execute("SELECT key FROM sse_pg.idempotency_keys ORDER BY key").fetchall()]


def count(db: psycopg.Connection) -> int:
    row = db.execute("SELECT count(*) FROM sse_pg.events").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("key", ["order 17", '"quoted"', "ä" * 255])
async def test_it_means_the_same_as_the_field(client: Client, db: psycopg.Connection, key: str) -> None:
    status, first = await send(client, EVENT, key)
    assert status == 201, first
    assert await send(client, EVENT, key) == (201, first)
    assert await send(client, {**EVENT, "idempotencyKey": key}) == (201, first)
    assert await send(client, {**EVENT, "idempotencyKey": key}, key) == (201, first)
    assert await send(client, {**EVENT, "idempotencyKey": None}, key) == (201, first)
    assert (await send(client, {**EVENT, "payload": 2}, key))[0] == 409
    assert (keys(db), count(db)) == ([key], 1)


@pytest.mark.parametrize(
    ("body", "sent", "why"),
    [
        ({**EVENT, "idempotencyKey": "other"}, ["key"], "differs"),
        ([EVENT], ["key"], "of one event"),
        ([EVENT, EVENT], ["key"], "of one event"),
        ({"events": [EVENT, {**EVENT, "idempotencyKey": "key"}]}, ["key"], "of one event"),
        (EVENT, ["key", "key"], "more than once"),
        (EVENT, [""], "1 to 255 characters"),
        (EVENT, ["x" * 256], "1 to 255 characters"),
    ],
)
async def test_what_is_refused(client: Client, db: psycopg.Connection, body: Any, sent: list[str], why: str) -> None:
    status, answer = await send(client, body, *sent)
    assert (status, [error["field"] for error in answer["errors"]]) == (422, ["Idempotency-Key"])
    assert why in answer["detail"]
    assert (keys(db), count(db)) == ([], 0)


async def test_it_is_refused_with_ndjson(client: Client, db: psycopg.Connection) -> None:
    status, answer = await send(client, EVENT, "key", content_type="application/x-ndjson")
    assert (status, answer["errors"][0]["field"]) == (422, "Idempotency-Key")
    assert count(db) == 0
