"""A row trigger of the user that discards some events: each response is about its own event."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

PUBLISH = "/api/events/publish"


@pytest.fixture
def discarding(db: psycopg.Connection) -> psycopg.Connection:
    """Let a trigger discard the events whose type is ``bad``."""
    db.execute(
        "CREATE FUNCTION public.discard() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.event_type = 'bad' THEN RETURN NULL; END IF; RETURN NEW; END $$"
    )
    db.execute("CREATE TRIGGER discard BEFORE INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION public.discard()")
    return db


def event(payload: Any, event_type: str, key: str | None = None) -> dict[str, Any]:
    return {"channel": "a", "eventType": event_type, "payload": payload} | ({"idempotencyKey": key} if key else {})


async def _sent(lock: psycopg.Connection) -> None:
    """Wait until a statement waits for the lock of the table."""
    blocked = "SELECT FROM pg_locks WHERE NOT granted"
    await eventually(lambda: lock.execute(blocked).fetchall())


async def test_each_of_many_concurrent_responses_is_true(
    launch: Launcher, database_url: str, discarding: psycopg.Connection
) -> None:
    server = await launch()
    requests: list[Any] = []
    for n in range(0, 160, 4):
        requests += [
            event(n, random.choice(["good", "bad"])),
            event(n + 1, random.choice(["good", "bad"]), f"k{n}"),
            [event(n + 2, "good"), event(n + 3, random.choice(["good", "bad"]))],
        ]
    async with Client(server.url) as client:
        with psycopg.connect(database_url) as lock:
            lock.execute("LOCK TABLE sse_pg.events IN SHARE MODE")
            tasks = [asyncio.create_task(client.post(PUBLISH, requests[0]))]
            await _sent(lock)
            tasks += [asyncio.create_task(client.post(PUBLISH, request)) for request in requests[1:]]
            await eventually(lambda: len(server.bus.publisher._plain.waiting) > 40)
            lock.rollback()
        responses = await asyncio.gather(*tasks)
    stored = dict(discarding.execute("SELECT id, payload::int FROM sse_pg.events").fetchall())
    expected = 0
    for request, (status, body) in zip(requests, responses, strict=True):
        drafts = request if isinstance(request, list) else [request]
        if status == 503:  # a request with a key does not wait for the lock of the table
            assert "idempotencyKey" in drafts[0]
        elif any(draft["eventType"] == "bad" for draft in drafts):
            assert (status, "discarded" in body["detail"]) == (422, True), body
        else:
            assert status == 201, body
            answers = body["events"] if isinstance(request, list) else [body]
            assert [stored[answer["id"]] for answer in answers] == [draft["payload"] for draft in drafts]
            expected += len(drafts)
    assert len(stored) == expected


async def test_the_event_of_a_batch_that_is_discarded_is_named(
    launch: Launcher, discarding: psycopg.Connection
) -> None:
    server = await launch()
    async with Client(server.url) as client:
        batch = [event(n, "bad" if n == 5 else "good") for n in range(9)]
        status, body = await client.post(PUBLISH, batch)
        assert (status, body["errors"][0]["field"]) == (422, "events[5].payload")
        status, body = await client.post(PUBLISH, event(1, "bad", "key"))
        assert status == 422
        status, body = await client.post(PUBLISH, event(1, "good", "key"))
        assert status == 201, "the key of an event that was not stored is free"
    assert discarding.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (1,)


def test_the_functions_say_so(discarding: psycopg.Connection) -> None:
    assert discarding.execute("SELECT sse_pg.publish('a', 'bad', '1')").fetchone() == (None,)
    for keys in (None, ["x", "y"]):
        with pytest.raises(psycopg.Error, match="discarded") as caught:
            discarding.execute("SELECT sse_pg.publish_many(%s, %s, %s, %s)", [["a"] * 2, ["t", "bad"], ["1"] * 2, keys])
        assert caught.value.sqlstate == "SP422"
    assert discarding.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (0,)


async def test_an_error_in_a_trigger_concerns_only_the_event_that_causes_it(
    launch: Launcher, database_url: str, db: psycopg.Connection
) -> None:
    db.execute(
        "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.event_type = 'refused' THEN RAISE EXCEPTION 'the order is closed';"
        " ELSIF NEW.event_type = 'broken' THEN PERFORM * FROM public.no_such_table; END IF; RETURN NEW; END $$"
    )
    db.execute("CREATE TRIGGER fail BEFORE INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION public.fail()")
    server = await launch()
    expected = {"good": 201, "refused": 422, "broken": 500}
    event_types = [list(expected)[n % 3] for n in range(12)]
    async with Client(server.url) as client:
        with psycopg.connect(database_url) as lock:
            lock.execute("LOCK TABLE sse_pg.events IN SHARE MODE")
            tasks = [asyncio.create_task(client.post(PUBLISH, event(0, event_types[0])))]
            await _sent(lock)
            tasks += [asyncio.create_task(client.post(PUBLISH, event(n, event_types[n]))) for n in range(1, 12)]
            await eventually(lambda: server.bus.publisher.waiting == 11)
            lock.rollback()
        responses = await asyncio.gather(*tasks)
    assert [status for status, _ in responses] == [expected[name] for name in event_types]
    assert responses[1][1]["detail"] == "the order is closed"
    stored = db.execute("SELECT payload::int FROM sse_pg.events ORDER BY 1").fetchall()
    assert [n for (n,) in stored] == [n for n, name in enumerate(event_types) if name == "good"]


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_rule_that_replaces_the_insert_is_a_422(
    launch: Launcher, db: psycopg.Connection, key: str | None
) -> None:
    server = await launch()
    db.execute("CREATE RULE discard AS ON INSERT TO sse_pg.events DO INSTEAD NOTHING")
    try:
        async with Client(server.url) as client:
            status, body = await client.post(PUBLISH, event(1, "good", key))
            assert status == 422, body
    finally:
        db.execute("DROP RULE discard ON sse_pg.events")
