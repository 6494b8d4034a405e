"""A server reads the payloads of the channels that its streams follow, and passes over the others."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from itertools import cycle

import psycopg
import pytest
from faults.helpers import following
from support.client import Client
from support.server import Launcher, Server
from support.waiting import eventually

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import Event, Unfollowed
from sse_pg.core.followed import Followed, hash_text, passes
from sse_pg.core.ranges import NONE, Ranges
from sse_pg.db import tail_session
from sse_pg.db.connection import Connection, connect_listener

pytestmark = pytest.mark.oldest

PUBLISH = "SELECT sse_pg.publish(%s, 'm', to_jsonb(%s::text), NULL, '{\"h\": 1}')"


@pytest.fixture
async def conn(database_url: str) -> AsyncIterator[Connection]:
    """A connection as the tail has it."""
    made = await connect_listener(database_url)
    yield made
    await made.close()


async def handed_on(server: Server, number: int) -> None:
    await eventually(lambda: server.bus.hub.position == Cursor(number))


def test_the_hash_is_that_of_the_database(db: psycopg.Connection) -> None:
    chance = random.Random(4)
    alphabet = "abcxyz019.-_/äß€中🎉"
    names = ["".join(chance.choices(alphabet, k=length)) for length in (*range(1, 60), 255)]
    found = db.execute(
        'SELECT hashtext(n COLLATE "C") FROM unnest(%s::text[]) WITH ORDINALITY u(n, o) ORDER BY o', (names,)
    )
    assert [number & 0xFFFFFFFF for (number,) in found] == [hash_text(name) for name in names]


@pytest.mark.parametrize("missing", [NONE, Ranges([(1, 3)])], ids=["above", "open ids"])
async def test_a_read_brings_the_payloads_that_the_filter_lets_pass(
    conn: Connection, db: psycopg.Connection, missing: Ranges
) -> None:
    channels = [f"c{number}" for number in range(60)]
    for channel in channels:
        db.execute(PUBLISH, (channel, channel))
    followed = Followed()
    followed.add(frozenset(channels[:50:7]))
    bits = followed.filter(0)
    assert bits is not None
    assert await tail_session.set_up(conn)
    seen = missing.spans[0][1] if missing else 0
    read = await tail_session.events(conn, seen, missing, 100, followed=bits)
    assert [event.id for event in read.events] == [*range(1, 61)]
    assert [event.channel for event in read.events] == channels
    for event in read.events:
        if passes(bits, event.channel):
            assert isinstance(event, Event)
            assert (event.payload, event.headers) == (f'"{event.channel}"', '{"h": 1}')
        else:
            assert isinstance(event, Unfollowed)
    assert 8 <= sum(isinstance(event, Event) for event in read.events) < 20
    everything = await tail_session.events(conn, seen, missing, 100)
    assert all(isinstance(event, Event) for event in everything.events)


async def test_a_read_that_passes_over_payloads_ends_by_rows(conn: Connection, db: psycopg.Connection) -> None:
    """Its bytes are those that it brings."""
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload)"
        " SELECT CASE WHEN g % 10 = 0 THEN 'a' ELSE 'b' END, to_jsonb(repeat('x', 600000))"
        " FROM generate_series(1, 60) g"
    )
    followed = Followed()
    followed.add(frozenset("a"))
    bits = followed.filter(0)
    read = await tail_session.events(conn, 0, NONE, 100, followed=bits)
    assert (len(read.events), read.more) == (60, False)
    read = await tail_session.events(conn, 0, NONE, 45, followed=bits)
    assert (len(read.events), read.more) == (45, True)
    read = await tail_session.events(conn, 0, NONE, 100)
    assert (len(read.events), read.more) == (7, True)


async def test_a_channel_that_nobody_followed(launch: Launcher, db: psycopg.Connection) -> None:
    """What was published before the first stream is not in memory; what comes after it is."""
    server = await launch()
    async with Client(server.url) as client, client.stream("other"):
        db.execute(PUBLISH, ("a", "one"))
        await handed_on(server, 1)
        assert len(server.bus.hub.ring) == 0
        async with client.stream("a") as now, client.stream("a", last_event_id="0") as resumed:
            assert (await resumed.event()).json() == "one"
            db.execute(PUBLISH, ("a", "two"))
            assert (await resumed.event()).json() == (await now.event()).json() == "two"
        assert server.bus.replay.pages["read"] == 1
        assert server.bus.hub.ring.ids("a", 1, 9) == [2]


async def test_a_client_that_reconnects_is_served_from_memory(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    async with Client(server.url) as client:
        async with client.stream("a") as stream:
            db.execute(PUBLISH, ("a", "one"))
            last = (await stream.event()).id
        await eventually(lambda: not server.bus.hub.streams)
        db.execute(PUBLISH, ("a", "two"))
        await handed_on(server, 2)
        async with client.stream("a", last_event_id=last) as stream:
            assert (await stream.event()).json() == "two"
        assert server.bus.replay.pages["read"] == 0


async def test_a_stream_that_gets_a_channel_while_it_is_open(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    db.execute("SELECT sse_pg.subscribe('u', 'a')")
    async with Client(server.url) as client, client.stream(userId="u") as stream:
        for number in range(1, 20):
            db.execute(PUBLISH, (f"c{number}", "before"))
            await handed_on(server, 3 * number - 2)
            with db.transaction():
                db.execute("SELECT sse_pg.subscribe('u', %s)", (f"c{number}",))
                db.execute(PUBLISH, (f"c{number}", "first"))
            db.execute(PUBLISH, (f"c{number}", "second"))
            assert [(await stream.event()).json() for _ in range(2)] == ["first", "second"]


async def test_live_streams_get_from_the_table_what_was_read_without_its_payload(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every other read had begun before its streams were there."""
    server = await launch()
    async with following(server.url) as follower:
        filters = cycle([bytes(64), server.bus.hub.followed.filter(0)])
        monkeypatch.setattr(server.bus.hub.followed, "filter", lambda _: next(filters))
        for number in range(50):
            db.execute("SELECT sse_pg.publish('a', 'm', to_jsonb(%s::int))", (number,))
        await follower.until(lambda: len(follower.payloads) == 50)
        assert follower.payloads == [*range(50)]
        assert server.bus.replay.events > 0
        assert follower.connects == 1


async def test_a_database_that_hashes_otherwise_sends_everything(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_session, "hash_text", lambda _: 0)
    server = await launch()
    db.execute(PUBLISH, ("a", "one"))
    await handed_on(server, 1)
    assert server.bus.hub.ring.ids("a", 1, 9) == [1]
