"""POST /api/events/finish."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.tokens import SECRET, bearer, token

FINISH = "/api/events/finish"


async def test_a_channel_is_finished(client: Client, db: psycopg.Connection) -> None:
    async with client.stream("a", until="end") as stream:
        await client.publish("a", 1)
        assert await client.post(FINISH, {"channel": "a"}) == (
            201,
            {"id": 2, "channel": "a", "eventType": "sse-pg.end"},
        )
        assert [event.data for event in await stream.events(2)] == ["1", '{"channel": "a"}']
        await stream.ended()
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (2,)


@pytest.mark.parametrize(
    ("body", "field"),
    [({"channel": "a b"}, "channel"), ({"channel": 1}, "channel"), ({}, "channel"), ([], ""),
     ({"channel": "a", "payload": 1}, "payload")],
)  # fmt: skip
async def test_refused(client: Client, body: Any, field: str) -> None:
    status, problem = await client.post(FINISH, body)
    assert (status, [error["field"] for error in problem["errors"]]) == (422, [field])


async def test_publishing_the_type_is_refused_with_the_reason(client: Client) -> None:
    status, problem = await client.post(
        "/api/events/publish", {"channel": "a", "eventType": "sse-pg.end", "payload": 1}
    )
    assert status == 422
    assert "only sse_pg.finish(channel)" in problem["errors"][0]["detail"]


async def test_a_trigger_that_discards_it(client: Client, db: psycopg.Connection) -> None:
    db.execute(
        "CREATE FUNCTION discard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER discard BEFORE INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION discard()"
    )
    status, problem = await client.post(FINISH, {"channel": "a"})
    assert (status, "discarded" in problem["detail"]) == (422, True)


async def test_it_needs_the_right_to_publish_to_the_channel(launch: Launcher) -> None:
    server = await launch(token_secret=SECRET)
    async with Client(server.url, headers=bearer(token(publish=["a"], subscribe=["b"]))) as client:
        assert (await client.post(FINISH, {"channel": "b"}))[0] == 403
        assert (await client.post(FINISH, {"channel": "a"}))[0] == 201


async def test_the_history_has_the_ends(client: Client) -> None:
    await client.publish("a", 1)
    await client.post(FINISH, {"channel": "a"})
    _, page = await client.get("/api/events/history?channel=a&eventType=sse-pg.end")
    assert [event["payload"] for event in page["events"]] == [{"channel": "a"}]
