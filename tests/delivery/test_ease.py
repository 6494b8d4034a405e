"""A server without streams takes its time: publishers do not ring for it, and whoever needs a read gets one at once."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from support.client import Client
from support.server import Launcher, Server
from support.waiting import eventually

from sse_pg.core.cursor import Cursor
from sse_pg.db import pool as pool_module
from sse_pg.delivery import listening_tail

PUBLISH = "SELECT sse_pg.publish('a', 'm', to_jsonb(%s::int))"
#: Seconds; far beyond the patience of a test.
NEVER = 60.0


@pytest.fixture
async def at_ease(launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that is not the elected one, and reads by itself once in a while."""
    monkeypatch.setattr(listening_tail, "EASE_POLL_S", NEVER)
    await launch()
    server = await launch()
    db.execute(PUBLISH, (0,))
    await eventually(lambda: server.bus.tail.awake)
    assert server.bus.hub.position == Cursor(1)
    return server


async def bells(server: Server, db: psycopg.Connection, count: int) -> None:
    """Ring on, and wait until the server has heard it."""
    heard = server.bus.tail.meter.bells
    for _ in range(count):
        db.execute("NOTIFY sse_pg")
    await eventually(lambda: server.bus.tail.meter.bells >= heard + count)


async def test_bells_that_ring_for_others_cause_no_read(at_ease: Server, db: psycopg.Connection) -> None:
    reads = at_ease.bus.tail.meter.reads
    for number in range(1, 30):
        db.execute(PUBLISH, (number,))
        await bells(at_ease, db, 1)
    assert at_ease.bus.tail.meter.reads == reads
    assert at_ease.bus.hub.position == Cursor(1)


async def test_the_first_stream_ends_the_pause(at_ease: Server, db: psycopg.Connection) -> None:
    for number in range(1, 30):
        db.execute(PUBLISH, (number,))
    async with Client(at_ease.url) as client:
        async with client.stream("a", last_event_id="1") as stream:
            assert [block.json() for block in await stream.events(29)] == [*range(1, 30)]
            for number in range(30, 60):
                db.execute(PUBLISH, (number,))
                assert (await stream.event()).json() == number
        await eventually(lambda: not at_ease.bus.hub.streams)
        db.execute(PUBLISH, (60,))
        async with client.stream("a") as stream:
            db.execute(PUBLISH, (61,))
            assert (await stream.event()).json() == 61


async def test_what_comes_on_the_control_channel_is_done_at_once(at_ease: Server, db: psycopg.Connection) -> None:
    async with Client(at_ease.url) as client, client.stream("b"):
        pass
    await eventually(lambda: not at_ease.bus.hub.streams)
    applied = at_ease.bus.tail.meter.reads
    db.execute("SELECT sse_pg.revoke()")
    await eventually(lambda: at_ease.bus.tail.meter.reads > applied)
    db.execute(PUBLISH, (1,))
    at_ease.bus.hub.followed.add(frozenset("a"))
    await at_ease.bus.tail.fresh()
    assert at_ease.bus.hub.ring.ids("a", 2, 2) == [2]
    db.execute("SELECT sse_pg.erase('a')")
    await eventually(lambda: at_ease.bus.erasures.erased == 1)


async def test_it_falls_asleep_when_nothing_comes(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening_tail, "EASE_POLL_S", 0.001)
    await launch()
    server = await launch(safety_read=NEVER)
    for _ in range(3):
        db.execute(PUBLISH, (0,))
        await eventually(lambda: server.bus.tail.awake)
        await eventually(lambda: not server.bus.tail.awake)


async def test_the_elected_server_reads_on(launch: Launcher, db: psycopg.Connection) -> None:
    """Servers that read a standby go by what it notes."""
    server = await launch(safety_read=NEVER)
    for number in range(5):
        db.execute(PUBLISH, (number,))
        await eventually(lambda n=number: server.bus.hub.position == Cursor(n + 1))
        await asyncio.sleep(0)
    assert not server.bus.tail._is_at_ease


async def test_delays_are_those_of_events_that_somebody_follows(at_ease: Server, db: psycopg.Connection) -> None:
    for number in range(1, 4):
        db.execute(PUBLISH, (number,))
    await at_ease.bus.tail.fresh()
    meter = at_ease.bus.hub.meter
    assert (meter.events, sum(meter.delays), meter.recent[-1].delay(0.5)) == (4, 0, None)
    async with Client(at_ease.url) as client, client.stream("a") as stream:
        db.execute(PUBLISH, (4,))
        await stream.event()
    await eventually(lambda: sum(meter.delays) == 1)
    assert meter.events == 5
    assert meter.recent[-1].delay(0.5) is not None


async def test_an_idle_server_holds_two_connections(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that listens, and one for the next request. The pool closes one more each time that is over."""
    monkeypatch.setattr(pool_module, "MAX_IDLE_S", 0.05)
    server = await launch(pool_size=8)
    async with Client(server.url) as client:
        async with client.stream("a") as stream:
            await asyncio.gather(*(client.publish("a", number) for number in range(50)))
            await stream.events(50)
        await eventually(lambda: len(names(db)) == 2)
        assert names(db) == ["sse-pg", "sse-pg tail"]
        await client.publish("a", 1)


def names(db: psycopg.Connection) -> list[str]:
    """The connections of servers, by their names."""
    query = (
        "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return sorted(name for (name,) in db.execute(query))
