"""If events can no longer be delivered, the client gets a gap event with the reason, and the stream goes on."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.client import SMALL_BUFFER, Client
from support.server import Launcher, Server
from support.streams import StreamReader
from support.waiting import eventually

from faults.helpers import following
from sse_pg.core.cursor import Cursor

BULK = "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g) FROM generate_series(%s::int, %s::int) g"


def _purge(db: psycopg.Connection, up_to: int) -> None:
    with db.transaction():
        db.execute("DELETE FROM sse_pg.events WHERE id <= %s", (up_to,))
        db.execute("UPDATE sse_pg.log SET purged_to = %s", (up_to,))


def _restore(db: psycopg.Connection, to: int) -> None:
    """Make the log what it was when its last id was ``to``, as a restored backup does."""
    with db.transaction():
        db.execute("DELETE FROM sse_pg.events WHERE id > %s", (to,))
        db.execute(
            "UPDATE sse_pg.log SET settled_to = least(settled_to, %s), open_first = '{}', open_last = '{}'", (to,)
        )
        db.execute("SELECT setval('sse_pg.events_id_seq', %s)", (to,))


async def _gap(stream: StreamReader) -> dict[str, Any]:
    block = await stream.event()
    assert block.event == "sse-pg.gap", block
    said: dict[str, Any] = block.json()
    assert block.id == said["before"], "a client that drops here must not be told again, nor lose more"
    return said


async def _caught_up(server: Server, last: int) -> None:
    await eventually(lambda: server.bus.hub.position == Cursor(last))


async def test_what_was_purged_is_said_and_the_rest_comes(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute(BULK, (1, 20))
    _purge(db, 10)
    server = await launch()
    async with Client(server.url) as client:
        async with client.stream("a", last_event_id="3") as stream:
            assert await _gap(stream) == {"reason": "expired", "after": "3", "before": "10"}
            assert [e.json() for e in await stream.events(10)] == [*range(11, 21)]
            await client.publish("a", 21)
            assert (await stream.event()).json() == 21
        # The gap itself is a place to come back from.
        async with client.stream("a", last_event_id="10") as stream:
            assert [e.json() for e in await stream.events(11)] == [*range(11, 22)]
        async with client.stream("a", last_event_id="15") as stream:
            assert [e.json() for e in await stream.events(6)] == [*range(16, 22)]


async def test_a_gap_of_a_cursor_that_was_purged(launch: Launcher, db: psycopg.Connection) -> None:
    """The only purged event that the client lacked was in the gap of its cursor."""
    db.execute(BULK, (1, 20))
    _purge(db, 10)
    server = await launch()
    async with Client(server.url) as client, client.stream("a", last_event_id="15~10") as stream:
        assert await _gap(stream) == {"reason": "expired", "after": "15~10", "before": "15"}
        assert [e.json() for e in await stream.events(5)] == [*range(16, 21)]


async def test_a_purge_during_a_replay(launch: Launcher, db: psycopg.Connection) -> None:
    """Partitions are dropped while a slow client is reading them."""
    count = 150_000
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload)"
        " SELECT 'a', jsonb_build_object('n', g, 'filler', repeat('x', 100)) FROM generate_series(1, %s) g",
        (count,),
    )
    server = await launch()
    async with (
        Client(server.url, receive_buffer=SMALL_BUFFER) as client,
        client.stream("a", last_event_id="0") as stream,
    ):
        (open_stream,) = server.bus.hub.streams
        await eventually(lambda: open_stream.transport.get_write_buffer_size() > 0)
        assert not open_stream.live
        _purge(db, count - 1000)
        got: list[int] = []
        gaps: list[dict[str, Any]] = []
        while not got or got[-1] < count:
            block = await stream.event()
            if block.event == "sse-pg.gap":
                gaps.append(block.json())
                assert gaps[-1]["after"] == str(got[-1])
            else:
                got.append(block.json()["n"])
        assert [gap["reason"] for gap in gaps] == ["expired"]
        assert gaps[0]["before"] == str(count - 1000)
        assert got == [*range(1, int(gaps[0]["after"]) + 1), *range(count - 999, count + 1)]


async def test_the_ring_still_has_what_was_purged(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    server.bus.hub.followed.add(frozenset("a"))  # as if a stream had just left
    db.execute(BULK, (1, 20))
    await _caught_up(server, 20)
    _purge(db, 10)
    async with Client(server.url) as client, client.stream("a", last_event_id="3") as stream:
        assert [e.json() for e in await stream.events(17)] == [*range(4, 21)]


async def test_a_purge_that_overtakes_the_tail(launch: Launcher, db: psycopg.Connection) -> None:
    """Events are published and purged between two reads: open streams and old cursors get the gap event."""
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as live:
        db.execute(BULK, (1, 3))
        assert len(await live.events(3)) == 3
        with db.transaction():
            db.execute(BULK, (4, 20))
            _purge(db, 10)
        assert await _gap(live) == {"reason": "expired", "after": "3", "before": "10"}
        async with (
            client.stream("a", last_event_id="3") as known_to_the_ring,
            client.stream("a", last_event_id="1") as older,
        ):
            assert await _gap(known_to_the_ring) == {"reason": "expired", "after": "3", "before": "10"}
            assert await _gap(older) == {"reason": "expired", "after": "1", "before": "10"}
            await client.publish("a", 21)
            for stream in (live, known_to_the_ring, older):
                assert [e.json() for e in await stream.events(11)] == [*range(11, 22)]


async def test_a_purge_of_what_was_in_flight(launch: Launcher, database_url: str, db: psycopg.Connection) -> None:
    """The event was committed and purged between two reads. This looks like an id that was rolled back."""
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as live:
        with psycopg.connect(database_url) as late:
            late.execute(BULK, (1, 1))
            db.execute(BULK, (2, 3))
            assert [e.json() for e in await live.events(2)] == [2, 3]
            _purge(late, 1)
        assert await _gap(live) == {"reason": "expired", "after": "3~2", "before": "3"}
        db.execute(BULK, (4, 4))
        assert (await live.event()).json() == 4


async def test_a_purge_far_ahead_of_a_read_that_is_cut_off(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one gap event for all purged events, and every later event is delivered."""
    monkeypatch.setattr("sse_pg.delivery.tail.READ_LIMIT_ROWS", 5)
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as live:
        with db.transaction():
            db.execute(BULK, (1, 100))
            _purge(db, 50)
        assert await _gap(live) == {"reason": "expired", "after": "0", "before": "50"}
        assert [e.json() for e in await live.events(50)] == [*range(51, 101)]
    assert server.bus.hub.gap_notices["expired"] == 1


