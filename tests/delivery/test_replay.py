"""A crowd behind the ring: streams that ask for the same page share one read, its bytes and its errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
import pytest
from support.client import SMALL_BUFFER, Client
from support.server import Launcher, Server
from support.streams import StreamReader
from support.waiting import eventually

from sse_pg.core.cursor import Cursor
from sse_pg.db.store import Store
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.replay import MAX_CACHED_PAGES

BULK = "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g) FROM generate_series(1, %s) g"
#: Reads of the log by streams that wait for the lock of crowd_later().
WAITING = """
    SELECT l.pid FROM pg_locks l
     WHERE NOT l.granted AND l.relation = 'sse_pg.log'::regclass AND l.mode = 'AccessShareLock'
"""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The pages that were read."""
    made: list[tuple[Any, ...]] = []
    page = Store.page

    async def noted(self: Store, *args: Any, **kwargs: Any) -> Any:
        made.append(args)
        return await page(self, *args, **kwargs)

    monkeypatch.setattr(Store, "page", noted)
    return made


@asynccontextmanager
async def crowd(
    launch: Launcher, db: psycopg.Connection, events: int, streams: int, after: Callable[[int], int] = lambda _: 0
) -> AsyncIterator[tuple[Server, list[StreamReader]]]:
    """Open streams behind a ring that holds nothing."""
    server = await launch(ring_events=0)
    db.execute(BULK, (events,))
    await eventually(lambda: server.bus.hub.position == Cursor(events))
    async with Client(server.url) as client, AsyncExitStack() as stack:
        opened = [stack.enter_async_context(client.stream("a", last_event_id=str(after(n)))) for n in range(streams)]
        yield server, await asyncio.gather(*opened)


def waiting(db: psycopg.Connection) -> list[int]:
    return [row[0] for row in db.execute(WAITING)]


async def test_a_crowd_reads_the_table_once(
    launch: Launcher, db: psycopg.Connection, reads: list[tuple[Any, ...]]
) -> None:
    async with crowd(launch, db, 120, 300) as (_, streams):
        for stream in streams:
            assert [block.json() for block in await stream.events(120)] == list(range(1, 121))
    assert len(reads) == 2, "a page of 50, and one of 100 for the rest"


async def test_each_cursor_is_read_by_itself(
    launch: Launcher, db: psycopg.Connection, reads: list[tuple[Any, ...]]
) -> None:
    async with crowd(launch, db, 40, 2 * MAX_CACHED_PAGES, lambda n: n) as (server, streams):
        for place, stream in enumerate(streams):
            assert [block.json() for block in await stream.events(40 - place)] == list(range(place + 1, 41))
        assert len(reads) == 2 * MAX_CACHED_PAGES
        assert len(server.bus.replay._cached) == MAX_CACHED_PAGES
        assert not server.bus.replay._reading


async def test_nothing_is_kept_over_a_new_position(
    launch: Launcher, db: psycopg.Connection, reads: list[tuple[Any, ...]]
) -> None:
    async with crowd(launch, db, 10, 1) as (server, (first,)):
        assert len(await first.events(10)) == 10
        db.execute(BULK, (1,))
        assert (await first.event()).id == "11"
        async with Client(server.url) as client, client.stream("a", last_event_id="0") as second:
            assert [block.id for block in await second.events(11)] == [str(n) for n in range(1, 12)]
    assert len(reads) == 2


async def test_forms_are_not_mixed(launch: Launcher, db: psycopg.Connection) -> None:
    async with crowd(launch, db, 3, 1) as (server, (plain,)), Client(server.url) as client:
        assert [block.json() for block in await plain.events(3)] == [1, 2, 3]
        async with client.stream("a", last_event_id="0", envelope="true") as stream:
            assert [block.json()["payload"] for block in await stream.events(3)] == [1, 2, 3]
        async with client.stream("a,b", last_event_id="0") as stream:
            assert [block.json() for block in await stream.events(3)] == [1, 2, 3]


