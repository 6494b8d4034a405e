"""latest=N: a stream begins with the last events of its channels, and goes on without a gap or a repetition."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.streams import Block
from support.waiting import eventually

from sse_pg.core.cursor import Cursor
from sse_pg.db.store import Store
from sse_pg.delivery import latest_events

pytestmark = pytest.mark.oldest

ROWS = "INSERT INTO sse_pg.events (channel, payload) SELECT %s, to_jsonb(n) FROM generate_series(%s::int, %s) n"


@pytest.fixture
async def behind(launch: Launcher) -> AsyncIterator[Client]:
    """A client of a server that keeps nothing in memory."""
    server = await launch(ring_events=0)
    async with Client(server.url) as made:
        yield made


def put(db: psycopg.Connection, channel: str, first: int, last: int) -> None:
    db.execute(ROWS, (channel, first, last))


def ids(blocks: list[Block]) -> list[int]:
    return [int(block.data) for block in blocks]


async def test_first_the_last_events_then_what_follows(client: Client, db: psycopg.Connection) -> None:
    put(db, "a", 1, 5)
    put(db, "b", 6, 7)
    async with client.stream("a", latest="2") as stream:
        first = await stream.events(2)
        assert ids(first) == [4, 5]
        assert stream.hello.id == "3"
        assert [block.id for block in first] == ["4", "5"]
        assert await client.publish("a", 8) == 8
        assert ids([await stream.event()]) == [8]


async def test_without_a_connection_that_listens(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(listen_database_url="none")
    put(db, "a", 1, 5)
    async with Client(server.url) as client, client.stream("a", latest="2") as stream:
        assert ids(await stream.events(2)) == [4, 5]
        await client.publish("a", 6)
        assert ids([await stream.event()]) == [6]


async def test_a_channel_with_fewer_events_and_one_with_none(client: Client, db: psycopg.Connection) -> None:
    put(db, "a", 1, 2)
    async with client.stream("a,empty", latest="1000") as stream:
        assert ids(await stream.events(2)) == [1, 2]
        await client.publish("empty", 3)
        assert ids([await stream.event()]) == [3]
    async with client.stream("nothing", latest="3") as stream:
        assert stream.hello.id == "3"


async def test_of_each_channel_in_the_order_of_the_ids(client: Client, db: psycopg.Connection) -> None:
    for n in range(10):  # a: 1, 4, 7 ...; b: 2, 5 ...; of c only three: 3, 6, 9
        for place, channel in enumerate("ab" if n > 2 else "abc", 1):
            number = 3 * n + place
            db.execute("SELECT setval('sse_pg.events_id_seq', %s, false)", (number,))
            put(db, channel, number, number)
    async with client.stream("c,a,b", latest="2") as stream:
        assert ids(await stream.events(6)) == [6, 9, 25, 26, 28, 29]


@pytest.mark.parametrize("parameter", ["header", "lastEventId", "last_event_id"])
async def test_with_a_cursor_it_has_no_effect(client: Client, db: psycopg.Connection, parameter: str) -> None:
    put(db, "a", 1, 9)
    where: dict[str, Any] = {"last_event_id": "7"} if parameter == "header" else {}
    params = {} if where else {parameter: "7"}
    async with client.stream("a", latest="5", **where, **params) as stream:
        assert ids(await stream.events(2)) == [8, 9]


@pytest.mark.parametrize("number", ["0", "1001", "-1", "x", ""])
async def test_other_numbers_are_refused(client: Client, number: str) -> None:
    status, body = await client.get(f"/api/events/stream?channels=a&latest={number}")
    assert status == 422
    assert body["errors"] == [{"field": "latest", "detail": "must be a whole number from 1 to 1000"}]


async def test_too_many_events_are_refused(client: Client) -> None:
    names = ",".join(f"c{n}" for n in range(11))
    status, body = await client.get(f"/api/events/stream?channels={names}&latest=1000")
    assert status == 422
    assert body["errors"] == [{"field": "latest", "detail": "1000 for each of 11 channels are more than 10000 events"}]
    async with client.stream(names, latest="1000", last_event_id="0"):
        pass


async def test_the_channels_of_a_user(client: Client, db: psycopg.Connection) -> None:
    put(db, "a", 1, 3)
    put(db, "b", 4, 6)
    for channel in "ab":
        await client.post("/api/events/channels/subscribe", {"userId": "7", "channel": channel})
    async with client.stream(userId="7", latest="1") as stream:
        assert ids(await stream.events(2)) == [3, 6]


@pytest.mark.parametrize("chunk", [2, 50])
async def test_a_stream_that_is_cut_in_the_first_events_gets_the_rest(
    behind: Client, db: psycopg.Connection, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latest_events, "CHUNK_EVENTS", chunk)
    for n in range(6):  # a is quiet and b busy, so that events of a lie among events of b that are not wanted
        put(db, "a", 100 * n, 100 * n)
        put(db, "b", 100 * n + 1, 100 * n + 9)
    quiet, busy = [100, 200, 300, 400, 500], [505, 506, 507, 508, 509]
    for taken in range(11):
        async with behind.stream("a,b", latest="5") as stream:
            begun = ids(await stream.events(taken))
            cursor = stream.last_id
        async with behind.stream("a,b", latest="5", last_event_id=cursor) as stream:
            assert begun + ids(await stream.events(10 - taken)) == quiet + busy
            await behind.publish("b", 1000 + taken)
            assert ids([await stream.event()]) == [1000 + taken]
        busy = [*busy[1:], 1000 + taken]


async def test_transactions_that_are_open_when_it_begins(
    behind: Client, db: psycopg.Connection, database_url: str
) -> None:
    put(db, "a", 1, 3)
    with psycopg.connect(database_url) as open_one:
        open_one.execute(ROWS, ("a", 4, 5))
        put(db, "b", 6, 7)
        put(db, "a", 8, 9)
        async with behind.stream("a,b", latest="3") as stream:
            first = await stream.events(2)
            assert ids(first) == [3, 6]
            cursor = stream.last_id
        open_one.commit()
        async with behind.stream("a,b", latest="3", last_event_id=cursor) as stream:
            # 4 and 5 were not among the last when the stream began: they came later.
            assert sorted(ids(await stream.events(5))) == [4, 5, 7, 8, 9]
            await behind.publish("a", 10)
            assert ids([await stream.event()]) == [10]


async def test_transactions_that_commit_while_it_begins(
    launch: Launcher, db: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch(ring_events=0, order_wait=0.0)
    put(db, "a", 1, 3)
    newest = Store.newest
    with psycopg.connect(database_url) as open_one:
        open_one.execute(ROWS, ("a", 4, 5))
        put(db, "a", 6, 6)
        await eventually(lambda: server.bus.hub.position == Cursor.parse("6~1-2"))

        async def late(self: Store, *args: Any) -> Any:
            open_one.commit()  # now they are visible, but the position does not have them
            return await newest(self, *args)

        monkeypatch.setattr(Store, "newest", late)
        async with Client(server.url) as client, client.stream("a", latest="2") as stream:
            assert sorted(ids(await stream.events(4))) == [3, 4, 5, 6]
            await client.publish("a", 7)
            assert ids([await stream.event()]) == [7]


async def test_what_is_erased_in_between_is_no_gap(
    behind: Client, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        put(db, "a", 100 * n, 100 * n)
        put(db, "b", 100 * n + 1, 100 * n + 9)
    newest = Store.newest

    async def then_erased(self: Store, *args: Any) -> Any:
        found = await newest(self, *args)
        db.execute("SELECT sse_pg.erase('a', containing => '200')")
        return found

    monkeypatch.setattr(Store, "newest", then_erased)
    async with behind.stream("a,b", latest="3") as stream:
        assert ids(await stream.events(5)) == [300, 400, 407, 408, 409]


async def test_what_is_purged_in_between_is_announced(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch(ring_events=0)
    for n in range(3):
        put(db, "a", 100 * n, 100 * n)
        put(db, "b", 100 * n + 1, 100 * n + 9)
    newest = Store.newest

    async def then_purged(self: Store, *args: Any) -> Any:
        found = await newest(self, *args)
        db.execute("DELETE FROM sse_pg.events WHERE id <= 15")
        db.execute("UPDATE sse_pg.log SET purged_to = 15")
        return found

    monkeypatch.setattr(Store, "newest", then_purged)
    async with Client(server.url) as client, client.stream("a,b", latest="2") as stream:
        gap = await stream.event()
        assert gap.event == "sse-pg.gap"
        assert gap.json()["reason"] == "expired"
        assert ids(await stream.events(3))[0] == 200


async def test_of_a_channel_that_is_finished_the_end_is_the_last_event(client: Client, db: psycopg.Connection) -> None:
    put(db, "a", 1, 3)
    db.execute("SELECT sse_pg.finish('a')")
    async with client.stream("a", latest="2", until="end") as stream:
        last = await stream.events(2)
        assert [(block.event, block.data) for block in last] == [("message", "3"), ("sse-pg.end", '{"channel": "a"}')]
        await stream.ended()
