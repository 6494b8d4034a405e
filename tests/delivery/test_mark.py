"""The mark: one server notes in the database what is settled, soon after it has changed, and only then."""

from __future__ import annotations

from contextlib import ExitStack

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg.db.standby_session import show_standby_is_read
from sse_pg.delivery import listening_tail, tail


def publish(db: psycopg.Connection, payload: int) -> int:
    ((number,),) = db.execute("SELECT sse_pg.publish('a', 'message', to_jsonb(%s))", (payload,)).fetchall()
    return int(number)


def mark(db: psycopg.Connection) -> tuple[int, list[int], list[int]]:
    row = db.execute("SELECT settled_to, open_first, open_last FROM sse_pg.log").fetchone()
    assert row is not None
    return row


def version(db: psycopg.Connection) -> str:
    """Return which version of its row the mark is."""
    ((found,),) = db.execute("SELECT ctid::text || xmin::text FROM sse_pg.log").fetchall()
    return str(found)


@pytest.mark.oldest
async def test_the_mark_follows_what_is_settled(launch: Launcher, db: psycopg.Connection, database_url: str) -> None:
    await launch(order_wait=0.005)
    publish(db, 1)
    await eventually(lambda: mark(db) == (1, [], []))
    with psycopg.connect(database_url) as one, psycopg.connect(database_url) as two:
        assert [publish(one, 2), publish(two, 3), publish(db, 4)] == [2, 3, 4]
        await eventually(lambda: mark(db) == (4, [2], [3]))
        one.commit()  # an open id that comes changes the mark, which stays at the same id
        await eventually(lambda: mark(db) == (4, [3], [3]))
        two.rollback()
        await eventually(lambda: mark(db) == (4, [], []))


async def test_an_idle_bus_writes_no_mark(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(safety_read=0.01)
    async with Client(server.url) as client, client.stream("a") as stream:
        publish(db, 1)
        await stream.event()
        await eventually(lambda: mark(db) == (1, [], []))
        before = version(db)
        looks = server.bus.tail.meter.safety_reads[False]
        await eventually(lambda: server.bus.tail.meter.safety_reads[False] > looks + 10)
        assert version(db) == before


async def test_one_server_notes_it_and_another_takes_over(launch: Launcher, db: psycopg.Connection) -> None:
    def elected() -> int:
        ((count,),) = db.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 3 AND granted"
            " AND classid = sse_pg.lock_class('tail') AND database = (SELECT oid FROM pg_database"
            " WHERE datname = current_database())"
        ).fetchall()
        return int(count)

    one, _two = await launch(safety_read=0.01), await launch(safety_read=0.01)
    assert elected() == 1
    publish(db, 1)
    await eventually(lambda: mark(db) == (1, [], []))
    await one.stop()
    publish(db, 2)
    await eventually(lambda: mark(db) == (2, [], []))
    assert elected() == 1


async def test_the_mark_waits_for_nobody(
    launch: Launcher, db: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the row: events are delivered all the same, and the mark comes later."""
    monkeypatch.setattr(listening_tail, "MARK_RETRY_S", 0.05)
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        with psycopg.connect(database_url) as other:
            other.execute("SELECT FROM sse_pg.log FOR UPDATE")
            connections = server.bus.tail.meter.connections
            for payload in range(20):
                publish(db, payload)
                assert (await stream.event()).json() == payload
            assert mark(db) == (0, [], [])
        await eventually(lambda: mark(db) == (20, [], []))
        assert server.bus.tail.meter.connections == connections


async def test_a_mark_holds_a_limited_number_of_ranges(
    launch: Launcher, db: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "MAX_NOTED_RANGES", 2)
    await launch(order_wait=0.005)
    with ExitStack() as stack:
        for number in range(3):  # 1, 3 and 5 stay open
            publish(stack.enter_context(psycopg.connect(database_url)), number)
            publish(db, number)
        await eventually(lambda: mark(db) == (4, [1, 3], [1, 3]))
    await eventually(lambda: mark(db) == (6, [], []))


async def test_old_versions_of_the_row_make_it_rarer(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening_tail, "MAX_LOG_BYTES", 0)
    server = await launch(safety_read=0.01)
    tail_of = server.bus.tail
    async with Client(server.url) as client, client.stream("a"):
        await eventually(lambda: tail_of._mark_interval_s == listening_tail.SLOW_MARK_INTERVAL_S)
        monkeypatch.setattr(listening_tail, "MAX_LOG_BYTES", 1_048_576)
        await eventually(lambda: tail_of._mark_interval_s == listening_tail.MARK_INTERVAL_S)


async def test_it_is_more_frequent_while_a_standby_is_read(
    launch: Launcher, db: psycopg.Connection, database_url: str
) -> None:
    server = await launch(safety_read=0.01)
    tail_of = server.bus.tail
    async with Client(server.url) as client, client.stream("a"):
        await eventually(lambda: tail_of.meter.safety_reads[False] > 0)
        assert tail_of._mark_interval_s == listening_tail.MARK_INTERVAL_S
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as link:
            await show_standby_is_read(link)
            await eventually(lambda: tail_of._mark_interval_s == listening_tail.STANDBY_MARK_INTERVAL_S)
        await eventually(lambda: tail_of._mark_interval_s == listening_tail.MARK_INTERVAL_S)
