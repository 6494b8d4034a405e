"""The way of an event from an INSERT to a client, and back after a disconnect."""

from __future__ import annotations

import psycopg
from support.client import Client
from support.server import Launcher


async def test_http_and_sql_publish_to_one_stream(client: Client, db: psycopg.Connection) -> None:
    async with client.stream("orders") as stream:
        first = await client.publish("orders", {"n": 1}, "PLACED")
        db.execute("INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('orders', 'PAID', '{\"n\": 2}')")
        events = await stream.events(2)
    assert [(e.event, e.json()) for e in events] == [("PLACED", {"n": 1}), ("PAID", {"n": 2})]
    assert [e.id for e in events] == [str(first), str(first + 1)]


async def test_what_was_missed_comes_back_once(client: Client, db: psycopg.Connection) -> None:
    async with client.stream("a") as stream:
        await client.publish("a", 1)
        await stream.event()
        cursor = stream.last_id
    for n in range(2, 30):
        await client.publish("a" if n % 2 else "other", n)
    async with client.stream("a", last_event_id=cursor) as stream:
        assert [e.json() for e in await stream.events(14)] == list(range(3, 30, 2))
        await client.publish("a", "live")
        assert (await stream.event()).json() == "live"


async def test_replay_from_the_table_when_the_ring_is_too_small(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(ring_events=3, replay_page=7)
    async with Client(server.url) as client:
        db.execute("SELECT sse_pg.publish('a', 'message', to_jsonb(n)) FROM generate_series(1, 500) n")
        async with client.stream("a", lastEventId="0") as stream:
            assert [e.json() for e in await stream.events(500)] == list(range(1, 501))
            await client.publish("a", "live")
            assert (await stream.event()).json() == "live"


async def test_an_open_transaction_delays_nobody_and_loses_nothing(client: Client, database_url: str) -> None:
    async with client.stream("a") as stream:
        with psycopg.connect(database_url) as slow:
            slow.execute("SELECT sse_pg.publish('a', 'm', '\"slow\"')")
            await client.publish("a", "fast")
            fast = await stream.event()
            assert fast.json() == "fast"
            assert fast.id is not None
            assert "~" in fast.id
            slow.commit()
        assert (await stream.event()).json() == "slow"
    async with client.stream("a", last_event_id=fast.id) as stream:
        assert (await stream.event()).json() == "slow"
        await client.publish("a", "next")
        assert (await stream.event()).json() == "next"
