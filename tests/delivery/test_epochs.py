"""The log is replaced: restored, failed over, another database. Clients with an old cursor get a gap event."""

from __future__ import annotations

import psycopg
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg.core.cursor import Cursor
from sse_pg.core.epoch import Epoch


def _begin(db: psycopg.Connection) -> int:
    row = db.execute("SELECT sse_pg.begin_epoch()").fetchone()
    assert row is not None
    return int(row[0])


async def test_a_new_log_and_a_second_server_begin_no_epoch(launch: Launcher, db: psycopg.Connection) -> None:
    for _ in range(2):
        server = await launch()
        async with Client(server.url) as client:
            await client.publish("a", 1)
    assert db.execute("SELECT count(*) FROM sse_pg.epochs").fetchone() == (0,)


async def test_a_log_that_was_moved_begins_one(launch: Launcher, db: psycopg.Connection) -> None:
    first = await launch()
    async with Client(first.url) as client:
        await client.publish("a", 1)
    await first.stop()
    db.execute("UPDATE sse_pg.log SET identity = 'another/cluster'")
    second = await launch()
    async with Client(second.url) as client:
        assert await client.publish("a", 2) > 1_000_000_000
    assert db.execute("SELECT count(*) FROM sse_pg.epochs").fetchone() == (1,)


async def test_a_cursor_of_the_lost_log_is_told_and_loses_nothing_of_the_new(
    launch: Launcher, db: psycopg.Connection
) -> None:
    db.execute("SELECT sse_pg.publish('a', 'm', to_jsonb(n)) FROM generate_series(1, 10) n")
    db.execute("UPDATE sse_pg.log SET settled_to = 6")
    _begin(db)
    db.execute("SELECT sse_pg.publish('a', 'm', '\"new\"')")
    server = await launch()
    async with Client(server.url) as client:
        async with client.stream("a", last_event_id="42") as stream:
            gap = await stream.event()
            assert gap.event == "sse-pg.gap"
            assert gap.json() == {"reason": "unknown", "after": "42", "before": "6"}
            assert [e.json() for e in await stream.events(5)] == [7, 8, 9, 10, "new"]
        async with client.stream("a", last_event_id="5") as stream:
            assert [e.json() for e in await stream.events(6)] == [6, 7, 8, 9, 10, "new"]


async def test_a_client_that_was_given_an_event_while_it_was_open_is_told(
    launch: Launcher, db: psycopg.Connection
) -> None:
    """Below the last settled id, event 4 had not been committed when a server last noted what is certain."""
    db.execute("SELECT sse_pg.publish('a', 'm', to_jsonb(n)) FROM generate_series(1, 8) n")
    db.execute("UPDATE sse_pg.log SET settled_to = 6, open_first = '{4}', open_last = '{4}'")
    db.execute("DELETE FROM sse_pg.events WHERE id IN (4, 7, 8)")  # the failover lost them
    _begin(db)
    db.execute("SELECT sse_pg.publish('a', 'm', '\"new\"')")
    server = await launch()
    async with Client(server.url) as client:
        for cursor in ("5", "6", "5~1"):
            async with client.stream("a", last_event_id=cursor) as stream:
                if cursor != "5~1":
                    gap = await stream.event()
                    assert gap.json() == {"reason": "unknown", "after": cursor, "before": f"{cursor}~{int(cursor) - 4}"}
                assert [e.json() for e in await stream.events(2 - (cursor == "6"))] == [6, "new"][cursor == "6" :]
    rows = db.execute("SELECT payload FROM sse_pg.read('6', '{a}')").fetchall()
    assert rows == [({"reason": "unknown", "after": "6", "before": "6~2"},), ("new",)]
    assert db.execute("SELECT payload FROM sse_pg.read('6~2', '{a}')").fetchall() == [("new",)]