async def test_what_is_noted_as_purged_beyond_the_sequence(launch: Launcher, db: psycopg.Connection) -> None:
    """The tables were copied without the sequence's value: the note is corrected, and no stream gets a gap event."""
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as live:
        db.execute("UPDATE sse_pg.log SET purged_to = 1000")
        db.execute(BULK, (1, 3))
        assert [e.json() for e in await live.events(3)] == [1, 2, 3]
        await eventually(lambda: db.execute("SELECT purged_to FROM sse_pg.log").fetchone() == (0,))
    assert not server.bus.hub.gap_notices


@pytest.mark.parametrize("cursor", ["999999", "999999~5", "15~2", "nonsense", "9" * 40, "-1", "5~9"])
async def test_a_cursor_of_another_database(launch: Launcher, db: psycopg.Connection, cursor: str) -> None:
    db.execute(BULK, (1, 10))
    server = await launch()
    async with Client(server.url) as client, client.stream("a", last_event_id=cursor) as stream:
        assert await _gap(stream) == {"reason": "unknown", "after": cursor, "before": "10"}
        await client.publish("a", 11)
        assert (await stream.event()).json() == 11


@pytest.mark.parametrize("how", ["setval", "truncate"])
async def test_the_log_goes_back_while_streams_are_open(launch: Launcher, db: psycopg.Connection, how: str) -> None:
    """The server keeps its connection: only the sequence shows that the log was replaced."""
    server = await launch(safety_read=0.05)
    async with (
        Client(server.url) as client,
        client.stream("a") as stream,
        client.stream("b") as other,
        following(server.url) as follower,
    ):
        db.execute(BULK, (1, 10))
        assert [e.json() for e in await stream.events(10)] == [*range(1, 11)]
        await _caught_up(server, 10)
        await eventually(lambda: db.execute("SELECT settled_to FROM sse_pg.log").fetchone() == (10,))
        if how == "setval":
            db.execute("DELETE FROM sse_pg.events WHERE id > 4")
            db.execute("SELECT setval('sse_pg.events_id_seq', 4)")
        else:
            db.execute("TRUNCATE sse_pg.events RESTART IDENTITY")
        start = "4" if how == "setval" else "0"
        # What the server had noted for position() is of the log that is gone.
        noted = "SELECT settled_to FROM sse_pg.log"
        await eventually(lambda: (db.execute(noted).fetchone() or (99,))[0] <= int(start))
        for each in (stream, other):
            assert await _gap(each) == {"reason": "unknown", "after": "10", "before": start}
        await client.publish("a", "new")
        block = await stream.event()
        assert block.json() == "new"
        assert block.id == str(int(start) + 1)
        await client.publish("b", "new")
        assert (await other.event()).json() == "new"
        # One that comes back with an id of the log that is gone.
        async with client.stream("a", last_event_id="10") as came_back:
            assert (await _gap(came_back))["reason"] == "unknown"
        await follower.until(lambda: follower.payloads[-1:] == ["new"])
        assert [gap["reason"] for gap in follower.gaps] == ["unknown"]


