"""What was deleted from the log leaves the memory of every server; streams that resume are told only what they lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from support.client import SMALL_BUFFER, Client
from support.server import Launcher, Server
from support.streams import Block
from support.waiting import TIMEOUT_S, eventually

from sse_pg.core.cursor import Cursor
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.replay import Replay

Launched = Callable[..., Awaitable[Server]]

FILL = "INSERT INTO sse_pg.events (channel, payload, created_at) SELECT %s, to_jsonb(g), now() - %s::interval"
FILL += " FROM generate_series(1, %s) g"


def fill(db: psycopg.Connection, channel: str, count: int = 1, age: str = "0") -> None:
    db.execute(FILL, (channel, age, count))


async def read(server: Server, db: psycopg.Connection) -> None:
    """Wait until the server has handed everything on, and has noted that."""
    (last,) = db.execute("SELECT sse_pg.last_id()").fetchone() or (0,)
    await eventually(lambda: server.bus.hub.position == Cursor(last))


async def purge(server: Server, db: psycopg.Connection) -> None:
    """Purge when the server has shown that it needs nothing any more."""
    (last,) = db.execute("SELECT sse_pg.last_id()").fetchone() or (0,)
    await eventually(lambda: db.execute("SELECT min(read_to) FROM sse_pg.live_servers()").fetchone() == (last,))
    db.execute("SELECT sse_pg.purge()")


def seen(blocks: list[Block]) -> list[tuple[str, str | None]]:
    return [(block.event, block.id) for block in blocks]


@pytest.fixture
async def launch(launch: Launcher) -> Launched:
    """Start servers that have the payloads of these channels in memory, as if streams had just left them."""

    async def launched(**settings: Any) -> Server:
        server = await launch(**settings)
        server.bus.hub.followed.add(frozenset("abc"))
        return server

    return launched


# Erased


async def test_it_leaves_the_ring_without_a_gap(launch: Launched, db: psycopg.Connection) -> None:
    server = await launch()
    for channel in "abab":
        fill(db, channel)
    await read(server, db)
    db.execute("SELECT sse_pg.erase('a')")
    await eventually(lambda: len(server.bus.hub.ring) == 2)
    assert server.bus.erasures.erased == 2
    async with Client(server.url) as client, client.stream("a,b", last_event_id="0") as stream:
        assert seen(await stream.events(2)) == [("message", "2"), ("message", "4")]
        fill(db, "a")
        assert (await stream.event()).id == "5"


async def test_other_events_of_the_channel_stay(launch: Launched, db: psycopg.Connection) -> None:
    server = await launch()
    fill(db, "a", 5)
    await read(server, db)
    db.execute("SELECT sse_pg.erase('a', containing => '3')")
    await eventually(lambda: server.bus.erasures.erased == 1)
    async with Client(server.url) as client, client.stream("a", last_event_id="1") as stream:
        assert seen(await stream.events(3)) == [("message", "2"), ("message", "4"), ("message", "5")]


async def test_it_leaves_the_ring_and_the_meter(launch: Launched, db: psycopg.Connection) -> None:
    server = await launch()
    db.execute("SELECT sse_pg.publish('a', 'm', '\"a secret of hers\"')")
    await read(server, db)
    async with Client(server.url) as client, client.stream("a", last_event_id="0") as stream:
        assert (await stream.event()).json() == "a secret of hers"
    assert b"secret" in server.bus.hub.ring.since(Cursor(0), "a")[0].frame(None)  # type: ignore[index]
    assert "a" in server.bus.hub.meter.channels
    db.execute("SELECT sse_pg.erase('a')")
    await eventually(lambda: server.bus.erasures.erased == 1)
    assert server.bus.hub.ring.since(Cursor(0), "a") == []
    assert "a" not in server.bus.hub.meter.channels


async def test_pages_that_are_kept_are_forgotten(
    launch: Launched, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch(ring_events=0)
    fill(db, "a", 3)
    await read(server, db)
    async with Client(server.url) as client:
        async with client.stream("a", last_event_id="0") as stream:
            assert len(await stream.events(3)) == 3
        forgotten: list[int] = []
        forget = Replay.forget

        def noted(self: Replay) -> None:
            forgotten.append(len(self._cached))
            forget(self)

        monkeypatch.setattr(Replay, "forget", noted)
        db.execute("SELECT sse_pg.erase('a', containing => '2')")
        await eventually(lambda: forgotten)
        assert forgotten[0] == 1
        async with client.stream("a", last_event_id="0") as stream:
            assert seen(await stream.events(2)) == [("message", "1"), ("message", "3")]


async def test_a_page_on_its_way_to_a_slow_client_is_dropped(launch: Launched, db: psycopg.Connection) -> None:
    """It has several parts. Those that are not written yet are read anew."""
    server = await launch(ring_events=0, stream_buffer=4 * 65536)
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload)"
        " SELECT 'a', to_jsonb(repeat('x', 60000) || g) FROM generate_series(1, 200) g"
    )
    await read(server, db)
    async with Client(server.url, receive_buffer=SMALL_BUFFER) as client:
        async with client.stream("a", last_event_id="0") as slow:
            (stream,) = server.bus.hub.streams
            await eventually(lambda: stream.paused)
            db.execute("SELECT sse_pg.erase('a', containing => to_jsonb(repeat('x', 60000) || '200'))")
            # What the operating system has not taken yet was read before an erasure, so the connection ends. At the
            # first erasures, the operating system may still take it in time.
            async with asyncio.timeout(TIMEOUT_S):
                while stream.reason is None:
                    db.execute("SELECT sse_pg.publish('a', 'm', '\"erased\"')")
                    db.execute("SELECT sse_pg.erase('a', containing => '\"erased\"')")
                    await asyncio.sleep(0.05)
            assert stream.reason is EndReason.ERASED
            await slow.ended()
        async with client.stream("a", last_event_id=slow.last_id) as again:
            first = int(slow.last_id) + 1
            assert [int(block.id or 0) for block in await again.events(200 - first)] == list(range(first, 200))


async def test_a_slow_client_of_another_channel_stays(launch: Launched, db: psycopg.Connection) -> None:
    server = await launch(stream_buffer=4 * 65536)
    fill(db, "b")
    await read(server, db)
    async with Client(server.url, receive_buffer=SMALL_BUFFER) as client, client.stream("a") as slow:
        (stream,) = server.bus.hub.streams
        while not stream.paused:
            db.execute("SELECT sse_pg.publish('a', 'm', to_jsonb(repeat('x', 60000)))")
            await read(server, db)
        db.execute("SELECT sse_pg.erase('b')")
        await eventually(lambda: server.bus.erasures.erased == 1)
        async with client.stream("b") as other:
            fill(db, "b")
            await other.event()
        assert stream.reason is None
        await slow.event()


@pytest.mark.parametrize("order_wait", [0.15, 0.4], ids=["briefly", "for longer than others are looked for"])
async def test_an_event_that_is_held_back_when_it_is_erased(
    launch: Launched, db: psycopg.Connection, order_wait: float
) -> None:
    server = await launch(order_wait=order_wait)
    with psycopg.connect(server.bus.settings.database_url or "") as other:
        other.execute("SELECT sse_pg.publish('b', 'm', '1')")  # a gap
        fill(db, "a")
        await eventually(lambda: server.bus.tail.open)
        db.execute("SELECT sse_pg.erase('a')")
        await eventually(lambda: server.bus.hub.position.offered(2))
        await eventually(lambda: server.bus.erasures.erased == 1)
        assert server.bus.hub.ring.ids("a", 1, 10) == []


async def test_a_server_that_did_not_hear_of_it(launch: Launched, db: psycopg.Connection) -> None:
    server = await launch()
    fill(db, "a", 3)
    await read(server, db)
    with psycopg.connect(server.bus.settings.database_url or "") as eraser:
        eraser.execute("SELECT sse_pg.erase('a', containing => '2')")
        # The notification is lost with the connection that listens.
        connections = server.bus.tail.meter.connections
        server.bus.tail._control = control = Deaf(server.bus.tail._control)
        server.bus.tail._bell._control = control
        eraser.commit()
        await eventually(lambda: control.unheard)
        control.deaf = False
        db.execute(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l"
            " WHERE l.locktype = 'advisory' AND l.classid = sse_pg.lock_class('server')"
            "   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        await eventually(lambda: server.bus.tail.meter.connections > connections)
    await eventually(lambda: server.bus.hub.ring.ids("a", 1, 10) == [1, 3])


class Deaf:
    """A control listener that hears nothing for a while."""

    def __init__(self, control: object) -> None:
        self._control = control
        self.deaf = True
        self.unheard = 0

    def heard(self, text: str) -> None:
        if self.deaf:
            self.unheard += 1
        else:
            self._control.heard(text)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._control, name)


async def test_a_forged_notification_takes_nothing_out(launch: Launched, db: psycopg.Connection) -> None:
    server = await launch()
    fill(db, "a", 3)
    await read(server, db)
    for _ in range(50):
        db.execute("NOTIFY sse_pg_control, 'deleted'")
    db.execute("SELECT sse_pg.erase('a', containing => '2')")
    await eventually(lambda: server.bus.erasures.erased == 1)
    assert server.bus.hub.ring.ids("a", 1, 10) == [1, 3]


async def test_erasures_that_commit_in_another_order(launch: Launched, db: psycopg.Connection) -> None:
    server = await launch()
    for channel in "abc":
        fill(db, channel)
    await read(server, db)
    with psycopg.connect(server.bus.settings.database_url or "") as late:
        late.execute("SELECT sse_pg.erase('a')")
        db.execute("SELECT sse_pg.erase('b')")
        await eventually(lambda: server.bus.erasures.erased == 1)
        assert len(server.bus.hub.ring) == 2
    await eventually(lambda: server.bus.erasures.erased == 2)
    assert server.bus.hub.ring.ids("c", 1, 10) == [3]


async def test_history_has_it_no_more(client: Client, db: psycopg.Connection) -> None:
    fill(db, "a", 3)
    db.execute("SELECT sse_pg.erase('a', containing => '2')")
    _, page = await client.get("/api/events/history?channel=a&after=1")
    assert [event["id"] for event in page["events"]] == [3]
    assert "gap" not in page


# No longer kept


@pytest.mark.parametrize("ring_events", [10000, 0], ids=["ring", "table"])
async def test_an_older_cursor_is_told_for_this_channel_alone(
    launch: Launched, db: psycopg.Connection, ring_events: int
) -> None:
    server = await launch(ring_events=ring_events)
    for channel in "abab":
        fill(db, channel, 1, "2 hours")
    fill(db, "a")
    db.execute("SELECT sse_pg.keep('a', '1 hour')")
    await read(server, db)
    await purge(server, db)
    await eventually(lambda: server.bus.hub.ring.ids("a", 1, 3) == [])
    async with Client(server.url) as client:
        async with client.stream("a,b", last_event_id="1") as stream:
            blocks = await stream.events(4)
            assert seen(blocks) == [("sse-pg.gap", "1"), ("message", "2"), ("message", "4"), ("message", "5")]
            assert blocks[0].json() == {"reason": "expired", "after": "1", "before": "3"}
            fill(db, "a")
            assert seen([await stream.event()]) == [("message", "6")]
        async with client.stream("b", last_event_id="1") as stream:
            assert seen(await stream.events(2)) == [("message", "2"), ("message", "4")]
        async with client.stream("a", last_event_id="3") as stream:
            assert seen(await stream.events(2)) == [("message", "5"), ("message", "6")]
        async with client.stream("a") as stream:
            fill(db, "a")
            assert seen([await stream.event()]) == [("message", "7")]
        _, page = await client.get("/api/events/history?channel=a&after=1")
        assert page["gap"] == {"reason": "expired", "after": "1", "before": "3"}
        assert [event["id"] for event in page["events"]] == [5, 6, 7]
        for query in ("channel=b&after=1", "channel=a&after=3", "channel=a"):
            assert "gap" not in (await client.get(f"/api/events/history?{query}"))[1]


async def test_a_stream_is_told_once_however_many_pages_it_reads(launch: Launched, db: psycopg.Connection) -> None:
    server = await launch(ring_events=0, replay_page=2)
    fill(db, "b", 9)
    fill(db, "a", 1, "2 hours")
    fill(db, "b", 3)
    db.execute("SELECT sse_pg.keep('a', '1 hour')")
    await read(server, db)
    await purge(server, db)
    async with Client(server.url) as client, client.stream("a,b", last_event_id="1") as stream:
        blocks = await stream.events(12)
        assert seen(blocks)[0] == ("sse-pg.gap", "1")
        assert [block.id for block in blocks[1:]] == ["2", "3", "4", "5", "6", "7", "8", "9", "11", "12", "13"]


async def test_a_server_that_was_away_tells_its_streams(launch: Launched, db: psycopg.Connection) -> None:
    """Only a server that is up holds a deletion back. One that lost its connection may miss events."""
    server = await launch()
    fill(db, "a")
    await read(server, db)
    async with Client(server.url) as client, client.stream("a") as one, client.stream("b") as two:
        bus = server.bus
        await eventually(lambda: all(stream.live for stream in bus.hub.streams))
        db.execute("SELECT sse_pg.keep('a', '1 hour')")
        async with away(server, db):
            fill(db, "a", 2, "2 hours")
            fill(db, "b")
            fill(db, "a")
            await eventually(lambda: db.execute("SELECT count(*) FROM sse_pg.live_servers()").fetchone() == (0,))
            await eventually(lambda: db.execute("SELECT deleted FROM sse_pg.purge()").fetchone() == (2,))
        blocks = await one.events(2)
        assert seen(blocks) == [("sse-pg.gap", "1"), ("message", "5")]
        assert blocks[0].json() == {"reason": "expired", "after": "1", "before": "3"}
        assert seen([await two.event()]) == [("message", "4")]
        async with client.stream("a", last_event_id="1") as resumed:
            assert seen(await resumed.events(2)) == [("sse-pg.gap", "1"), ("message", "5")]


class away:  # noqa: N801 - used like a function
    """While the block runs, the server has no connection that listens."""

    def __init__(self, server: Server, db: psycopg.Connection) -> None:
        self._tail, self._db = server.bus.tail, db

    async def __aenter__(self) -> None:
        self._url, self._tail._url = self._tail._url, "host=/nowhere"
        self._db.execute(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l"
            " WHERE l.locktype = 'advisory' AND l.classid = sse_pg.lock_class('server')"
            "   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        await eventually(lambda: not self._tail.listening.is_set())

    async def __aexit__(self, *_: object) -> None:
        self._tail._url = self._url
        await asyncio.wait_for(self._tail.listening.wait(), 20)
