"""GET /api/events/stream."""

from __future__ import annotations

import asyncio
import shutil
import zlib
from typing import Any

import psycopg
import pytest
from support.client import Client
from support.server import Launcher, Server
from support.streams import Block, StreamReader, parse_block
from support.waiting import TIMEOUT_S, eventually

STREAM = "/api/events/stream"
SUBSCRIBE = "/api/events/channels/subscribe"
UNSUBSCRIBE = "/api/events/channels/unsubscribe"


async def refused(client: Client, query: str) -> tuple[int, dict[str, Any]]:
    status, body = await client.get(STREAM + query)
    return status, body


async def subscribe(client: Client, user: str, *channels: str) -> None:
    for channel in channels:
        status, _ = await client.post(SUBSCRIBE, {"userId": user, "channel": channel})
        assert status in (200, 201)


async def follows(server: Server, *channels: str) -> None:
    """Wait until the one open stream has these channels."""
    await eventually(lambda: [s.channels for s in server.bus.hub.streams] == [frozenset(channels)])


async def raw_stream(client: Client, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = client.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head)
    return reader, writer


async def read_until(reader: asyncio.StreamReader, mark: bytes) -> bytes:
    async with asyncio.timeout(TIMEOUT_S):
        return await reader.readuntil(mark)


# ------------------------------------------------------------ the form


async def test_the_response_s_head(client: Client) -> None:
    async with client.stream("a") as stream:
        headers = stream.response.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["Vary"] == "Accept-Encoding"
    assert "Content-Encoding" not in headers
    assert "Content-Length" not in headers


async def test_an_open_stream_is_no_request_to_aiohttp(launch: Launcher) -> None:
    server = await launch()
    assert server.runner.server is not None
    connections = server.runner.server.connections
    async with Client(server.url) as client:
        reader, writer = await raw_stream(
            client,
            b"GET /api/events/stream?channels=a HTTP/1.1\r\nHost: localhost\r\n\r\n"
            # What follows waits for an end that does not come.
            + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100,
        )
        await read_until(reader, b"\n\n\r\n")
        await eventually(lambda: all(each.live for each in server.bus.hub.streams))
        assert not [task for task in asyncio.all_tasks() if "Stream" in repr(task.get_coro())]
        writer.write(b"more of it" * 100_000)
        await writer.drain()
        number = await client.publish("a", {"item": "lamp"})
        assert f"id: {number}".encode() in await read_until(reader, b"\n\n\r\n")
        await eventually(lambda: not connections)
        writer.write_eof()
        async with asyncio.timeout(TIMEOUT_S):
            await reader.read()
        await eventually(lambda: not server.bus.hub.streams)
        writer.close()


