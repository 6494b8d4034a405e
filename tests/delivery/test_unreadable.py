"""The tail stays before an event that it cannot deliver, says which it is, and goes on once that has changed."""

from __future__ import annotations

import psycopg
import pytest
from faults.helpers import following
from support.client import Client
from support.server import Launcher, Server
from support.waiting import eventually

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import Envelope
from sse_pg.core.event import Event
from sse_pg.core.ranges import NONE, Ranges
from sse_pg.db import tail_session
from sse_pg.db.connection import connect_listener
from sse_pg.errors import LogUnreadable

INSERT = "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('a', %s, to_jsonb(%s::int))"


@pytest.fixture
def unchecked(db: psycopg.Connection) -> psycopg.Connection:
    """A log whose owner has dropped the check of names."""
    db.execute("ALTER TABLE sse_pg.events DROP CONSTRAINT events_names")
    return db


async def stands_before(server: Server, number: int) -> None:
    """Wait until the server is not ready because of an event."""
    await eventually(lambda: f"event {number}:" in (server.bus.why_not_ready() or ""))
    assert server.bus.hub.position == Cursor(number - 1)


async def test_an_event_that_no_stream_can_carry(
    launch: Launcher, unchecked: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        with unchecked.transaction():
            for number, name in enumerate(("good", "forged\nid: 99", "good"), 1):
                unchecked.execute(INSERT, (name, number))
        assert (await stream.event()).json() == 1
        await stands_before(server, 2)
        assert "event 2: a field of an event stream cannot contain CR, LF or NUL" in caplog.text
        status, problem = await client.get("/readyz")
        assert status == 503
        assert "event 2" in problem["detail"]
        unchecked.execute("UPDATE sse_pg.events SET event_type = 'good' WHERE id = 2")
        assert [block.json() for block in await stream.events(2)] == [2, 3]
        await eventually(lambda: server.bus.why_not_ready() is None)


async def test_an_event_below_the_position_that_no_stream_can_carry(
    launch: Launcher, database_url: str, unchecked: psycopg.Connection
) -> None:
    """It comes late, into a gap of the position; what comes after it waits, too."""
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        with psycopg.connect(database_url) as late:
            late.execute(INSERT, ("forged\nid: 99", 1))
            unchecked.execute(INSERT, ("good", 2))
            assert (await stream.event()).id == "2~1"
        await eventually(lambda: "event 1:" in (server.bus.why_not_ready() or ""))
        unchecked.execute(INSERT, ("good", 3))
        failures = server.bus.tail.meter.failures
        await eventually(lambda: server.bus.tail.meter.failures > failures + 1)
        assert server.bus.hub.position == Cursor(2, Ranges([(1, 1)]))
        unchecked.execute("DELETE FROM sse_pg.events WHERE id = 1")
        block = await stream.event()
        assert (block.id, block.json()) == ("3", 3)


@pytest.mark.parametrize("below", [False, True], ids=["above", "below the position"])
async def test_an_event_that_cannot_be_decoded(
    launch: Launcher, database_url: str, unchecked: psycopg.Connection, below: bool
) -> None:
    """Bytes that are not UTF-8, as a damaged disk leaves them."""
    unchecked.execute("CREATE CAST (bytea AS text) WITHOUT FUNCTION")
    insert = r"INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('a', '\xff'::bytea::text, '1')"
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        with psycopg.connect(database_url) as other:
            if below:
                other.execute(insert)
                for number in range(1, 10):
                    unchecked.execute(INSERT, ("good", number))
                assert len(await stream.events(9)) == 9
            else:
                for number in range(1, 10):
                    other.execute(INSERT, ("good", number))
                other.execute(insert)
        broken = 1 if below else 10
        await eventually(lambda: f"event {broken}:" in (server.bus.why_not_ready() or ""))
        unchecked.execute(INSERT, ("good", 10))
        if not below:
            assert [block.json() for block in await stream.events(9)] == [*range(1, 10)]
        unchecked.execute("DELETE FROM sse_pg.events WHERE id = %s", (broken,))
        block = await stream.event()
        assert (block.id, block.json()) == ("11", 10)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
async def test_a_session_with_another_encoding_reads_nothing(
    database_url: str, db: psycopg.Connection, encoding: str
) -> None:
    db.execute(INSERT, ("good", 1))
    conn = await connect_listener(database_url)
    try:
        assert len((await tail_session.events(conn, 0, NONE, 10)).events) == 1
        await conn.execute("SELECT set_config('client_encoding', %s, false)", (encoding,))
        with pytest.raises(LogUnreadable, match=f"client_encoding is {encoding} and must be UTF8"):
            await tail_session.events(conn, 0, NONE, 10)
    finally:
        await conn.close()


async def test_a_delivery_that_fails_loses_nothing(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours, in the middle of a batch: the clients come back, and get everything from the table."""
    frame, failures = wire.frame, 0

    def broken(event: Event, cursor: Cursor, *, envelope: Envelope | None = None) -> bytes:
        nonlocal failures
        if event.payload == "2" and not failures:
            failures += 1
            raise RuntimeError("broken")
        return frame(event, cursor, envelope=envelope)

    server = await launch()
    async with following(server.url) as follower:
        db.execute(INSERT, ("good", 0))
        await follower.until(lambda: follower.payloads == [0])
        monkeypatch.setattr(wire, "frame", broken)
        with db.transaction():
            for number in range(1, 4):
                db.execute(INSERT, ("good", number))
        await follower.until(lambda: len(follower.payloads) == 4)
        assert (follower.payloads, failures, follower.connects) == ([0, 1, 2, 3], 1, 2)
        db.execute(INSERT, ("good", 4))
        await follower.until(lambda: len(follower.payloads) == 5)
        assert follower.payloads == [0, 1, 2, 3, 4]
        assert not follower.gaps


async def test_a_log_without_its_row(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        db.execute("CREATE TABLE kept AS SELECT * FROM sse_pg.log; TRUNCATE sse_pg.log")
        db.execute(INSERT, ("good", 1))
        await eventually(lambda: "sse_pg.log has no row" in (server.bus.why_not_ready() or ""))
        db.execute("INSERT INTO sse_pg.log SELECT * FROM kept")
        assert (await stream.event()).json() == 1