async def test_an_epoch_that_is_begun_beside_a_server_is_noticed(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.publish('a', 'm', to_jsonb(n)) FROM generate_series(1, 10) n")
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as live:
        with db.transaction():  # the server notes what is settled, too
            db.execute("UPDATE sse_pg.log SET settled_to = 6")
            start = _begin(db)
        await eventually(lambda: server.bus.hub.epochs == [Epoch(Cursor(6), start)])
        number = await client.publish("a", "new")
        assert (await live.event()).id == str(number)
        async with client.stream("a", last_event_id="42") as stream:
            gap = await stream.event()
            assert gap.json() == {"reason": "unknown", "after": "42", "before": "6"}
            assert [e.json() for e in await stream.events(5)] == [7, 8, 9, 10, "new"]


async def test_what_is_told_in_the_new_epoch_is_certain(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.publish('a', 'm', '1')")
    start = _begin(db)
    server = await launch()
    async with Client(server.url) as client:
        async with client.stream("a") as stream:
            assert stream.hello.id == str(start)
        async with client.stream("a", last_event_id=str(start)) as stream:
            number = await client.publish("a", 2)
            event = await stream.event()
            assert (event.id, event.json()) == (str(number), 2)


async def test_a_server_that_sees_the_log_go_back_tells_its_streams(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        await client.publish("a", 1)
        await stream.event()
        db.execute("DELETE FROM sse_pg.events")
        db.execute("SELECT setval('sse_pg.events_id_seq', 1, false)")
        db.execute("UPDATE sse_pg.log SET identity = 'as of the backup', settled_to = 0")
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sse-pg tail'"
            " AND datname = current_database()"
        )
        gap = await stream.event()
        assert (gap.event, gap.json()["reason"]) == ("sse-pg.gap", "unknown")
        await client.publish("a", "new")
        assert (await stream.event()).json() == "new"


async def test_a_purge_behind_a_server_that_was_away_is_said(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        number = await client.publish("a", 1)
        await stream.event()
        # As if the server had been disconnected while more was published and purged.
        db.execute(
            "SELECT pg_terminate_backend(pid), setval('sse_pg.events_id_seq', %s) FROM pg_stat_activity"
            " WHERE application_name = 'sse-pg tail' AND datname = current_database()",
            (number + 100,),
        )
        db.execute("UPDATE sse_pg.log SET purged_to = %s", (number + 90,))
        gap = await stream.event()
        assert (gap.event, gap.json()["reason"]) == ("sse-pg.gap", "expired")
        await client.publish("a", "new")
        assert (await stream.event()).json() == "new"


COPIED = (
    "INSERT INTO sse_pg.events (id, channel, payload) OVERRIDING SYSTEM VALUE"
    " SELECT n, 'a', to_jsonb(n) FROM generate_series(%s::int, %s) n"
)
"""What logical replication brings: events with their ids, and a sequence that stays behind."""


async def test_a_copy_whose_sequence_stayed_behind_begins_an_epoch(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute(COPIED, (1, 50))
    server = await launch()
    async with Client(server.url) as client:
        assert await client.publish("a", "new") == 1_000_000_051
        async with client.stream("a", last_event_id="30") as stream:
            gap = await stream.event()
            assert gap.json() == {"reason": "unknown", "after": "30", "before": "0"}
            assert [e.json() for e in await stream.events(51)] == [*range(1, 51), "new"]
    assert db.execute("SELECT count(*) FROM sse_pg.epochs").fetchone() == (1,)


async def test_events_that_are_copied_beside_a_server_begin_one_epoch_and_no_endless_gap(
    launch: Launcher, db: psycopg.Connection
) -> None:
    server = await launch(safety_read=0.05)
    async with Client(server.url) as client, client.stream("a") as stream:
        db.execute(COPIED, (1, 50))
        await eventually(lambda: server.bus.hub.position.high > 1_000_000_000)
        passes = server.bus.tail.meter.reads
        await eventually(lambda: server.bus.tail.meter.reads > passes + 5)
        await client.publish("a", "new")
        seen = []
        while not seen or seen[-1].event == "sse-pg.gap" or seen[-1].json() != "new":
            seen.append(await stream.event())
    assert len([block for block in seen if block.event == "sse-pg.gap"]) <= 1
    payloads = [block.json() for block in seen if block.event != "sse-pg.gap"]
    assert len(payloads) <= 2 * 50 + 1
    assert {*range(1, 51), "new"} == set(payloads)
    assert db.execute("SELECT count(*) FROM sse_pg.epochs").fetchone() == (1,)


async def test_a_moved_log_without_its_sequence_is_no_new_log(launch: Launcher, db: psycopg.Connection) -> None:
    """The row of facts came along, the events and the sequence did not: ids up to 500 were handed out."""
    db.execute("UPDATE sse_pg.log SET identity = 'another/cluster', settled_to = 500")
    server = await launch()
    async with Client(server.url) as client:
        assert await client.publish("a", 1) == 1_000_000_501


async def test_tables_that_were_emptied_get_their_facts_back(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    async with Client(server.url) as client:
        for n in range(5):
            await client.publish("a", n)
    await server.stop()
    db.execute(
        "TRUNCATE sse_pg.events, sse_pg.log, sse_pg.epochs, sse_pg.servers, sse_pg.subscriptions,"
        " sse_pg.idempotency_keys"
    )
    server = await launch()
    async with Client(server.url) as client:
        assert await client.publish("a", "new") == 6
        async with client.stream("a", last_event_id="2") as stream:
            gap = await stream.event()
            assert gap.json() == {"reason": "expired", "after": "2", "before": "5"}
            assert (await stream.event()).json() == "new"
