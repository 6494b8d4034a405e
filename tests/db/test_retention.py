"""Retention: partitions made ahead, the default one converted, old ones purged; publishers and readers carry on."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from support import plans, process
from support.client import Client
from support.server import Launcher
from support.waiting import TIMEOUT_S, eventually

from sse_pg.config import Settings
from sse_pg.db.maintenance import Maintenance
from sse_pg.db.pool import make_pool
from sse_pg.db.queries import query

FILL = "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g) FROM generate_series(1, %s) g"
MANY = 1000
"""Calls after which a piece of maintenance that found no moment would never find one."""


def fill(db: psycopg.Connection, count: int) -> None:
    db.execute(FILL, (count,))


def value(db: psycopg.Connection, statement: str, *params: object) -> Any:
    row = db.execute(statement, params or None).fetchone()
    assert row is not None
    return row[0]


def make(db: psycopg.Connection, ahead: int = 2, size: int = 100) -> int:
    """Make all the partitions that are missing; return how many those were."""
    made = 0
    for _ in range(MANY):
        now = value(db, "SELECT sse_pg.make_partitions(%s, %s)", ahead, size)
        if now == 0:
            return made
        if now is None:
            db.execute("SELECT pg_sleep(0.01)")
        made += now or 0
    raise AssertionError("somebody held the table all the time")


def purge(db: psycopg.Connection, keep_events: int | None = 1, keep: str | None = None) -> int:
    """Purge all there is to purge; return up to which id."""
    for _ in range(MANY):
        state, purged_to = purge_once(db, keep_events, keep)
        if state == "done":
            return purged_to
        if state == "busy":
            db.execute("SELECT pg_sleep(0.01)")
    raise AssertionError("somebody held the table all the time")


def purge_once(db: psycopg.Connection, keep_events: int | None = 1, keep: str | None = None) -> tuple[str, int]:
    row = db.execute("SELECT state, purged_to FROM sse_pg.purge(%s, %s)", (keep_events, keep)).fetchone()
    assert row is not None
    return row[0], row[1]


def bounds(db: psycopg.Connection) -> list[tuple[int, int]]:
    return [(row[0], row[1]) for row in db.execute("SELECT first_id, last_id FROM sse_pg.partitions()")]


def ids(db: psycopg.Connection) -> list[int]:
    return [row[0] for row in db.execute("SELECT id FROM sse_pg.events ORDER BY id")]


@contextmanager
def connected(url: str, count: int) -> Iterator[list[psycopg.Connection]]:
    made = [psycopg.connect(url, autocommit=True) for _ in range(count)]
    try:
        yield made
    finally:
        for conn in made:
            conn.close()


# ---------------------------------------------------------------- partitions


def test_partitions_are_made_ahead_of_the_ids(db: psycopg.Connection) -> None:
    assert make(db, ahead=3) == 4
    assert bounds(db) == [(0, 99), (100, 199), (200, 299), (300, 399)]
    assert make(db, ahead=3) == 0
    fill(db, 250)
    assert value(db, "SELECT count(*) FROM sse_pg.events_default") == 0
    assert make(db, ahead=3) == 2
    names = [row[0] for row in db.execute("SELECT part::text FROM sse_pg.partitions()")]
    assert names[2] == "sse_pg.events_p000000000000200"


def test_another_size_holds_from_the_next_partition_on(db: psycopg.Connection) -> None:
    make(db, ahead=0, size=100)
    make(db, ahead=2, size=70)
    assert bounds(db) == [(0, 99), (100, 139), (140, 209)]


def test_the_default_becomes_a_range_without_a_copy(db: psycopg.Connection) -> None:
    fill(db, 250)
    before = value(db, "SELECT pg_relation_filenode('sse_pg.events_default')")
    assert value(db, "SELECT sse_pg.make_partitions(2, 100)") == 1
    assert bounds(db) == [(0, 299)]
    assert value(db, "SELECT pg_relation_filenode('sse_pg.events_p000000000000000')") == before
    make(db, ahead=3)
    fill(db, 250)
    assert ids(db) == list(range(1, 501))
    assert value(db, "SELECT count(*) FROM sse_pg.events_default") == 0
    indexes = "SELECT array_agg(indexname::text ORDER BY indexname) FROM pg_indexes WHERE tablename = %s"
    assert value(db, indexes, "events_default") == ["events_default_channel_id_idx", "events_default_pkey"]


def test_the_default_is_not_read_to_convert_it(db: psycopg.Connection) -> None:
    fill(db, 100)
    notices: list[str] = []
    db.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    db.execute("ALTER FUNCTION sse_pg.make_partitions RESET client_min_messages")
    db.execute("SET client_min_messages = debug1")
    make(db)
    assert 'partition constraint for table "events_default" is implied by existing constraints' in notices


def test_ids_that_outran_the_partitions_are_converted_as_often_as_needed(db: psycopg.Connection) -> None:
    for _ in range(3):
        make(db, ahead=1)
        fill(db, 1234)
    make(db, ahead=1)
    found = bounds(db)
    assert all(upper + 1 == lower for (_, upper), (lower, _) in pairwise(found))
    assert value(db, "SELECT count(*) FROM sse_pg.events_default") == 0
    assert ids(db) == list(range(1, 3 * 1234 + 1))


def test_ids_that_no_sequence_drew_are_named(db: psycopg.Connection) -> None:
    db.execute("INSERT INTO sse_pg.events (id, channel, payload) OVERRIDING SYSTEM VALUE VALUES (1000000, 'a', '1')")
    fill(db, 10)
    with pytest.raises(psycopg.errors.RaiseException, match="events_default holds ids outside of 0 to 99"):
        make(db)
    assert len(ids(db)) == 11


def test_arguments_that_cannot_be(db: psycopg.Connection) -> None:
    for ahead, size in ((-1, 100), (1, 0), (None, 1), (1, None)):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            db.execute("SELECT sse_pg.make_partitions(%s, %s)", (ahead, size))


def test_twenty_makers_at_once(db: psycopg.Connection, database_url: str) -> None:
    fill(db, 50)
    with connected(database_url, 20) as conns, ThreadPoolExecutor(20) as threads:
        made = list(threads.map(lambda conn: make(conn, ahead=9), conns))
    assert sum(made) == 10
    assert bounds(db) == [(n, n + 99) for n in range(0, 1000, 100)]


def test_a_copy_that_runs_meanwhile_does_not_fail(db: psycopg.Connection, database_url: str) -> None:
    make(db, ahead=1)
    with (
        psycopg.connect(database_url, autocommit=True) as conn,
        conn.cursor() as cursor,
        cursor.copy("COPY sse_pg.events (channel, payload) FROM STDIN") as copy,
    ):
        for n in range(50):
            copy.write_row(("a", str(n)))
        assert value(db, "SELECT sse_pg.make_partitions(5, 100)") is None
        for n in range(1000):
            copy.write_row(("a", str(n)))
    assert make(db, ahead=1) > 0
    assert len(ids(db)) == 1050


def test_a_prepared_transaction_is_waited_for(db: psycopg.Connection, database_url: str) -> None:
    make(db, ahead=0)
    with psycopg.connect(database_url) as conn:
        conn.execute("SET sse_pg.bell = 'off'")
        fill(conn, 150)
        conn.execute("PREPARE TRANSACTION 'long'")
        conn.commit()
    try:
        assert value(db, "SELECT sse_pg.make_partitions(1, 100)") is None
        assert purge_once(db)[1] == 0
    finally:
        db.execute("COMMIT PREPARED 'long'")
    assert make(db) > 0
    assert ids(db) == list(range(1, 151))


# ---------------------------------------------------------------- purge


def test_purge_by_count(db: psycopg.Connection) -> None:
    make(db, ahead=9)
    fill(db, 950)
    row = db.execute("SELECT partitions, events, bytes, state FROM sse_pg.purge(300)").fetchone()
    assert row is not None
    assert (row[0], row[1], row[3]) == (6, 599, "done")
    assert row[2] > 0
    assert ids(db) == list(range(600, 951))
    assert value(db, "SELECT purged_to FROM sse_pg.log") == 599
    assert purge(db, 300) == 599
    assert purge(db, 1) == 899
    assert bounds(db)[0] == (900, 999)


def test_without_a_limit_nothing_goes(db: psycopg.Connection) -> None:
    make(db)
    fill(db, 250)
    assert purge(db, None) == 0


def test_purge_by_age_of_the_newest_event(db: psycopg.Connection) -> None:
    make(db, ahead=4)
    aged = (
        "INSERT INTO sse_pg.events (channel, payload, created_at) "
        "SELECT 'a', '1', now() - make_interval(hours => %s) FROM generate_series(1, 100)"
    )
    for hours in (50, 30, 10):
        db.execute(aged, (hours,))
    fill(db, 50)
    assert purge(db, None, "40 hours") == 99  # id 100 is of the same hour, and in the next partition
    assert purge(db, None, "20 hours") == 199
    assert purge(db, 52, "20 hours") == 199
    assert purge(db, 51, "20 hours") == 299


def test_many_partitions_go_a_few_at_a_time(db: psycopg.Connection) -> None:
    make(db, ahead=30, size=10)
    fill(db, 250)
    assert purge_once(db)[0] == "more"
    assert purge(db) == 249
    assert ids(db) == [250]


def test_a_new_epoch_does_not_count_as_events(db: psycopg.Connection) -> None:
    make(db)
    fill(db, 250)
    db.execute("SELECT sse_pg.begin_epoch()")
    make(db)
    fill(db, 250)
    make(db)
    assert purge(db, 1000) == 0
    assert len(ids(db)) == 500
    purge(db, 200)
    assert 200 <= len(ids(db)) < 300


def test_epochs_in_a_row_do_not_count_twice(db: psycopg.Connection) -> None:
    make(db)
    fill(db, 250)
    for _ in range(3):
        db.execute("SELECT sse_pg.begin_epoch()")
    make(db)
    fill(db, 250)
    make(db)
    assert purge(db, 1000) == 0
    purge(db, 200)
    assert 200 <= len(ids(db)) < 300


@pytest.mark.parametrize("ahead", [0, 4], ids=["nothing made ahead", "made ahead"])
def test_a_sequence_that_was_set_ahead_does_not_count_as_events(db: psycopg.Connection, ahead: int) -> None:
    """By hand, without an epoch. What it costs is less than a partition on either side of the jump."""
    make(db)
    fill(db, 250)
    db.execute("SELECT setval('sse_pg.events_id_seq', 100050)")
    if ahead:
        make(db, ahead=ahead)
    fill(db, 250)
    make(db)
    assert purge(db, 700) == 0
    assert len(ids(db)) == 500
    assert purge(db, 200) > 0
    assert len(ids(db)) >= 200


def test_idempotency_keys_are_forgotten_when_they_are_old(db: psycopg.Connection) -> None:
    make(db)
    published = value(db, "SELECT sse_pg.publish('a', 'm', '1', 'young')")
    db.execute("SELECT sse_pg.publish('a', 'm', '1', 'old' || g) FROM generate_series(1, 10001) g")
    db.execute("UPDATE sse_pg.idempotency_keys SET created_at = now() - interval '25 hours' WHERE key <> 'young'")
    forget = "SELECT keys, state FROM sse_pg.purge(keep_keys => '24 hours')"
    assert [db.execute(forget).fetchone() for _ in range(3)] == [(10000, "more"), (1, "done"), (0, "done")]
    make(db)
    assert purge(db) > published
    assert value(db, "SELECT sse_pg.publish('a', 'm', '1', 'young')") == published


def test_maintain_is_one_call(db: psycopg.Connection) -> None:
    fill(db, 250)
    call = "SELECT made, purged_to FROM sse_pg.maintain(keep_events => 10, ahead => 2, size => 100)"
    assert [db.execute(call).fetchone() for _ in range(2)] == [(1, 0), (2, 0)]
    fill(db, 100)
    assert db.execute(call).fetchone() == (1, 299)


def test_nobody_may_call_it_unless_granted(db: psycopg.Connection) -> None:
    callable_by_all = """
        SELECT array_agg(p.proname::text) FROM pg_proc p
         WHERE p.pronamespace = 'sse_pg'::regnamespace
           AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0)"""
    # What a CHECK calls runs with the rights of whoever inserts; whoever looks at pg_locks needs the classes.
    for_all = {"id_limit", "check_channel", "check_event_type", "check_names", "lock_class", "partition_name"}
    for_all |= {"check_key", "check_user", "may_write_end"}
    for_all |= {"payload_fits", "schema_version"}
    for_all |= {"cursor_ids", "cursor_text", "refuse_long_numbers", "refuse_pattern"}
    # The trigger of a published table runs with the rights of the table's owner.
    for_all |= {"can_publish", "change_function", "change_statement", "channel_template", "column_risks"}
    for_all |= {"fill_channel", "row_as_json", "transition_rows", "truncated_change"}
    assert set(value(db, callable_by_all)) == for_all


def test_a_publisher_needs_no_right_on_partitions(db: psycopg.Connection, database_url: str) -> None:
    role = "publisher_of_retention"
    db.execute(f"DROP ROLE IF EXISTS {role}")
    db.execute(f"CREATE ROLE {role}")
    db.execute(f"GRANT USAGE ON SCHEMA sse_pg TO {role}")
    db.execute(f"GRANT INSERT ON sse_pg.events TO {role}")
    try:
        make(db, ahead=1)
        db.execute(f"SET ROLE {role}")
        fill(db, 350)
    finally:
        db.execute("RESET ROLE")
        db.execute(f"DROP OWNED BY {role}")
        db.execute(f"DROP ROLE {role}")
    assert len(ids(db)) == 350


# ---------------------------------------------------------------- publishers in flight


def test_the_range_of_a_publisher_in_flight_stays(db: psycopg.Connection, database_url: str) -> None:
    make(db, ahead=9)
    with psycopg.connect(database_url) as slow:
        fill(db, 150)
        slow_id = value(slow, "SELECT sse_pg.publish('a', 'm', '\"slow\"')")
        fill(db, 700)
        assert slow_id == 151
        state, purged_to = purge_once(db)
        assert (state, purged_to) == ("busy", 99)
        slow.commit()
    assert slow_id in ids(db)
    assert purge(db) == 799


def test_partitions_are_emptied_while_a_publisher_holds_the_table(db: psycopg.Connection, database_url: str) -> None:
    make(db, ahead=9)
    fill(db, 850)
    with psycopg.connect(database_url) as slow:
        slow.execute("SELECT sse_pg.publish('a', 'm', '\"slow\"')")
        row = db.execute("SELECT partitions, events, purged_to, state FROM sse_pg.purge(1)").fetchone()
        assert row == (8, 799, 799, "busy")
        assert ids(db) == list(range(800, 851))
        assert db.execute("SELECT partitions, events, purged_to, state FROM sse_pg.purge(1)").fetchone() == (
            0,
            0,
            799,
            "busy",
        )
        slow.commit()
    assert purge(db) == 799
    assert bounds(db)[0] == (800, 899)
    assert len(ids(db)) == 52


def test_a_reader_of_everything_is_waited_for(db: psycopg.Connection, database_url: str) -> None:
    make(db, ahead=9)
    fill(db, 850)
    with psycopg.connect(database_url) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert value(reader, "SELECT count(*) FROM sse_pg.events") == 850
        assert purge_once(db) == ("busy", 0)
        assert value(reader, "SELECT count(*) FROM sse_pg.events") == 850
    assert purge(db) == 799


@pytest.fixture
async def client(launch: Launcher) -> AsyncIterator[Client]:
    """A client of a server with small partitions that leaves the purge to the test."""
    server = await launch(partition_size=100, maintenance=3600.0)
    async with Client(server.url) as made:
        yield made


async def test_the_late_event_arrives(client: Client, db: psycopg.Connection, database_url: str) -> None:
    make(db, ahead=9)
    async with client.stream("a") as stream:
        with psycopg.connect(database_url) as slow:
            slow.execute("SELECT sse_pg.publish('a', 'm', '\"slow\"')")
            await asyncio.to_thread(fill, db, 850)
            assert [e.json() for e in await stream.events(850)] == list(range(1, 851))
            for _ in range(3):
                await asyncio.to_thread(purge_once, db)
            slow.commit()
        assert (await stream.event()).json() == "slow"


def test_writers_never_notice(db: psycopg.Connection, database_url: str) -> None:
    """Single events, batches, COPY and transactions, while partitions are made, converted and purged all the time."""
    stop = threading.Event()
    counts = [0] * 8
    rounds = 0

    def one(conn: psycopg.Connection, place: int) -> None:
        conn.execute("SELECT sse_pg.publish('a', 'm', '1')")
        counts[place] += 1

    def batch(conn: psycopg.Connection, place: int) -> None:
        fill(conn, 77)
        counts[place] += 77

    def copied(conn: psycopg.Connection, place: int) -> None:
        with conn.cursor() as cursor, cursor.copy("COPY sse_pg.events (channel, payload) FROM STDIN") as copy:
            for n in range(150):
                copy.write_row(("a", str(n)))
        counts[place] += 150

    def together(conn: psycopg.Connection, place: int) -> None:
        with conn.transaction():
            for _ in range(30):
                conn.execute("SELECT sse_pg.publish('a', 'm', '1')")
        counts[place] += 30

    def write(conn: psycopg.Connection, place: int, work: Callable[[psycopg.Connection, int], None]) -> None:
        while not stop.is_set():
            work(conn, place)

    kinds = [one, batch, copied, together] * 2
    with connected(database_url, 8) as conns, ThreadPoolExecutor(8) as threads:
        writing = [threads.submit(write, conns[n], n, kinds[n]) for n in range(8)]
        try:
            while rounds < 60 or value(db, "SELECT purged_to FROM sse_pg.log") == 0:
                db.execute("SELECT sse_pg.make_partitions(2, 100)")
                purge_once(db, 500)
                rounds += 1
                assert rounds < MANY
        finally:
            stop.set()
        for future in writing:
            future.result()
    purged_to = value(db, "SELECT purged_to FROM sse_pg.log")
    assert ids(db) == list(range(purged_to + 1, sum(counts) + 1))


# ---------------------------------------------------------------- readers


async def test_a_cursor_below_the_purged_is_told(launch: Launcher, db: psycopg.Connection) -> None:
    make(db, ahead=9)
    fill(db, 850)
    purge(db)
    server = await launch(partition_size=100, maintenance=3600.0)
    async with Client(server.url) as client:
        async with client.stream("a", last_event_id="700") as stream:
            gap = await stream.event()
            assert gap.event == "sse-pg.gap"
            assert gap.json() == {"reason": "expired", "after": "700", "before": "799"}
            assert [e.id for e in await stream.events(51)] == [str(n) for n in range(800, 851)]
        status, body = await client.get("/api/events/history?channel=a&after=700")
        assert status == 200
        assert body["gap"] == {"reason": "expired", "after": "700", "before": "799"}


async def test_what_a_live_server_has_not_read_stays(client: Client, db: psycopg.Connection) -> None:
    make(db, ahead=9)
    async with client.stream("a") as stream:
        await asyncio.to_thread(fill, db, 850)
        await asyncio.to_thread(purge_once, db)
        assert [e.id for e in await stream.events(850)] == [str(n) for n in range(1, 851)]


async def test_streams_that_replay_miss_nothing_silently(
    launch: Launcher, db: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a server has not shown to have read is not purged: it shows it all the time here.
    monkeypatch.setattr("sse_pg.db.registry.CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr("sse_pg.db.registry.POSITION_INTERVAL_S", 0.0)
    server = await launch(ring_events=3, replay_page=7, partition_size=50, maintenance=3600.0, safety_read=0.02)
    await asyncio.to_thread(make, db, 9, 50)
    await asyncio.to_thread(fill, db, 420)
    last = 420 + 200
    publishing = asyncio.Event()

    async def read(client: Client) -> int:
        """Read from the beginning to the last id; return how many gaps were told."""
        reached = gaps = 0
        async with client.stream("a", lastEventId="0") as stream:
            publishing.set()
            while reached < last:
                block = await stream.event()
                if block.event == "sse-pg.gap":
                    assert block.json()["reason"] == "expired"
                    reached, gaps = int(block.json()["before"]), gaps + 1
                else:
                    assert block.id == str(reached + 1)
                    reached += 1
        return gaps

    async def disturb() -> None:
        await publishing.wait()
        with psycopg.connect(database_url, autocommit=True) as writer:
            for n in range(20):
                await asyncio.to_thread(fill, writer, 10)
                await asyncio.to_thread(purge, db, 420 - 20 * n)

    async with Client(server.url) as client, asyncio.timeout(3 * TIMEOUT_S):
        await asyncio.gather(disturb(), *(read(client) for _ in range(6)))
    assert value(db, "SELECT purged_to FROM sse_pg.log") > 0


# ---------------------------------------------------------------- servers that read


def server_at(conn: psycopg.Connection, read_to: int) -> None:
    """Be a server that has read so far."""
    number = value(
        conn, "INSERT INTO sse_pg.servers (name, pid, version, migration) VALUES ('s', 1, '1', 1) RETURNING id"
    )
    conn.execute(query("server_lock"), [number])
    conn.execute(query("server_update"), [0, 10**6, read_to, number])


def test_the_slowest_server_holds_the_purge_up(db: psycopg.Connection, database_url: str) -> None:
    make(db, ahead=9)
    fill(db, 500)
    with connected(database_url, 2) as (slow, fast):
        server_at(fast, 500)
        server_at(slow, 299)
        db.execute("UPDATE sse_pg.log SET settled_to = 500")
        assert purge_once(db) == ("busy", 299)
        slow.close()
        assert wait_until(db, "SELECT count(*) = 1 FROM sse_pg.live_servers()")
        assert purge(db) == 499


def test_a_server_that_stands_still_is_waited_for_a_minute(db: psycopg.Connection, database_url: str) -> None:
    make(db, ahead=9)
    age = "UPDATE sse_pg.events SET created_at = now() - interval '61 seconds'"
    with connected(database_url, 2) as (still, slow):
        server_at(still, 0)
        db.execute("UPDATE sse_pg.servers SET updated_at = now() - interval '1 hour'")
        fill(db, 500)
        assert purge_once(db) == ("busy", 0), "it had shown nothing for an hour because there was nothing to read"
        db.execute(age)
        assert purge(db) == 499
        fill(db, 500)
        db.execute(age)
        server_at(slow, 500)
        assert purge_once(db) == ("busy", 499), "this one has shown progress within the minute"


# ---------------------------------------------------------------- the server and the command line


async def test_a_server_keeps_the_log_in_shape(
    launch: Launcher, db: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sse_pg.db.maintenance")
    servers = [await launch(maintenance=0.05, partition_size=100, keep_events=200, safety_read=0.05) for _ in range(2)]
    async with Client(servers[0].url) as client:
        for n in range(10):
            # Who outruns the partitions gets a large one, which stays as long as its last event.
            room = f"SELECT max(last_id) > {100 * (n + 1)} FROM sse_pg.partitions()"
            assert await asyncio.to_thread(wait_until, db, room)
            status, _ = await client.post(
                "/api/events/publish",
                {"events": [{"channel": "a", "eventType": "m", "payload": n}] * 100},
            )
            assert status == 201
    await eventually(lambda: "purged" in caplog.text)
    assert await asyncio.to_thread(wait_until, db, "SELECT purged_to >= 599 FROM sse_pg.log")
    assert ids(db)[-200:] == list(range(801, 1001))


def wait_until(db: psycopg.Connection, condition: str) -> bool:
    """Wait for what servers in this process do to the database."""
    for _ in range(2000):
        if value(db, condition):
            return True
        db.execute("SELECT pg_sleep(0.01)")
    return False


async def test_an_error_is_logged_and_the_server_goes_on(
    client: Client, db: psycopg.Connection, caplog: pytest.LogCaptureFixture, launch: Launcher
) -> None:
    db.execute("ALTER FUNCTION sse_pg.make_partitions RENAME TO gone")
    server = await launch(maintenance=0.05)
    await eventually(lambda: caplog.text.count("maintenance failed") >= 2)
    async with Client(server.url) as other:
        assert await other.publish("a", 1) == 1
    db.execute("ALTER FUNCTION sse_pg.gone RENAME TO make_partitions")
    assert await asyncio.to_thread(wait_until, db, "SELECT count(*) > 0 FROM sse_pg.partitions()")


async def test_maintenance_says_what_stands_in_its_way(
    db: psycopg.Connection, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_pg.db.maintenance.BUSY_ROUNDS_BEFORE_WARNING", 2)
    make(db, ahead=9)
    fill(db, 850)
    settings = Settings(database_url=database_url, keep_events=1, partition_size=100, maintenance=0.05)
    with psycopg.connect(database_url) as slow:
        slow.execute("SELECT sse_pg.publish('a', 'm', '1')")
        async with make_pool(database_url, 1, 5.0) as pool:
            task = asyncio.create_task(Maintenance(pool, settings).run())
            try:
                await eventually(lambda: "could not purge everything" in caplog.text)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


def test_the_command_purges_now(db: psycopg.Connection, database_url: str) -> None:
    fill(db, 250)
    make(db)
    fill(db, 250)
    done = process.run("purge", "--keep-events", "100", "--database-url", database_url, SSE_PG_PARTITION_SIZE="100")
    assert done.returncode == 0, done
    assert re.fullmatch(
        r"purged 2 partitions with up to 399 events \(\d+\.\d MiB\), now up to id 399, and 0 idempotency keys\n",
        done.stdout,
    )
    assert ids(db)[0] == 400


#: The command, which gives up at its second attempt here.
SOON = "import sse_pg.cli.main, sse_pg.cli.purge; sse_pg.cli.purge.MAX_ATTEMPTS = 2; sse_pg.cli.main.main()"


def test_the_command_says_who_is_in_the_way(db: psycopg.Connection, database_url: str) -> None:
    make(db, ahead=9)
    fill(db, 250)
    with psycopg.connect(database_url) as slow:
        slow.execute("SELECT sse_pg.publish('a', 'm', '1')")
        done = subprocess.run(
            [sys.executable, "-c", SOON, "purge", "--keep-events", "10", "--database-url", database_url],
            env=process.environment(SSE_PG_PARTITION_SIZE="100"), cwd="/", capture_output=True, text=True,
        )  # fmt: skip
    assert done.stdout.startswith("purged 2 partitions")
    assert "a long transaction uses sse_pg.events" in process.one_line(done)


# ---------------------------------------------------------------- plans


PARTITIONS = 30
SIZE = 3000
CASES: dict[str, tuple[dict[str, Any], int]] = {
    # What is asked for, and how many filled partitions may be touched.
    "tail_read_above": ({"seen": 29 * SIZE + 50, "limit": 2000, "octets": 10**7, "followed": None}, 1),
    "tail_read": (
        {
            "first": [27 * SIZE + 3],
            "last": [27 * SIZE + 9],
            "seen": 29 * SIZE + 50,
            "limit": 2000,
            "octets": 10**7,
            "asks": False,
            "followed": None,
        },
        2,
    ),
    "page": (
        {
            "channels": ["c3", "c4"],
            "first": [12 * SIZE + 5],
            "last": [13 * SIZE + 50],
            "least": 12 * SIZE + 5,
            "most": 13 * SIZE + 50,
            "limit": 500,
            "octets": 10**7,
            "event_type": None,
        },
        2,
    ),
    "page_desc": (
        {
            "channels": ["c3"],
            "first": [12 * SIZE + 5],
            "last": [13 * SIZE + 50],
            "least": 12 * SIZE + 5,
            "most": 13 * SIZE + 50,
            "limit": 500,
            "octets": 10**7,
            "event_type": None,
        },
        2,
    ),
}


@pytest.fixture
def thirty(db: psycopg.Connection) -> psycopg.Connection:
    """A log of thirty filled partitions and two empty ones."""
    make(db, ahead=PARTITIONS + 1, size=SIZE)
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload) SELECT 'c' || g %% 20, '1' FROM generate_series(1, %s) g",
        (PARTITIONS * SIZE - 1,),
    )
    db.execute("ANALYZE sse_pg.events")
    return db


def test_only_the_partitions_needed_are_read(thirty: psycopg.Connection) -> None:
    for mode in ("force_generic_plan", "force_custom_plan"):
        thirty.execute(f"SET plan_cache_mode = {mode}")
        for name, (params, allowed) in CASES.items():
            read = [
                node
                for node in plans.scans(thirty, name, params)
                if node["Actual Loops"] > 0 and filled(node["Relation Name"])
            ]
            assert len({node["Relation Name"] for node in read}) == allowed, (mode, name)
            assert not [node["Relation Name"] for node in read if node["Node Type"] == "Seq Scan"], (mode, name)


def filled(relation: str) -> bool:
    return relation.startswith("events_p") and int(relation.removeprefix("events_p")) < PARTITIONS * SIZE
