"""Events of many bytes: reads, pages and what waits for a client are bounded by bytes, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import random

import psycopg
import pytest
from support.client import SMALL_BUFFER, Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg.core import frontier as frontier_module
from sse_pg.core.cursor import Cursor
from sse_pg.core.event import Event
from sse_pg.core.frontier import Frontier
from sse_pg.core.ranges import NONE, Ranges
from sse_pg.db import tail_session
from sse_pg.db.connection import connect_listener
from sse_pg.db.pool import make_pool
from sse_pg.db.store import Store
from sse_pg.delivery.end_reason import EndReason

#: Each event carries its number and is as long in print as it is told; a repeated letter takes few bytes in the table.
INSERT = """
    INSERT INTO sse_pg.events (channel, payload)
    SELECT 'a', jsonb_build_object('n', n, 'text', repeat('x', size)) FROM unnest(%s::int[]) WITH ORDINALITY s(size, n)
"""


def numbers(events: list[Event]) -> list[int]:
    return [event.id for event in events]


def size(events: list[Event]) -> int:
    return sum(event.chars for event in events)


@pytest.mark.oldest
async def test_a_read_of_the_tail_ends_by_bytes(
    database_url: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a prefix, with at least one event, and says whether there is more."""
    monkeypatch.setattr(tail_session, "READ_BYTES", 10_000)
    chance = random.Random(14)
    sizes = [chance.choice([1, 100, 3_000, 9_000, 40_000]) for _ in range(60)]
    with db.transaction():
        db.execute(INSERT, (sizes,))
    conn = await connect_listener(database_url)
    try:
        for open_ids, read_to in ((NONE, 0), (Ranges([(1, 5), (9, 30)]), 30), (Ranges([(1, 60)]), 60)):
            missing, seen = open_ids, read_to
            wanted = [n for n in range(1, 61) if n in missing or n > seen]
            found: list[int] = []
            while True:
                read = await tail_session.events(conn, seen, missing, 20, asks=chance.random() < 0.5)
                assert read.fault is None
                assert size(read.events[:-1]) < 10_000, "it ends with the event that reaches the limit"
                assert len(read.events) <= 20
                found += numbers(read.events)
                for number in numbers(read.events):
                    missing, seen = missing.without(number), max(seen, number)
                if not read.more:
                    break
                assert size(read.events) >= 10_000 or len(read.events) == 20
            assert found == wanted
        read = await tail_session.events(conn, 60, NONE, 20, asks=True)
        assert (read.events, read.more) == ([], False)
        assert read.publishers is not None
        assert read.publishers.last == 60
    finally:
        await conn.close()


