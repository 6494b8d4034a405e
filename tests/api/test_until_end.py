"""Streams with until=end: they end when each of their channels is finished, after everything that belongs before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio
from support.client import Client
from support.server import Launcher, Server
from support.streams import Block, StreamReader
from support.waiting import eventually

STREAM = "/api/events/stream"


@pytest_asyncio.fixture
async def server(launch: Launcher) -> Server:
    return await launch()


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with Client(server.url) as client:
        yield client


def finish(db: psycopg.Connection, channel: str) -> int:
    row = db.execute("SELECT sse_pg.finish(%s)", [channel]).fetchone()
    assert row is not None
    return int(row[0])


def publish(db: psycopg.Connection, channel: str, *payloads: int) -> int:
    """Publish each in a transaction of its own; return the last id."""
    number = 0
    for payload in payloads:
        row = db.execute("SELECT sse_pg.publish(%s, to_jsonb(%s::int))", [channel, payload]).fetchone()
        assert row is not None
        number = row[0]
    return number


async def rest(stream: StreamReader) -> list[Block]:
    """Return every block until the stream ends, but for heartbeats. It must end properly."""
    blocks: list[Block] = []
    while True:
        try:
            block = await stream.block()
        except EOFError:
            return blocks
        if not block.comment:
            blocks.append(block)


def shown(blocks: list[Block]) -> list[Any]:
    """Return payloads, and the channels that ended."""
    return [block.json()["channel"] if block.event == "sse-pg.end" else block.json() for block in blocks]


async def gone(client: Client, channels: str, cursor: str | None, **params: str) -> int:
    """Return the status of a stream that is asked for; the stream is closed."""
    headers = {} if cursor is None else {"Last-Event-ID": cursor}
    query = {"channels": channels, "until": "end", **params}
    async with client.session.get(client.url + STREAM, params=query, headers=headers) as response:
        if response.status == 204:
            assert await response.read() == b""
        return response.status


# ------------------------------------------------------------ live


async def test_a_live_stream_ends_after_the_end(client: Client, db: psycopg.Connection) -> None:
    async with client.stream("a", until="end") as stream, client.stream("a") as endless:
        publish(db, "a", 1, 2)
        number = finish(db, "a")
        blocks = await rest(stream)
        assert shown(blocks) == [1, 2, "a"]
        assert (blocks[-1].event, blocks[-1].data, blocks[-1].id) == ("sse-pg.end", '{"channel": "a"}', str(number))
        assert await gone(client, "a", stream.last_id) == 204
        publish(db, "a", 3)
        assert shown(await endless.events(4)) == [1, 2, "a", 3]
    assert await gone(client, "a", stream.last_id) == 200, "the channel is open again"


@pytest.mark.parametrize("envelope", ["true", "cloudevents"])
async def test_the_end_keeps_its_form(client: Client, db: psycopg.Connection, envelope: str) -> None:
    async with client.stream("a", until="end", envelope=envelope) as stream:
        finish(db, "a")
        assert [(block.event, block.data) for block in await rest(stream)] == [("sse-pg.end", '{"channel": "a"}')]


async def test_each_of_several_channels(client: Client, db: psycopg.Connection) -> None:
    async with client.stream("a,b", until="end") as stream:
        finish(db, "a")
        publish(db, "b", 1)
        publish(db, "a", 2)  # opens it again
        finish(db, "b")
        publish(db, "a", 3)
        assert shown(await stream.events(5)) == ["a", 1, 2, "b", 3]
        half = stream.last_id
        assert await gone(client, "a,b", half) == 200
        finish(db, "a")
        assert shown(await rest(stream)) == ["a"]
    assert await gone(client, "a,b", stream.last_id) == 204
    assert await gone(client, "b", half) == 204
    assert await gone(client, "a,b,c", stream.last_id) == 200, "nobody has finished c"


async def test_a_publish_in_the_same_transaction_opens_it_again(client: Client, db: psycopg.Connection) -> None:
    async with client.stream("a", until="end") as stream:
        with db.transaction():
            finish(db, "a")
            publish(db, "a", 1)
        assert shown(await stream.events(2)) == ["a", 1]
        finish(db, "a")
        assert shown(await rest(stream)) == ["a"]


async def test_a_crowd_ends(server: Server, client: Client, db: psycopg.Connection) -> None:
    """More streams than one delivery writes to at once."""
    server.bus.hub.fan_out.max_direct = 2
    async with (
        client.stream("a", until="end") as one,
        client.stream("a", until="end") as two,
        client.stream("a", until="end") as three,
        client.stream("a", until="end") as four,
    ):
        with db.transaction():
            publish(db, "a", 1)
            finish(db, "a")
        for stream in (one, two, three, four):
            assert shown(await rest(stream)) == [1, "a"]


# ------------------------------------------------------------ what a client missed


@pytest.mark.parametrize("ring", [1000, 1], ids=["ring", "table"])
async def test_a_client_gets_what_it_missed_and_then_the_end(
    launch: Launcher, db: psycopg.Connection, ring: int
) -> None:
    server = await launch(ring_events=ring)
    async with Client(server.url) as client:
        first = publish(db, "a", 1)
        publish(db, "a", 2, 3)
        end = finish(db, "a")
        publish(db, "b", 4)
        await server.bus.tail.fresh()
        for cursor, expected in (("0", [1, 2, 3, "a"]), (str(first), [2, 3, "a"]), (str(end - 1), ["a"])):
            async with client.stream("a", last_event_id=cursor, until="end") as stream:
                blocks = await rest(stream)
                assert shown(blocks) == expected
                assert blocks[-1].id == str(end)
        assert await gone(client, "a", str(end)) == 204
        publish(db, "a", 5)
        async with client.stream("a", last_event_id="0", until="end") as stream:
            assert shown(await stream.events(5)) == [1, 2, 3, "a", 5]
        async with client.stream("a", last_event_id=str(end), until="end") as stream:
            assert shown([await stream.event()]) == [5]


async def test_a_client_without_a_cursor(client: Client, db: psycopg.Connection) -> None:
    """It is told that the channel is finished, and the stream ends. Other channels are still waited for."""
    publish(db, "a", 1)
    finish(db, "a")
    async with client.stream("a", until="end") as stream:
        assert shown(await rest(stream)) == ["a"]
    assert await gone(client, "a", stream.last_id) == 204
    async with client.stream("a,b", until="end") as stream:
        assert shown([await stream.event()]) == ["a"]
        finish(db, "b")
        assert shown(await rest(stream)) == ["b"]


@pytest.mark.parametrize("cursor", ["what", "987654321"])
async def test_a_cursor_that_means_nothing(client: Client, db: psycopg.Connection, cursor: str) -> None:
    """The client lacks something, so it is not stopped: it is sent the gap event, and then the end."""
    finish(db, "a")
    async with client.stream("a", last_event_id=cursor, until="end") as stream:
        assert [block.event for block in await rest(stream)] == ["sse-pg.gap", "sse-pg.end"]


async def test_a_channel_without_events_is_not_finished(client: Client, db: psycopg.Connection) -> None:
    publish(db, "b", 1)
    for cursor in (None, "0", "1"):
        assert await gone(client, "a", cursor) == 200


async def test_after_the_end_was_purged(launch: Launcher, db: psycopg.Connection) -> None:
    """Nothing says any more that the channel was finished."""
    server = await launch(partition_size=1, keep_events=0)
    await eventually(lambda: server.bus.maintenance.made)

    def is_purged() -> bool:  # a purge waits until the server has noted what it has read
        db.execute("SELECT sse_pg.purge(1, NULL, NULL)")
        return db.execute("SELECT count(*) FROM sse_pg.events WHERE channel = 'a'").fetchone() == (0,)

    async with Client(server.url) as client:
        number = finish(db, "a")
        publish(db, "b", 1, 2)
        await eventually(is_purged)
        async with client.stream("a", last_event_id=str(number - 1), until="end") as stream:
            assert (await stream.event()).event == "sse-pg.gap"
            finish(db, "a")
            assert shown(await rest(stream)) == ["a"]


# ------------------------------------------------------------ what is in flight below the end


async def test_an_event_below_the_end_that_commits_later(
    client: Client, db: psycopg.Connection, database_url: str
) -> None:
    """The stream stays open for it. So does that of a client that comes back in between."""
    async with client.stream("a", until="end") as stream:
        with psycopg.connect(database_url) as late:
            number = publish(late, "a", 1)
            finish(db, "a")
            end = await stream.event()
            assert (end.event, end.id) == ("sse-pg.end", f"{number + 1}~{number}")
            assert await gone(client, "a", end.id) == 200
            late.commit()
        blocks = await rest(stream)
        assert shown(blocks[:1]) == [1]
        assert [block.event for block in blocks[1:]] in ([], ["sse-pg.position"])
    assert await gone(client, "a", end.id) == 200
    assert await gone(client, "a", stream.last_id) == 204
    async with client.stream("a", last_event_id=end.id, until="end") as again:
        assert shown(await rest(again)) == [1]


async def test_an_event_below_the_end_that_is_rolled_back(
    client: Client, db: psycopg.Connection, database_url: str
) -> None:
    """Nothing comes, but the client needs a cursor without the gap: otherwise it would come back for ever."""
    async with client.stream("a", until="end") as stream:
        with psycopg.connect(database_url) as late:
            publish(late, "a", 1)
            finish(db, "a")
            end = await stream.event()
            late.rollback()
        assert [block.event for block in await rest(stream)] == ["sse-pg.position"]
    assert await gone(client, "a", stream.last_id) == 204
    async with client.stream("a", last_event_id=end.id, until="end") as again:
        assert [block.event for block in await rest(again)] == ["sse-pg.position"]
    assert await gone(client, "a", again.last_id) == 204


# ------------------------------------------------------------ what happens meanwhile


async def test_a_server_that_begins_anew_looks_again(server: Server, client: Client, db: psycopg.Connection) -> None:
    """After it has passed events over, it knows nothing of the channels that its streams wait for."""
    async with client.stream("a,b", until="end") as stream:
        finish(db, "a")
        assert shown([await stream.event()]) == ["a"]
        server.bus.hub.begin(server.bus.hub.position)
        finish(db, "b")
        assert shown(await rest(stream)) == ["b"]


async def test_a_channel_that_is_revoked_is_not_waited_for(
    server: Server, client: Client, db: psycopg.Connection
) -> None:
    async with client.stream("a,b", until="end", denied="skip") as stream:
        await eventually(lambda: all(each.live for each in server.bus.hub.streams))
        finish(db, "a")
        assert shown([await stream.event()]) == ["a"]
        db.execute(
            "CREATE OR REPLACE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean"
            " LANGUAGE sql STABLE AS $$ SELECT channel <> 'b' $$"
        )
        db.execute("SELECT sse_pg.revoke()")
        assert [block.event for block in await rest(stream)] == ["sse-pg.denied"]


async def test_nothing_is_kept_of_streams_that_ended(server: Server, client: Client, db: psycopg.Connection) -> None:
    async with client.stream("a", until="end") as stream:
        finish(db, "a")
        await rest(stream)
    await eventually(lambda: not server.bus.hub.streams)
    assert await gone(client, "a", stream.last_id) == 204
    assert not server.bus.hub.ends


@pytest.mark.parametrize(
    ("query", "detail"),
    [("channels=a&until=now", "must be end"), ("userId=u&until=end", "needs channels")],
)
async def test_refused(client: Client, query: str, detail: str) -> None:
    status, body = await client.get(f"{STREAM}?{query}")
    assert status == 422
    assert detail in body["errors"][0]["detail"]


async def test_the_204_may_not_be_cached(client: Client, db: psycopg.Connection) -> None:
    number = finish(db, "a")
    async with aiohttp.ClientSession() as session:
        url = f"{client.url}{STREAM}?channels=a&until=end&lastEventId={number}"
        async with session.get(url) as response:
            assert (response.status, response.headers["Cache-Control"]) == (204, "no-store")


async def test_with_the_latest_events(client: Client, db: psycopg.Connection) -> None:
    """The end is the latest event of a channel that is finished."""
    publish(db, "a", 1, 2, 3)
    finish(db, "a")
    async with client.stream("a", until="end", latest="3") as stream:
        blocks = await rest(stream)
        assert shown(blocks) == [2, 3, "a"]
    assert await gone(client, "a", blocks[-1].id) == 204
    assert await gone(client, "a", None, latest="3") == 200
