"""Joining replay to live: from every kind of cursor, while others publish, at the speed of the client."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from faults.helpers import Follower, as_in_table, connection, following, insert, proxied, running
from sse_pg.core.cursor import Cursor
from sse_pg.core.ranges import Ranges
from sse_pg.delivery import stream as stream_module

BULK = "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g) FROM generate_series(%s::int, %s::int) g"

RINGS = pytest.mark.parametrize("ring", [10000, 5, 0], ids=["ring", "short ring", "table"])


@RINGS
async def test_from_every_cursor_behind(launch: Launcher, db: psycopg.Connection, ring: int) -> None:
    server = await launch(ring_events=ring, replay_page=7)
    async with Client(server.url) as client:
        db.execute(BULK, (1, 60))
        await eventually(lambda: server.bus.hub.position == Cursor(60))
        async with AsyncExitStack() as stack:
            streams = []
            for after in (*range(0, 60, 7), 59, 60):
                stream = await stack.enter_async_context(client.stream("a", last_event_id=str(after)))
                assert stream.hello.id == str(after)
                assert [e.json() for e in await stream.events(60 - after)] == list(range(after + 1, 61))
                streams.append(stream)
            await client.publish("b", "another channel")
            marker = await client.publish("a", -1)
            for stream in streams:
                block = await stream.event()
                assert block.json() == -1
                assert block.id == str(marker)


@RINGS
@pytest.mark.parametrize("when", ["while it is open", "after the commit"])
async def test_a_cursor_with_a_gap(launch: Launcher, database_url: str, ring: int, when: str) -> None:
    server = await launch(ring_events=ring)
    async with (
        Client(server.url) as client,
        connection(database_url, autocommit=False) as slow,
        connection(database_url) as quick,
    ):
        hidden = await insert(slow, 1)
        for number in range(2, 12):
            last = await insert(quick, number)
        await eventually(lambda: server.bus.hub.position == Cursor(last, Ranges([(hidden, hidden)])))
        if when == "after the commit":
            await slow.commit()
            await eventually(lambda: server.bus.hub.position == Cursor(last))
        # At the end, and at the fifth event.
        async with (
            client.stream("a", last_event_id=f"{last}~{last - hidden}") as at_end,
            client.stream("a", last_event_id=f"{hidden + 4}~4") as inside,
        ):
            if when == "while it is open":
                assert [e.json() for e in await inside.events(6)] == [*range(6, 12)]
                await slow.commit()
                assert (await inside.event()).json() == 1
            else:
                assert sorted(e.json() for e in await inside.events(7)) == [1, *range(6, 12)]
            assert (await at_end.event()).json() == 1
            await insert(quick, 99)
            for stream in (at_end, inside):
                block = await stream.event()
                assert block.json() == 99
                assert block.id == str(last + 1)


async def test_a_cursor_ahead_of_this_server(launch: Launcher, database_url: str) -> None:
    """The client comes from a server that had read further; it waits, and gets no event twice."""
    async with proxied(database_url) as (proxy, behind_proxy):
        there, frozen = await launch(), await launch(database_url=behind_proxy, authorize_cache=600)
        async with (
            Client(there.url) as at_there,
            Client(frozen.url) as at_frozen,
            connection(database_url) as conn,
            connection(database_url, autocommit=False) as slow,
            at_there.stream("a") as first,
        ):
            async with at_frozen.stream("a"):
                pass  # it knows from now on that the rule is as shipped
            await insert(conn, 0)
            await first.event()
            await eventually(lambda: frozen.bus.hub.position == there.bus.hub.position)
            proxy.hang()
            await insert(slow, 100)
            for number in range(1, 11):
                await insert(conn, number)
            events = await first.events(10)
            assert [e.json() for e in events] == list(range(1, 11))
            assert frozen.bus.hub.position.high < there.bus.hub.position.high
            async with AsyncExitStack() as streams:
                # A claim that this server cannot validate yet: it greets when it has read.
                opening = [
                    asyncio.create_task(streams.enter_async_context(at_frozen.stream("a", last_event_id=cursor)))
                    for cursor in (events[-1].id, events[4].id)
                ]
                await eventually(lambda: len(frozen.bus.hub.streams) == 2)
                await insert(conn, 11)
                proxy.resume()
                ahead, half_ahead = await asyncio.gather(*opening)
                assert (await ahead.event()).json() == 11
                assert [e.json() for e in await half_ahead.events(6)] == [6, 7, 8, 9, 10, 11]
                await slow.commit()
                for stream in (first, ahead, half_ahead):
                    block = await stream.event()
                    if stream is first:
                        assert block.json() == 11
                        block = await stream.event()
                    assert block.json() == 100
                await insert(conn, 12)
                for stream in (first, ahead, half_ahead):
                    assert (await stream.event()).json() == 12


@RINGS
async def test_a_plain_integer_above_an_open_transaction(launch: Launcher, database_url: str, ring: int) -> None:
    """The id in the response to a publish is such a cursor; an event below it that commits later is new."""
    server = await launch(ring_events=ring)
    async with (
        Client(server.url) as client,
        connection(database_url, autocommit=False) as slow,
    ):
        await insert(slow, 1)
        published = await client.publish("a", 2)
        async with client.stream("a", last_event_id=str(published)) as stream:
            await client.publish("a", 3)
            assert (await stream.event()).json() == 3
            await slow.commit()
            assert (await stream.event()).json() == 1
            await client.publish("a", 4)
            assert (await stream.event()).json() == 4


@RINGS
async def test_an_id_that_was_rolled_back(launch: Launcher, database_url: str, ring: int) -> None:
    server = await launch(ring_events=ring)
    async with Client(server.url) as client, connection(database_url, autocommit=False) as other:
        await client.publish("a", 1)
        dead = await insert(other, 2)
        await other.rollback()
        async with client.stream("a", last_event_id=str(dead)) as stream:
            assert await client.publish("a", 3) == dead + 1
            block = await stream.event()
            assert (block.event, block.data) == ("message", "3")
        # In flight when the client came, then rolled back; and one that was committed after all.
        in_flight = await insert(other, 4)
        async with client.stream("a", last_event_id=str(in_flight)) as stream:
            await eventually(lambda: all(each.live for each in server.bus.hub.streams))
            await other.rollback()
            await client.publish("a", 5)
            assert (await stream.event()).json() == 5
        in_flight = await insert(other, 6)
        async with client.stream("a", last_event_id=str(in_flight)) as stream:
            await eventually(lambda: all(each.live for each in server.bus.hub.streams))
            await other.commit()
            await client.publish("a", 7)
            assert [e.json() for e in await stream.events(2)] == [6, 7]


async def test_a_long_replay_goes_at_the_speed_of_the_client(
    launch: Launcher, database_url: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200,000 events; the server holds a page and a buffer for the client, not the log."""
    count, limit = 200_000, 400_000
    db.execute(BULK, (1, count))
    largest = pages = published = 0
    push = stream_module.Stream.push

    def measured(stream: stream_module.Stream, framed: bytes, now: float) -> None:
        nonlocal largest, pages
        push(stream, framed, now)
        pages += 1
        largest = max(largest, stream.transport.get_write_buffer_size())

    monkeypatch.setattr(stream_module.Stream, "push", measured)
    server = await launch(stream_buffer=limit)

    async def meanwhile() -> None:
        nonlocal published
        async with connection(database_url) as conn:
            for number in range(count + 1, count + 301):
                await insert(conn, number)
                published += 1
                await asyncio.sleep(0.005)

    async def backed_up() -> None:
        """The client has not read for as long as it takes to publish some: the server has to wait for it."""
        await eventually(lambda: largest > 0)
        before = min(published, 150)
        await eventually(lambda: published >= before + 100)

    async with running(meanwhile()):
        received = await asyncio.wait_for(_read_late(server.url, count + 300, backed_up), 60)
    assert received == list(range(1, count + 301))
    assert largest <= limit
    assert pages > count // 1000