async def test_a_stream_that_opens_while_the_server_stops_ends(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch()

    async def slow(*_: object) -> None:
        """The rule takes as long as the end of the other streams."""
        await server.bus.end_streams(0)

    monkeypatch.setattr(server.bus.access, "require", slow)
    async with Client(server.url) as client:
        reader, writer = await raw_stream(
            client, b"GET /api/events/stream?channels=a HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        async with asyncio.timeout(TIMEOUT_S):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"\r\n\r\n0\r\n\r\n")
        assert not server.bus.hub.streams
        writer.close()


async def test_the_first_block_begins_with_retry_and_id(client: Client) -> None:
    number = await client.publish("other", 1)
    reader, writer = await raw_stream(
        client, b"GET /api/events/stream?channels=a HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n"
    )
    await read_until(reader, b"\r\n\r\n")
    retry, *rest = (await read_until(reader, b"\n\n")).decode().split("\n")
    writer.close()
    assert rest == [f"id: {number}", "event: sse-pg.hello", "data: {}", "", ""]
    assert retry.startswith("retry: ")


async def test_retry_is_jittered_around_the_setting(launch: Launcher) -> None:
    server = await launch(retry=10.0)
    told = []
    async with Client(server.url) as client:
        for _ in range(12):
            async with client.stream("a") as stream:
                told.append(stream.hello.retry)
    assert all(value is not None and 5000 <= value <= 15000 for value in told)
    assert len(set(told)) > 1


async def test_an_event_s_block(client: Client) -> None:
    reader, writer = await raw_stream(client, b"GET /api/events/stream?channels=a HTTP/1.0\r\n\r\n")
    await read_until(reader, b"\r\n\r\n")
    await read_until(reader, b"\n\n")
    number = await client.publish("a", {"message": "Hello from the server!", "priority": "high"}, "SYSTEM_NOTIFICATION")
    block = await read_until(reader, b"\n\n")
    writer.close()
    assert block.decode() == (
        f"id: {number}\nevent: SYSTEM_NOTIFICATION\n"
        'data: {"message": "Hello from the server!", "priority": "high"}\n\n'
    )


@pytest.mark.parametrize("envelope", ["true", "1"])
async def test_an_envelope_has_it_all_and_no_event_name(client: Client, envelope: str) -> None:
    first = await client.publish("a", {"n": 2}, "T")
    _, history = await client.get("/api/events/history?channel=a")
    async with client.stream("a", envelope=envelope, lastEventId="0") as stream:
        replayed = await stream.block()
        second = await client.publish("a", "live", "U")
        live = await stream.block()
    assert replayed.json() == history["events"][0]
    assert [replayed.json()["id"], live.json()["id"]] == [first, second]
    assert (replayed.id, live.id) == (str(first), str(second))
    for block, event_type in [(replayed, "T"), (live, "U")]:
        assert block.event == "message"
        assert set(block.json()) == {"id", "channel", "eventType", "payload", "createdAt"}
        assert block.json()["eventType"] == event_type


@pytest.mark.parametrize("envelope", ["false", "0"])
async def test_without_an_envelope(client: Client, envelope: str) -> None:
    async with client.stream("a", envelope=envelope) as stream:
        await client.publish("a", 1, "T")
        assert (await stream.event()).event == "T"


async def test_http_1_0_gets_no_chunks(client: Client) -> None:
    await client.publish("a", "missed")
    reader, writer = await raw_stream(
        client, b"GET /api/events/stream?channels=a HTTP/1.0\r\nHost: localhost\r\nLast-Event-ID: 0\r\n\r\n"
    )
    head = (await read_until(reader, b"\r\n\r\n")).decode().lower()
    assert head.startswith("http/1.0 200")
    assert "transfer-encoding" not in head
    blocks = [parse_block((await read_until(reader, b"\n\n"))[:-2].decode()) for _ in range(2)]
    await client.publish("a", "live")
    blocks.append(parse_block((await read_until(reader, b"\n\n"))[:-2].decode()))
    writer.close()
    assert [block.data for block in blocks] == ["{}", '"missed"', '"live"']


async def test_http_1_1_gets_whole_chunks_and_the_last_one(launch: Launcher) -> None:
    server = await launch()
    async with Client(server.url) as client:
        reader, writer = await raw_stream(
            client, b"GET /api/events/stream?channels=a HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        assert b"transfer-encoding: chunked" in (await read_until(reader, b"\r\n\r\n")).lower()
        await eventually(lambda: any(s.live for s in server.bus.hub.streams))
        await client.publish("a", 1)
        data = b""
        while b"data: 1\n\n" not in data:
            size = int(await read_until(reader, b"\r\n"), 16)
            data += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        await server.bus.end_streams(0)
        assert await read_until(reader, b"0\r\n\r\n") == b"0\r\n\r\n"
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    ("accepted", "setting", "encoding"),
    [("gzip, deflate", "on", "gzip"), ("gzip", "off", None), ("deflate, br, gzip;q=0", "on", None), ("", "on", None)],
)
async def test_a_stream_is_compressed_if_the_client_accepts_that(
    launch: Launcher, accepted: str, setting: str, encoding: str | None
) -> None:
    server = await launch(compression=setting)
    async with (
        Client(server.url) as client,
        client.session.get(f"{client.url}{STREAM}?channels=a", headers={"Accept-Encoding": accepted}) as response,
    ):
        assert response.headers.get("Content-Encoding") == encoding


async def test_nothing_of_a_compressed_stream_is_held_back(launch: Launcher) -> None:
    """Missed events, a burst, single events, a large event and a heartbeat, each read when it is there."""
    server = await launch(heartbeat=0.2, compression="on")
    async with Client(server.url) as client:
        await client.publish("a", "missed " * 100)
        reader, writer = await raw_stream(
            client,
            b"GET /api/events/stream?channels=a HTTP/1.1\r\nHost: localhost\r\n"
            b"Accept-Encoding: gzip\r\nLast-Event-ID: 0\r\n\r\n",
        )
        assert b"content-encoding: gzip" in (await read_until(reader, b"\r\n\r\n")).lower()
        inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
        text = b""

        async def arrives(mark: bytes) -> None:
            nonlocal text
            while mark not in text:
                size = int(await read_until(reader, b"\r\n"), 16)
                assert size, "the stream has ended"
                text += inflate.decompress(await reader.readexactly(size))
                await reader.readexactly(2)
            text = text.partition(mark)[2]

        await arrives(b"event: sse-pg.hello")
        await arrives(b"missed missed")
        await eventually(lambda: any(s.live for s in server.bus.hub.streams))
        await client.publish("a", "single")
        await arrives(b'data: "single"\n\n')
        await client.post("/api/events/publish", [{"channel": "a", "payload": f"burst {n}"} for n in range(50)])
        await arrives(b'data: "burst 49"\n\n')
        await client.publish("a", "x" * 200_000)
        await arrives(b"x" * 200_000)
        await arrives(b"\n:\n")
        await server.bus.end_streams(0)
        assert await read_until(reader, b"0\r\n\r\n")
        assert await reader.read() == b""
        writer.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_reads_a_compressed_stream(launch: Launcher) -> None:
    server = await launch(compression="on")
    async with Client(server.url) as client:
        await client.post("/api/events/publish", [{"channel": "a", "payload": f"burst {n}"} for n in range(50)])
        url = f"{client.url}{STREAM}?channels=a&lastEventId=0"
        process = await asyncio.create_subprocess_exec(
            "curl", "--silent", "--no-buffer", "--compressed", "--include", url, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        head = await read_until(process.stdout, b"\r\n\r\n")
        assert b"content-encoding: gzip" in head.lower()
        await read_until(process.stdout, b'data: "burst 49"\n\n')
        await client.publish("a", "live")
        await read_until(process.stdout, b'data: "live"\n\n')
        process.terminate()
        await process.wait()


# ------------------------------------------------------------ what a stream gets


async def test_by_channels(client: Client) -> None:
    async with client.stream("a,b") as stream:
        for channel in ("a", "c", "b", "ab", "A", "a"):
            await client.publish(channel, channel)
        assert [e.json() for e in await stream.events(3)] == ["a", "b", "a"]


async def test_channels_in_several_parameters(client: Client) -> None:
    response = await client.session.get(f"{client.url}{STREAM}?channels=a,b&channels=c&channels=a")
    stream = StreamReader(response, Block())
    assert (await stream.block()).event == "sse-pg.hello"
    for channel in ("c", "x", "a", "b"):
        await client.publish(channel, channel)
    assert [e.json() for e in await stream.events(3)] == ["c", "a", "b"]
    stream.close()


async def test_by_user(client: Client) -> None:
    await subscribe(client, "u", "a", "b")
    await subscribe(client, "v", "c")
    async with client.stream(userId="u") as stream:
        for channel in ("a", "c", "b"):
            await client.publish(channel, channel)
        assert [e.json() for e in await stream.events(2)] == ["a", "b"]


async def test_by_user_and_channels(client: Client) -> None:
    await subscribe(client, "u", "a", "b", "c")
    async with client.stream("a,c", userId="u") as stream:
        for channel in ("a", "b", "c"):
            await client.publish(channel, channel)
        assert [e.json() for e in await stream.events(2)] == ["a", "c"]


async def test_both_and_not_subscribed_is_403_naming_the_missing(client: Client) -> None:
    await subscribe(client, "u", "a")
    await subscribe(client, "v", "b")
    status, body = await refused(client, "?userId=u&channels=b,a,c")
    assert status == 403
    assert body["errors"] == [{"field": "channels", "detail": "b"}, {"field": "channels", "detail": "c"}]
    assert "b, c" in body["detail"]
    assert (await refused(client, "?userId=nobody&channels=a"))[0] == 403


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "channels"),
        ("?channels=", "channels"),
        ("?channels=a,", "channels"),
        ("?channels=,", "channels"),
        ("?channels=a,,b", "channels"),
        ("?channels=a%20b", "channels"),
        ("?channels=*", "channels"),
        ("?channels=a%00", "channels"),
        ("?channels=a%0Ab", "channels"),
        ("?channels=" + "x" * 256, "channels"),
        ("?channels=a,b,c,d", "channels"),
        ("?channels=a,b&channels=c&channels=d", "channels"),
        ("?userId=", "userId"),
        ("?userId=%00&channels=a", "userId"),
        ("?userId=" + "u" * 256, "userId"),
        ("?channels=a&envelope=yes", "envelope"),
        ("?channels=a&envelope=", "envelope"),
    ],
)
async def test_a_wrong_parameter_is_named(launch: Launcher, query: str, field: str) -> None:
    server = await launch(max_channels=3)
    async with Client(server.url) as client:
        status, body = await refused(client, query)
        assert status == 422
        assert [error["field"] for error in body["errors"]] == [field]
        async with client.stream("a,b,c"):
            pass


