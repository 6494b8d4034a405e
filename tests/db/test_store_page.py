"""Pages of stored events: read in windows, as if they were one read."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import plans
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg.core.ranges import Ranges
from sse_pg.db import store as store_module
from sse_pg.db.pool import make_pool
from sse_pg.db.queries import query
from sse_pg.db.store import Store

SPANS = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 60)).map(lambda p: (p[0], p[0] + p[1])), max_size=8)


@given(spans=SPANS, descending=st.booleans())
def test_windows_are_the_whole_in_order(spans: list[tuple[int, int]], descending: bool) -> None:
    wanted = Ranges(spans)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "FIRST_WINDOW_IDS", 7)
        patch.setattr(store_module, "WINDOW_GROWTH", 2)
        windows = list(store_module._windows(wanted, descending=descending))
    ids = [number for window in windows for number in _numbers(window, descending)]
    assert ids == list(_numbers(wanted, descending))
    assert windows  # purged_to is read even where nothing is wanted


def _numbers(ranges: Ranges, descending: bool) -> Any:
    ids = [number for first, last in ranges for number in range(first, last + 1)]
    return reversed(ids) if descending else ids


async def test_pages_of_small_windows_are_the_same(
    database_url: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "FIRST_WINDOW_IDS", 13)
    db.execute("SELECT sse_pg.make_partitions(4, 40)")
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload)"
        " SELECT CASE WHEN n % 50 = 0 THEN 'rare' ELSE 'c' || n % 3 END, to_jsonb(n) FROM generate_series(1, 300) n"
    )
    stored = db.execute("SELECT id, channel FROM sse_pg.events ORDER BY id").fetchall()
    chance = random.Random(7)
    pool = make_pool(database_url, 1, 5)
    await pool.open()
    try:
        for _ in range(60):
            channels = chance.choice([["rare"], ["c0"], ["c1", "rare"], ["absent"], ["c0", "c1", "c2", "rare"]])
            edges = sorted(chance.sample(range(0, 320), 4))
            wanted = Ranges([(edges[0], edges[1]), (edges[2], edges[3])])
            limit, descending = chance.choice([1, 5, 50, 500]), chance.random() < 0.5
            page = await Store(pool).page(channels, wanted, limit, descending=descending)
            expected = [number for number, channel in stored if channel in channels and number in wanted]
            if descending:
                expected.reverse()
            assert [event.id for event in page.events] == expected[:limit]
            assert page.full == (len(expected) >= limit)
    finally:
        await pool.close()


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_rare_type_takes_pages_that_look_at_few_events(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Each page ends after some events of other types, with a cursor that goes on."""
    monkeypatch.setattr(store_module, "MAX_EXAMINED_EVENTS", 40)
    db.execute(
        "INSERT INTO sse_pg.events (channel, event_type, payload)"
        " SELECT 'c' || n % 2, CASE WHEN n % 97 = 0 THEN 'rare' ELSE 'm' END, to_jsonb(n)"
        " FROM generate_series(1, 500) n"
    )
    expected = [n for n in range(1, 501) if n % 97 == 0]
    if order == "desc":
        expected.reverse()
    server = await launch()
    found: list[int] = []
    pages, step, cursor = 0, {"asc": "after", "desc": "before"}[order], ""
    async with Client(server.url) as client:
        while True:
            path = f"/api/events/history?channel=c0,c1&eventType=rare&limit=2&order={order}{cursor}"
            status, body = await client.get(path)
            assert status == 200
            pages += 1
            found += [event["payload"] for event in body["events"]]
            if not body["hasMore"]:
                break
            cursor = f"&{step}={body['nextCursor']}"
    assert found == expected
    assert pages >= 500 // 40, "a page looks at 40 events, 20 of each channel"


def test_the_end_of_such_a_page_is_found_from_the_index(db: psycopg.Connection) -> None:
    db.execute(query("plan_once").replace(b"true", b"false"))
    db.execute("INSERT INTO sse_pg.events (channel, payload) SELECT 'c' || n % 2, '1' FROM generate_series(1, 10000) n")
    for name in ("page_reach", "page_reach_desc"):
        assert _read(db, name, ["c0", "c1"]) <= 2 * (50 + 3)


async def test_readers_of_the_log_leave_connections_to_the_others(
    launch: Launcher, database_url: str, db: psycopg.Connection
) -> None:
    server = await launch(pool_size=5)
    async with Client(server.url) as client:
        with psycopg.connect(database_url) as lock:
            lock.execute("LOCK TABLE sse_pg.log IN ACCESS EXCLUSIVE MODE")
            readers = [asyncio.create_task(client.get("/api/events/history?channel=a&order=desc")) for _ in range(12)]
            await eventually(
                lambda: db.execute("SELECT count(*) > 1 FROM pg_locks WHERE NOT granted").fetchone() == (True,)
            )
            assert [await client.publish("a", n) for n in range(5)] == [1, 2, 3, 4, 5]
            assert await server.bus.store.last_id() == 5
            assert not any(reader.done() for reader in readers)
            lock.rollback()
        assert {status for status, _ in await asyncio.gather(*readers)} == {200}


@pytest.mark.parametrize("statistics", ["none", "of an empty log", "of this log"])
def test_a_page_reads_no_more_than_it_needs(db: psycopg.Connection, statistics: str) -> None:
    """The plan that is kept is good for common channels and for rare ones, whatever statistics there are."""
    db.execute("SELECT sse_pg.make_partitions(2, 20000)")
    if statistics == "of an empty log":
        db.execute("ANALYZE sse_pg.events")
    for name in ("page", "page_desc"):
        _read(db, name, ["c0"])  # made now, and kept
    db.execute("ALTER TABLE sse_pg.events DISABLE TRIGGER USER")
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload)"
        " SELECT CASE WHEN n % 30000 = 7 THEN 'rare' ELSE 'c' || n % 8 END, '1' FROM generate_series(1, 40000) n"
    )
    if statistics == "of this log":
        db.execute("ANALYZE sse_pg.events")
    for name in ("page", "page_desc"):
        assert _read(db, name, [f"c{n}" for n in range(8)]) <= 8 * (50 + 3)
        assert _read(db, name, ["rare", "absent"]) <= 2


def _read(db: psycopg.Connection, name: str, channels: list[str]) -> int:
    """Read a page; return how many rows of the log were looked at."""
    wanted = {"channels": channels, "first": [1], "last": [10**6], "least": 1, "most": 10**6, "limit": 50, "events": 50}
    params = {**wanted, "event_type": None, "octets": 10**6}
    return round(sum(map(_looked_at, plans.scans(db, name, params))))


def _looked_at(node: dict[str, Any]) -> float:
    rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float(rows * node["Actual Loops"])