async def test_one_that_goes_takes_the_page_from_nobody(
    launch: Launcher, db: psycopg.Connection, database_url: str, reads: list[tuple[Any, ...]]
) -> None:
    with psycopg.connect(database_url, autocommit=True) as lock:
        async with crowd_later(launch, db, lock) as (server, streams):
            await eventually(lambda: waiting(db))
            streams[0].close()  # it is the one that began to read
            await eventually(lambda: len(server.bus.hub.streams) == 2)
            lock.execute("ROLLBACK")
            for stream in streams[1:]:
                assert [block.json() for block in await stream.events(10)] == list(range(1, 11))
    assert len(reads) == 1


async def test_an_error_reaches_all_and_all_try_again(
    launch: Launcher, db: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as lock:
        async with crowd_later(launch, db, lock) as (_, streams):
            await eventually(lambda: waiting(db))
            for pid in waiting(db):
                db.execute("SELECT pg_terminate_backend(%s)", (pid,))
            lock.execute("ROLLBACK")
            for stream in streams:
                assert [block.json() for block in await stream.events(10)] == list(range(1, 11))


@asynccontextmanager
async def crowd_later(
    launch: Launcher, db: psycopg.Connection, lock: psycopg.Connection
) -> AsyncIterator[tuple[Server, list[StreamReader]]]:
    """Open three streams, one after the other; every page waits until the lock goes."""
    server = await launch(ring_events=0)
    db.execute(BULK, (10,))
    await eventually(lambda: server.bus.hub.position == Cursor(10))
    lock.execute("BEGIN")
    lock.execute("LOCK TABLE sse_pg.log IN ACCESS EXCLUSIVE MODE")
    async with Client(server.url) as client, AsyncExitStack() as stack:
        yield (
            server,
            [await stack.enter_async_context(client.stream("a", last_event_id="0")) for _ in range(3)],
        )


LARGE = """
    INSERT INTO sse_pg.events (channel, payload)
    SELECT 'a', to_jsonb(g || repeat('x', 50000)) FROM generate_series(1, %s) g
"""


async def read_and_watch(server: Server, reader: StreamReader, events: int) -> int:
    """Read events of LARGE in order; return the most bytes that the server held for the stream meanwhile."""
    (stream,) = server.bus.hub.streams
    held = 0
    for number in range(1, events + 1):
        assert (await reader.event()).json() == str(number) + "x" * 50000
        held = max(held, stream.transport.get_write_buffer_size())
    return held


async def test_a_page_waits_for_the_client(launch: Launcher, db: psycopg.Connection) -> None:
    """A page of 50 events is ten times what a client is sent before it has to read."""
    server = await launch(ring_events=0)
    db.execute(LARGE, [200])
    async with Client(server.url) as client, client.stream("a", last_event_id="0") as reader:
        assert await read_and_watch(server, reader, 200) <= server.bus.settings.stream_buffer // 2 + 51000
        assert server.bus.replay.sources["table"] == 1


async def test_a_large_transaction_waits_for_the_client(launch: Launcher, db: psycopg.Connection) -> None:
    """Streams that are live when it comes read it from memory, at their own speed."""
    server = await launch(ring_bytes=10**8)
    async with Client(server.url) as client, client.stream("a") as reader:
        await eventually(lambda: all(stream.live for stream in server.bus.hub.streams))
        db.execute(LARGE, [100])
        assert await read_and_watch(server, reader, 100) <= server.bus.settings.stream_buffer // 2 + 51000
        await eventually(lambda: all(stream.live for stream in server.bus.hub.streams))
        db.execute("SELECT sse_pg.publish('a', 'm', '1')")
        assert (await reader.event()).json() == 1


async def test_a_client_that_reads_nothing_of_a_page_is_cut_off(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_pg.delivery.stream.STALL_TIMEOUT_S", 0.05)
    server = await launch(ring_events=0)
    db.execute(LARGE, [200])
    async with Client(server.url, receive_buffer=SMALL_BUFFER) as client, client.stream("a", last_event_id="0"):
        await eventually(lambda: server.bus.hub.closed[EndReason.SLOW] == 1)