async def test_a_client_that_goes_is_forgotten(launch: Launcher) -> None:
    server = await launch()
    async with Client(server.url) as client:
        await subscribe(client, "u", "a")
        async with client.stream("a"), client.stream(userId="u"):
            assert len(server.bus.hub.streams) == 2
        await eventually(lambda: not server.bus.hub.streams)
        assert server.bus.followers._streams == {}
        await client.publish("a", 1)


# ------------------------------------------------------------ following subscriptions


async def test_a_stream_follows_subscribe_and_unsubscribe(launch: Launcher) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream(userId="u") as stream:
        await subscribe(client, "u", "a")
        await follows(server, "a")
        await client.publish("a", "subscribed")
        assert (await stream.event()).json() == "subscribed"
        await subscribe(client, "u", "b")
        await follows(server, "a", "b")
        await client.post(UNSUBSCRIBE, {"userId": "u", "channel": "a"})
        await follows(server, "b")
        await client.publish("a", "not any more")
        await client.publish("b", "still")
        assert (await stream.event()).json() == "still"
        await client.post(UNSUBSCRIBE, {"userId": "u", "channel": "b"})
        await follows(server)
        await subscribe(client, "other", "b")
        await client.publish("b", "not any more")
        await subscribe(client, "u", "c")
        await follows(server, "c")
        await client.publish("c", "again")
        assert (await stream.event()).json() == "again"