async def test_the_table_is_emptied(launch: Launcher, db: psycopg.Connection) -> None:
    """The ids go on, as TRUNCATE does it by default. Whoever has everything lacks nothing; the others get a gap."""
    db.execute(BULK, (1, 5))
    db.execute("SELECT FROM sse_pg.consume('reader', '{a}', 3)")
    server = await launch(ring_events=0, safety_read=60.0)
    async with Client(server.url) as client, client.stream("a") as stream, client.stream("b") as other:
        db.execute(BULK, (6, 6))
        assert (await stream.event()).json() == 6
        await _caught_up(server, 6)
        # This one comes and goes without a bell, while the server sleeps.
        db.execute(
            "SET sse_pg.bell = 'off'; INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '7'); COMMIT;"
            "TRUNCATE sse_pg.events"
        )
        await client.publish("a", "new")
        await client.publish("b", "new")
        for each in (stream, other):
            assert await _gap(each) == {"reason": "expired", "after": "6", "before": "7"}
            assert (await each.event()).json() == "new"
        for cursor in ("2", "0"):
            async with client.stream("a", last_event_id=cursor) as late:
                assert await _gap(late) == {"reason": "expired", "after": cursor, "before": "7"}
                assert (await late.event()).json() == "new"
        async with client.stream("a", last_event_id="7") as complete:
            assert (await complete.event()).json() == "new"
    rows = db.execute("SELECT event_type, payload ->> 'reason' FROM sse_pg.consume('reader', '{a}')").fetchall()
    assert rows == [("sse-pg.gap", "expired"), ("message", None)]


async def test_the_log_goes_back_and_takes_the_connections_along(launch: Launcher, db: psycopg.Connection) -> None:
    """As a restore that drops the database does."""
    server = await launch(safety_read=60.0)
    async with Client(server.url) as client, client.stream("a") as stream:
        db.execute(BULK, (1, 10))
        await stream.events(10)
        await _caught_up(server, 10)
        _restore(db, 4)
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert await _gap(stream) == {"reason": "unknown", "after": "10", "before": "4"}
        db.execute("INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '\"new\"')")
        assert (await stream.event()).json() == "new"


async def test_the_log_goes_back_between_two_runs_of_the_server(launch: Launcher, db: psycopg.Connection) -> None:
    first = await launch()
    async with Client(first.url) as client, client.stream("a") as stream:
        db.execute(BULK, (1, 10))
        cursor = (await stream.events(10))[-1].id
    await first.stop()
    _restore(db, 4)
    second = await launch()
    async with Client(second.url) as client, client.stream("a", last_event_id=cursor) as stream:
        assert await _gap(stream) == {"reason": "unknown", "after": "10", "before": "4"}
        await client.publish("a", "new")
        assert (await stream.event()).json() == "new"


async def test_the_log_goes_back_during_a_replay(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload)"
        " SELECT 'a', jsonb_build_object('n', g, 'filler', repeat('x', 100)) FROM generate_series(1, 150000) g"
    )
    server = await launch(safety_read=0.05)
    async with (
        Client(server.url, receive_buffer=SMALL_BUFFER) as client,
        client.stream("a", last_event_id="0") as stream,
    ):
        (open_stream,) = server.bus.hub.streams
        # The replay waits for the client; a page read between the TRUNCATE and its notice would find nothing to send.
        seen: list[tuple[int, int]] = []

        def waits() -> bool:
            seen.append((open_stream.sent_bytes, open_stream.transport.get_write_buffer_size()))
            return open_stream.paused and len(seen) > 20 and len(set(seen[-20:])) == 1

        await eventually(waits)
        assert not open_stream.live
        db.execute("TRUNCATE sse_pg.events RESTART IDENTITY")
        await eventually(lambda: server.bus.hub.position == Cursor(0))
        await client.publish("a", "new")
        expected = 0
        while (block := await stream.event()).event != "sse-pg.gap":
            expected += 1
            assert block.json()["n"] == expected
        assert block.json() == {"reason": "unknown", "after": str(expected), "before": "0"}
        assert (await stream.event()).json() == "new"


async def test_the_log_begins_again_while_no_server_runs(launch: Launcher, db: psycopg.Connection) -> None:
    """The notes about the old log, how far it was settled and purged, have no effect on the new one."""
    db.execute(BULK, (1, 20))
    db.execute("UPDATE sse_pg.log SET settled_to = 20, open_first = '{5}', open_last = '{5}'")
    _purge(db, 10)
    db.execute("TRUNCATE sse_pg.events RESTART IDENTITY")
    server = await launch()
    db.execute(BULK, (1, 3))
    with db.transaction():
        db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert db.execute("SELECT sse_pg.position()").fetchone() == ("3",)
    async with Client(server.url) as client, client.stream("a", last_event_id="0") as stream:
        assert [e.json() for e in await stream.events(3)] == [1, 2, 3]