async def _read_late(url: str, count: int, begin: Callable[[], Awaitable[None]]) -> list[int]:
    """Read a stream from its beginning once ``begin`` returns, a little at a time, until it has so many events."""
    parts = urlsplit(url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=16384)
    received: list[int] = []
    try:
        writer.write(b"GET /api/events/stream?channels=a&lastEventId=0 HTTP/1.0\r\n\r\n")
        rest = named = b""
        await begin()
        while len(received) < count:
            data = await reader.read(65536)
            assert data, f"the stream ended after {len(received)} events"
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"event: "):
                    named = line[7:]
                elif line.startswith(b"data: ") and named == b"message":
                    received.append(json.loads(line[6:]))
    finally:
        writer.transport.abort()
    return received


async def test_production_goes_on_during_a_replay(launch: Launcher, database_url: str, db: psycopg.Connection) -> None:
    """The publisher also outruns the ring between two pages."""
    server = await launch(ring_events=20, replay_page=50)
    db.execute(BULK, (1, 20_000))
    writing = asyncio.gather(*(_write(database_url, base * 1_000_000, 400) for base in range(1, 5)))
    async with following(server.url, cursor="0") as follower, following(server.url, cursor="15000") as other:
        await writing
        await as_in_table(follower, database_url)
        await as_in_table(other, database_url, after=range(1, 15_001))
    assert follower.connects == other.connects == 1


@RINGS
async def test_fifty_clients_join_anywhere_while_writers_write(launch: Launcher, database_url: str, ring: int) -> None:
    """Each client starts at a cursor of another client, and gets exactly what that client had not got by then."""
    server = await launch(ring_events=ring, replay_page=40)
    rand = random.Random(ring)
    joined: list[tuple[Follower, set[Any]]] = []

    async with following(server.url, cursor="0") as scout, AsyncExitStack() as stack:
        writing = asyncio.gather(*(_write(database_url, base * 1_000_000, 160) for base in range(1, 9)))
        for number in range(50):
            await scout.until(lambda n=number: len(scout.payloads) > 15 * n)
            place = rand.randrange(len(scout.cursors))
            follower = Follower(server.url, cursor=scout.cursors[place], drop_every=rand.choice((0, 0, 30)))
            joined.append((follower, set(scout.payloads[: place + 1])))
            await stack.enter_async_context(running(follower.run()))
        await writing
        await as_in_table(scout, database_url)
        for follower, had in joined:
            assert len(follower.cursor or "") < 100, "full cursors may repeat events; this test is not about them"
            await as_in_table(follower, database_url, after=had)


async def _write(database_url: str, base: int, count: int) -> None:
    """Publish in transactions of several, at random, some rolled back."""
    rand = random.Random(base)
    async with connection(database_url, autocommit=False) as conn:
        done = 0
        while done < count:
            size = rand.randint(1, 4)
            for number in range(done, done + size):
                await insert(conn, base + number)
                if rand.random() < 0.3:
                    await asyncio.sleep(rand.uniform(0, 0.01))
            if rand.random() < 0.15:
                await conn.rollback()
            else:
                await conn.commit()
                done += size