async def test_a_stream_follows_the_table(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream(userId="u") as stream:
        db.execute("INSERT INTO sse_pg.subscriptions (user_id, channel) VALUES ('u', 'a'), ('v', 'x')")
        await follows(server, "a")
        db.execute("UPDATE sse_pg.subscriptions SET channel = 'b' WHERE user_id = 'u'")
        await follows(server, "b")
        db.execute("UPDATE sse_pg.subscriptions SET user_id = 'u' WHERE user_id = 'v'")
        await follows(server, "b", "x")
        db.execute("UPDATE sse_pg.subscriptions SET user_id = 'v' WHERE channel = 'b'")
        await follows(server, "x")
        db.execute("INSERT INTO sse_pg.subscriptions SELECT 'u', 'c' || g FROM generate_series(1, 3) g")
        await follows(server, "x", "c1", "c2", "c3")
        await client.publish("c2", "here")
        assert (await stream.event()).json() == "here"
        db.execute("DELETE FROM sse_pg.subscriptions WHERE channel LIKE 'c%'")
        await follows(server, "x")
        db.execute("TRUNCATE sse_pg.subscriptions")
        await follows(server)
        await client.publish("x", "not any more")
        db.execute("SELECT sse_pg.subscribe('u', 'y')")
        await follows(server, "y")
        await client.publish("y", "last")
        assert (await stream.event()).json() == "last"


async def test_a_stream_follows_one_of_many_users(launch: Launcher, db: psycopg.Connection) -> None:
    """More users in a statement than are notified by name."""
    server = await launch()
    async with Client(server.url) as client, client.stream(userId="u500"):
        db.execute("INSERT INTO sse_pg.subscriptions SELECT 'u' || g, 'a' FROM generate_series(1, 1000) g")
        await follows(server, "a")
        db.execute("DELETE FROM sse_pg.subscriptions")
        await follows(server)


async def test_a_subscription_that_is_rolled_back_changes_nothing(launch: Launcher, database_url: str) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream(userId="u") as stream:
        await subscribe(client, "u", "a")
        await follows(server, "a")
        with psycopg.connect(database_url) as conn:
            conn.execute("TRUNCATE sse_pg.subscriptions")
            conn.execute("SELECT sse_pg.subscribe('u', 'b')")
            conn.rollback()
        await client.publish("b", "no")
        await client.publish("a", "yes")
        assert (await stream.event()).json() == "yes"
        await follows(server, "a")


async def test_streams_on_other_servers_follow_too(launch: Launcher) -> None:
    servers = [await launch(), await launch()]
    async with Client(servers[0].url) as one, Client(servers[1].url) as two, two.stream(userId="u") as stream:
        await subscribe(one, "u", "a")
        await follows(servers[1], "a")
        await one.publish("a", 1)
        assert (await stream.event()).json() == 1


async def test_what_is_published_after_a_subscribe_arrives(client: Client) -> None:
    """Without any pause between the answer of the one and the other."""
    await subscribe(client, "u", "fixed")
    async with client.stream(userId="u") as stream:
        for n in range(60):
            await subscribe(client, "u", f"c{n}")
            await client.publish(f"c{n}", n)
            await client.publish("fixed", "mark")
            assert [e.json() for e in await stream.events(2)] == [n, "mark"]


async def test_a_user_and_channels_do_not_follow(launch: Launcher) -> None:
    server = await launch()
    async with Client(server.url) as client:
        await subscribe(client, "u", "a")
        async with client.stream("a", userId="u") as stream, client.stream(userId="u") as other:
            await subscribe(client, "u", "b")
            await eventually(lambda: frozenset("ab") in {s.channels for s in server.bus.hub.streams})
            await client.publish("b", "b")
            assert (await other.event()).json() == "b"
            await client.publish("a", "a")
            assert (await stream.event()).json() == "a"


# ------------------------------------------------------------ resuming


@pytest.fixture(params=["ring", "table"])
async def either(request: pytest.FixtureRequest, launch: Launcher) -> Any:
    """A client of a server that has recent events in memory, and of one that has to ask the table."""
    server = await launch(**({"ring_events": 0, "replay_page": 3} if request.param == "table" else {}))
    async with Client(server.url) as made:
        yield made


@pytest.mark.parametrize("name", ["Last-Event-ID", "lastEventId", "lastEventID", "last_event_id"])
async def test_resume(either: Client, name: str) -> None:
    ids = [await either.publish("a" if n % 2 else "b", n) for n in range(20)]
    cursor = str(ids[6])
    given: dict[str, Any] = {"last_event_id": cursor} if name == "Last-Event-ID" else {}
    if name in ("lastEventId", "lastEventID"):
        given = {name: cursor}
    if name == "last_event_id":
        response = await either.session.get(f"{either.url}{STREAM}?channels=a&last_event_id={cursor}")
        stream = StreamReader(response, Block())
        hello = await stream.block()
        await _resumed(either, stream, hello, cursor)
        stream.close()
        return
    async with either.stream("a", **given) as stream:
        await _resumed(either, stream, stream.hello, cursor)


async def _resumed(client: Client, stream: StreamReader, hello: Block, cursor: str) -> None:
    assert (hello.event, hello.id) == ("sse-pg.hello", cursor)
    assert [e.json() for e in await stream.events(7)] == [7, 9, 11, 13, 15, 17, 19]
    await client.publish("a", "live")
    assert (await stream.event()).json() == "live"


async def test_the_header_wins_over_the_query(either: Client) -> None:
    ids = [await either.publish("a", n) for n in range(6)]
    async with either.stream("a", last_event_id=str(ids[3]), lastEventId=str(ids[0])) as stream:
        assert [e.json() for e in await stream.events(2)] == [4, 5]


async def test_an_empty_header_leaves_it_to_the_query(either: Client) -> None:
    ids = [await either.publish("a", n) for n in range(3)]
    async with either.stream("a", last_event_id="", lastEventId=str(ids[0])) as stream:
        assert [e.json() for e in await stream.events(2)] == [1, 2]


async def test_zero_is_all_that_is_retained(either: Client) -> None:
    for n in range(30):
        await either.publish("a", n)
    async with either.stream("a", lastEventId="0") as stream:
        assert stream.hello.id == "0"
        assert [e.json() for e in await stream.events(30)] == list(range(30))


async def test_without_a_cursor_from_now_on(either: Client) -> None:
    last = await either.publish("a", "before")
    async with either.stream("a") as stream:
        await either.publish("a", "after")
        assert (await stream.event()).json() == "after"
    assert stream.hello.id == str(last)


async def test_a_client_that_drops_after_the_hello_resumes_there(either: Client) -> None:
    await either.publish("a", "before")
    async with either.stream("a") as stream:
        cursor = stream.hello.id
    await either.publish("a", "meanwhile")
    async with either.stream("a", last_event_id=cursor) as stream:
        assert (await stream.event()).json() == "meanwhile"


async def test_every_id_resumes_exactly(either: Client, database_url: str) -> None:
    """With transactions that commit out of order, and one that does not commit at all."""
    with psycopg.connect(database_url) as late, psycopg.connect(database_url) as never:
        async with either.stream("a") as stream:
            cursors = [stream.hello.id]
            late.execute("SELECT sse_pg.publish('a', 'm', '\"late\"')")
            await either.publish("a", 1)
            never.execute("SELECT sse_pg.publish('a', 'm', '\"never\"')")
            await either.publish("a", 2)
            seen = await stream.events(2)
            never.rollback()
            await either.publish("a", 3)
            seen += await stream.events(1)
            late.commit()
            seen += await stream.events(1)
            await either.publish("a", 4)
            seen += await stream.events(1)
    values = [event.json() for event in seen]
    assert values == [1, 2, 3, "late", 4]
    cursors += [event.id for event in seen]
    await either.publish("a", "end")
    for place, cursor in enumerate(cursors):
        async with either.stream("a", last_event_id=cursor) as stream:
            rest = []
            while (event := await stream.event()).json() != "end":
                rest.append(event.json())
        assert sorted(map(str, rest)) == sorted(map(str, values[place:]))


async def test_a_cursor_of_another_server(launch: Launcher) -> None:
    servers = [await launch(), await launch(ring_events=0)]
    async with Client(servers[0].url) as one, Client(servers[1].url) as two:
        async with one.stream("a") as stream:
            await one.publish("a", 1)
            await stream.event()
            cursor = stream.last_id
        await one.publish("a", 2)
        async with two.stream("a", last_event_id=cursor) as stream:
            assert (await stream.event()).json() == 2


async def test_a_plain_id_above_an_open_transaction(client: Client, database_url: str) -> None:
    """It means everything up to it; what was in flight comes when it commits."""
    with psycopg.connect(database_url) as slow:
        slow.execute("SELECT sse_pg.publish('a', 'm', '\"slow\"')")
        number = await client.publish("a", "fast")
        async with client.stream("a", lastEventId=str(number)) as stream:
            await client.publish("a", "next")
            assert (await stream.event()).json() == "next"
            slow.commit()
            assert (await stream.event()).json() == "slow"


async def test_a_plain_id_that_was_rolled_back(client: Client, database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        row = conn.execute("SELECT sse_pg.publish('a', 'm', '1')").fetchone()
        conn.rollback()
    async with client.stream("a", lastEventId=str(row[0] if row else None)) as stream:
        await client.publish("a", "next")
        assert (await stream.event()).json() == "next"


UNREADABLE = [
    "x",
    "-1",
    "1.5",
    "1~",
    "~1",
    "1~0",
    "1~5",
    "1,2",
    " 1 2",
    "１",
    "9" * 19,
    "1" * 20,
    "1" * 500,
    "é",
    "null",
]


@pytest.mark.parametrize("cursor", UNREADABLE)
async def test_a_cursor_that_means_nothing_gets_a_gap_and_goes_on_live(client: Client, cursor: str) -> None:
    await client.publish("a", "before")
    async with client.stream("a", lastEventId=cursor) as stream:
        gap = await stream.event()
        await client.publish("a", "live")
        live = await stream.event()
    assert gap.event == "sse-pg.gap"
    assert gap.json() == {"reason": "unknown", "after": cursor[:128], "before": gap.id}
    assert live.json() == "live"
    async with client.stream("a", last_event_id=gap.id) as stream:
        assert (await stream.event()).json() == "live"


async def test_a_cursor_header_of_odd_bytes(client: Client) -> None:
    head = b"GET /api/events/stream?channels=a HTTP/1.0\r\nHost: localhost\r\nLast-Event-ID: \xff\xfe\xe9\r\n\r\n"
    reader, writer = await raw_stream(client, head)
    assert (await read_until(reader, b"\r\n\r\n")).startswith(b"HTTP/1.0 200")
    await read_until(reader, b"\n\n")
    gap = parse_block((await read_until(reader, b"\n\n"))[:-2].decode())
    assert (gap.event, gap.json()["reason"]) == ("sse-pg.gap", "unknown")
    await client.publish("a", "live")
    assert parse_block((await read_until(reader, b"\n\n"))[:-2].decode()).json() == "live"
    writer.close()


async def test_a_cursor_beyond_the_sequence(either: Client) -> None:
    last = await either.publish("a", "before")
    async with either.stream("a", lastEventId=str(last + 1000)) as stream:
        gap = await stream.event()
        await either.publish("a", "live")
        live = await stream.event()
    assert gap.event == "sse-pg.gap"
    assert gap.json() == {"reason": "unknown", "after": str(last + 1000), "before": str(last)}
    assert (gap.id, live.json()) == (str(last), "live")


async def test_a_cursor_on_an_empty_log(client: Client) -> None:
    async with client.stream("a", lastEventId="5") as stream:
        gap = await stream.event()
        assert (gap.event, gap.json()["reason"]) == ("sse-pg.gap", "unknown")
        await client.publish("a", 1)
        assert (await stream.event()).json() == 1


async def test_a_cursor_below_what_was_purged(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute("INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g) FROM generate_series(1, 10) g")
    db.execute("DELETE FROM sse_pg.events WHERE id <= 6")
    db.execute("UPDATE sse_pg.log SET purged_to = 6")
    server = await launch()
    async with Client(server.url) as client:
        async with client.stream("a", lastEventId="2") as stream:
            gap, *events = await stream.events(5)
        assert gap.event == "sse-pg.gap"
        assert gap.json() == {"reason": "expired", "after": "2", "before": "6"}
        assert gap.id == "6"
        assert [e.json() for e in events] == [7, 8, 9, 10]
        async with client.stream("a", lastEventId="6") as stream:
            assert [e.json() for e in await stream.events(4)] == [7, 8, 9, 10]


async def test_a_user_s_stream_resumes(either: Client) -> None:
    await subscribe(either, "u", "a", "b")
    first = await either.publish("a", 1)
    for channel, value in [("c", 2), ("b", 3), ("a", 4)]:
        await either.publish(channel, value)
    async with either.stream(userId="u", lastEventId=str(first)) as stream:
        assert [e.json() for e in await stream.events(2)] == [3, 4]


# ------------------------------------------------------------ quiet streams


async def test_a_silent_stream_gets_heartbeats(launch: Launcher) -> None:
    server = await launch(heartbeat=0.1)
    async with Client(server.url) as client, client.stream("a") as stream:
        for _ in range(3):
            block = await stream.block()
            assert (block.comment, block.data, block.id, block.retry) == (True, "", None, None)
        await client.publish("a", 1)
        assert (await stream.event()).json() == 1
        assert (await stream.block()).comment


async def test_heartbeats_come_only_on_silence(launch: Launcher) -> None:
    """The heartbeat, told the time: a write puts the next heartbeat off by a whole interval."""
    server = await launch(heartbeat=1000.0, position_refresh=80000.0)
    async with Client(server.url) as client, client.stream("a") as reader:
        (stream,) = server.bus.hub.streams
        await eventually(lambda: stream.live)
        heartbeat, began = server.bus.heartbeat, stream.written_at
        before = stream.sent_bytes
        heartbeat._check(stream, began + 999)
        assert stream.sent_bytes == before
        stream.written_at = began + 999  # as an event would
        heartbeat._check(stream, began + 1998)
        assert stream.sent_bytes == before
        # Not to the second: the sum of two floats may be a little less.
        heartbeat._check(stream, began + 2000)
        assert stream.sent_bytes > before
        assert (await reader.block()).comment


async def test_a_quiet_stream_is_told_its_position(launch: Launcher) -> None:
    server = await launch(heartbeat=0.1, position_refresh=0.2)
    async with Client(server.url) as client, client.stream("quiet") as stream:
        number = await client.publish("busy", 1)
        while (block := await stream.block()).comment:
            pass
        assert (block.event, block.id, block.data, block.retry) == ("sse-pg.position", str(number), "{}", None)
        # It does not move, so it is not told again.
        assert [(await stream.block()).comment for _ in range(5)] == [True] * 5
        number = await client.publish("busy", 2)
        while (block := await stream.block()).comment:
            pass
        assert (block.event, block.id) == ("sse-pg.position", str(number))
    missed = await client_again(server, stream.last_id)
    assert missed == "after"


async def client_again(server: Server, cursor: str) -> Any:
    async with Client(server.url) as client:
        await client.publish("quiet", "after")
        async with client.stream("quiet", last_event_id=cursor) as stream:
            assert stream.hello.id == cursor
            return (await stream.event()).json()


async def test_a_position_has_the_gaps_of_what_is_in_flight(launch: Launcher, database_url: str) -> None:
    server = await launch(heartbeat=0.1, position_refresh=0.2)
    with psycopg.connect(database_url) as slow:
        async with Client(server.url) as client:
            async with client.stream("quiet") as stream:
                slow.execute("SELECT sse_pg.publish('quiet', 'm', '\"slow\"')")
                await client.publish("busy", 1)
                while (block := await stream.block()).comment:
                    pass
                assert block.event == "sse-pg.position"
            slow.commit()
            async with client.stream("quiet", last_event_id=block.id) as stream:
                assert (await stream.event()).json() == "slow"


async def test_retry_and_id_never_stand_alone(launch: Launcher) -> None:
    server = await launch(heartbeat=0.1, position_refresh=0.2)
    async with Client(server.url) as client, client.stream("a", lastEventId="nonsense") as stream:
        blocks = [stream.hello]
        while sum(block.comment for block in blocks) < 6:
            blocks.append(await stream.block())
            if len(blocks) in (3, 5):
                await client.publish("a" if len(blocks) == 3 else "b", 1)
    assert {block.event for block in blocks} >= {"sse-pg.hello", "sse-pg.gap", "message", "sse-pg.position"}
    for block in blocks:
        if block.comment:
            assert (block.id, block.retry, block.data) == (None, None, "")
        else:
            assert block.data
            assert block.id


async def test_the_end_of_the_server_is_a_clean_end(launch: Launcher) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        await server.bus.end_streams(0)
        with pytest.raises(EOFError):
            await stream.block()