async def test_a_read_that_is_full_to_the_byte_has_no_more(
    database_url: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.execute(INSERT, ([100, 100],))
    conn = await connect_listener(database_url)
    try:
        length = size((await tail_session.events(conn, 0, NONE, 20)).events)
        monkeypatch.setattr(tail_session, "READ_BYTES", length)
        read = await tail_session.events(conn, 0, NONE, 20)
        assert (numbers(read.events), read.more) == ([1, 2], False)
        monkeypatch.setattr(tail_session, "READ_BYTES", length - 1)
        assert not (await tail_session.events(conn, 0, NONE, 20)).more
        db.execute(INSERT, ([1],))
        read = await tail_session.events(conn, 0, NONE, 20)
        assert (numbers(read.events), read.more) == ([1, 2], True)
    finally:
        await conn.close()


@pytest.mark.oldest
async def test_one_transaction_of_many_bytes(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that read get all of it, in order; one that does not is cut."""
    monkeypatch.setattr("sse_pg.delivery.stream.STALL_TIMEOUT_S", 5.0)
    monkeypatch.setattr(tail_session, "READ_BYTES", 100_000)
    server = await launch(stream_buffer=65_536, ring_bytes=500_000)
    delivered: list[int] = []
    deliver = server.bus.hub.deliver

    def noted(released: list[tuple[Event, Cursor]], position: Cursor) -> None:
        delivered.append(size([event for event, _ in released]))
        deliver(released, position)

    monkeypatch.setattr(server.bus.hub, "deliver", noted)
    async with (
        Client(server.url) as client,
        client.stream("a") as one,
        client.stream("a") as two,
        Client(server.url, receive_buffer=SMALL_BUFFER) as deaf,
        deaf.stream("a"),
    ):
        with db.transaction():
            db.execute(INSERT, ([30_000] * 400,))
        for blocks in await asyncio.gather(one.events(400), two.events(400)):
            assert [block.json()["n"] for block in blocks] == [*range(1, 401)]
        await eventually(lambda: server.bus.hub.closed[EndReason.SLOW] == 1)
    assert max(delivered) < 100_000 + 40_000


async def test_replays_and_history_end_by_bytes(launch: Launcher, db: psycopg.Connection) -> None:
    """A page has one event of this size; what a client is shown is whole and in order."""
    server = await launch(stream_buffer=65_536)
    db.execute(INSERT, ([20_000] * 50,))
    async with Client(server.url) as client:
        streams = [client.stream("a", last_event_id="0") for _ in range(3)]
        async with streams[0] as one, streams[1] as two, streams[2] as three:
            for stream in (one, two, three):
                assert [block.json()["n"] for block in await stream.events(50)] == [*range(1, 51)]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_of_the_history_end_by_bytes(database_url: str, db: psycopg.Connection, order: str) -> None:
    chance = random.Random(order)
    db.execute("SELECT sse_pg.make_partitions(3, 40)")
    db.execute(INSERT, ([chance.choice([1, 500, 5_000, 20_000]) for _ in range(100)],))
    expected = [*range(1, 101)] if order == "asc" else [*range(100, 0, -1)]
    pool = make_pool(database_url, 1, 5)
    await pool.open()
    try:
        found: list[int] = []
        wanted = Ranges([(1, 100)])
        while True:
            page = await Store(pool).page(["a"], wanted, 30, max_bytes=10_000, descending=order == "desc")
            assert size(page.events[:-1]) < 10_000
            found += numbers(page.events)
            if not page.full:
                break
            assert page.events
            last = page.events[-1].id
            wanted = wanted.above(last) if order == "asc" else wanted.up_to(last - 1)
        assert found == expected
    finally:
        await pool.close()


async def test_a_page_of_the_history_says_that_there_is_more(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store.page, "__kwdefaults__", {**Store.page.__kwdefaults__, "max_bytes": 50_000})
    monkeypatch.setattr(Store.step, "__kwdefaults__", {**Store.step.__kwdefaults__, "max_bytes": 50_000})
    server = await launch()
    db.execute(INSERT, ([20_000] * 10,))
    async with Client(server.url) as client:
        status, body = await client.get("/api/events/history?channel=a&limit=1000")
        assert (status, len(body["events"]), body["nextCursor"], body["hasMore"]) == (200, 3, "3", True)
        status, body = await client.get("/api/events/history?channel=a&limit=1000&after=8")
        assert (status, len(body["events"]), body["nextCursor"], body["hasMore"]) == (200, 2, "10", False)
        status, body = await client.get("/api/events/history?channel=a&limit=1000&order=desc")
        assert (status, len(body["events"]), body["nextCursor"], body["hasMore"]) == (200, 3, "8", True)


def test_events_of_many_bytes_are_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gap goes into their cursors, as if the wait were over."""
    monkeypatch.setattr(frontier_module, "MAX_HELD_CHARS", 100)
    frontier = Frontier(Cursor(0), 1.0)
    frontier.feed([Event(2, "a", "m", "1" * 60, 0)], 0.0)
    assert frontier.release(0.0) == []
    frontier.feed([Event(3, "a", "m", "1" * 60, 0)], 0.1)
    assert [(event.id, cursor.text) for event, cursor in frontier.release(0.1)] == [(2, "2~1"), (3, "3~2")]
    frontier.feed([Event(5, "a", "m", "1" * 60, 0)], 0.2)
    assert frontier.release(0.2) == [], "a later gap is waited for again"
    frontier.feed([Event(1, "a", "m", "1", 0), Event(4, "a", "m", "1", 0)], 0.3)
    assert [event.id for event, _ in frontier.release(0.3)] == [1, 4, 5]
