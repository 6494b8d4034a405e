"""What one client can take of a server, and what it is told when it wants more."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from support.client import Client
from support.server import Launcher
from support.tokens import SECRET, bearer, token
from support.waiting import TIMEOUT_S, eventually

from sse_pg.db.draft import Draft
from sse_pg.errors import SettingError
from sse_pg.http import connections, publish_body
from sse_pg.http.limits import Proxies, PublishRate, StreamLimits
from sse_pg.http.problem import Problem

# ---- whose request it is


def client_of(proxies: str, peer: str, *forwarded: str) -> str:
    request = make_mocked_request("GET", "/", headers=[("X-Forwarded-For", value) for value in forwarded])
    return Proxies(proxies).client(request.clone(remote=peer))


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded", "client"),
    [
        ("", "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.0/8", "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.0/8", "10.1.2.3", [], "10.1.2.3"),
        ("10.0.0.0/8", "10.1.2.3", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.0/8", "10.1.2.3", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.0/8", "10.1.2.3", ["203.0.113.9", "198.51.100.7, 10.9.9.9"], "198.51.100.7"),
        ("10.0.0.0/8, ::1", "::1", ["2001:db8::7"], "2001:db8::7"),
        ("10.0.0.0/8", "::ffff:10.1.2.3", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.0/8", "10.1.2.3", ["198.51.100.7, nonsense"], "10.1.2.3"),
    ],
)
def test_the_address_of_a_client(proxies: str, peer: str, forwarded: list[str], client: str) -> None:
    assert client_of(proxies, peer, *forwarded) == client


def test_proxies_that_are_no_addresses_stop_the_start() -> None:
    with pytest.raises(SettingError, match="SSE_PG_TRUSTED_PROXIES='nginx'"):
        Proxies("nginx")


# ---- streams


def test_streams_are_given_back() -> None:
    limits = StreamLimits(per_user=1, per_address=2)
    limits.take("u", "192.0.2.1")
    with pytest.raises(Problem) as refused:
        limits.take("u", "192.0.2.9")
    assert (refused.value.status, "user" in refused.value.detail) == (429, True)
    limits.take("v", "192.0.2.1")
    with pytest.raises(Problem, match="address"):
        limits.take(None, "192.0.2.1")
    limits.give_back("v", "192.0.2.1")
    limits.take(None, "192.0.2.1")
    limits.give_back(None, "192.0.2.1")
    limits.give_back("u", "192.0.2.1")
    assert not limits._open


def test_one_household_is_one_address() -> None:
    limits = StreamLimits(per_user=0, per_address=1)
    limits.take(None, "2001:db8::1")
    with pytest.raises(Problem):
        limits.take(None, "2001:db8::ffff:2")
    limits.take(None, "2001:db8:0:1::1")
    limits.take(None, "192.0.2.1")
    with pytest.raises(Problem):
        limits.take(None, "2001:db8::1")


async def test_too_many_streams_of_one_user_and_of_one_address(launch: Launcher) -> None:
    server = await launch(max_streams_user=1, max_streams_address=2)
    async with Client(server.url) as client:
        assert (await client.post("/api/events/channels/subscribe", {"userId": "u", "channel": "a"}))[0] == 201
        async with client.stream(userId="u"):
            status, body, response = await client.request("GET", "/api/events/stream?userId=u")
            assert (status, body["detail"]) == (429, "Stream limit reached: 1 on this server for one user.")
            assert int(response.headers["Retry-After"]) > 0
            # An EventSource is told as well: it gives up for good, which is what the limit is there for.
            event_source = {"Accept": "text/event-stream"}
            assert (await client.request("GET", "/api/events/stream?userId=u", headers=event_source))[0] == 429
            async with client.stream("a"):
                status, body = await client.get("/api/events/stream?channels=a")
                assert (status, body["detail"]) == (429, "Stream limit reached: 2 on this server for one address.")
        await eventually(lambda: not server.bus.hub.streams)
        async with client.stream(userId="u"):
            pass


async def test_the_address_behind_a_proxy(launch: Launcher) -> None:
    server = await launch(max_streams_address=1, trusted_proxies="127.0.0.0/8")
    async with Client(server.url) as client:
        client.session.headers["X-Forwarded-For"] = "198.51.100.7"
        async with client.stream("a"):
            assert (await client.get("/api/events/stream?channels=a"))[0] == 429
            client.session.headers["X-Forwarded-For"] = "198.51.100.8"
            async with client.stream("a"):
                pass


# ---- publishing


def test_a_rate_of_events() -> None:
    now = 100.0
    rate = PublishRate(2.0, lambda: now)
    for _ in range(2):
        rate.take("a", 1)
    with pytest.raises(Problem) as refused:
        rate.check("a")
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    rate.check("b")
    now += 0.5
    rate.take("a", 21)  # a batch of any size, paid off afterwards
    now += 10.4
    with pytest.raises(Problem):
        rate.check("a")
    now += 0.1
    rate.check("a")


def test_slow_rates_and_their_retry() -> None:
    now = 0.0
    rate = PublishRate(0.1, lambda: now)
    rate.take("a", 1)
    with pytest.raises(Problem) as refused:
        rate.check("a")
    assert refused.value.headers == {"Retry-After": "10"}


def test_who_has_paid_is_forgotten() -> None:
    now = 0.0
    rate = PublishRate(10.0, lambda: now)
    for number in range(5000):
        rate.take(str(number), 1)
        now += 0.05
    assert len(rate._full_at) <= 1001


async def test_too_many_publishes(launch: Launcher) -> None:
    server = await launch(publish_rate=0.01)
    async with Client(server.url) as client:
        await client.publish("a", 1)
        event = {"channel": "a", "payload": 2}
        status, body, response = await client.request("POST", "/api/events/publish", json=event)
        assert (status, body["detail"]) == (
            429,
            "Publish rate limit reached (0.01 events per second); nothing was published.",
        )
        assert 90 <= int(response.headers["Retry-After"]) <= 100
        assert len((await client.get("/api/events/history?channel=a"))[1]["events"]) == 1


async def test_heads_that_come_before_their_bodies_do_not_pass_the_rate(launch: Launcher) -> None:
    server = await launch(publish_rate=0.01)
    body = b'{"channel": "a", "payload": 1}'
    opened = [await asyncio.open_connection(*port(server.url)) for _ in range(5)]
    for _, writer in opened:  # each is past the check of its head while no other has published
        writer.write(PUBLISH + b"Content-Length: %d\r\n\r\n" % len(body) + body[:1])
    await eventually(lambda: server.bus.limits.bodies.held == len(opened))
    for _, writer in opened:
        writer.write(body[1:])
    async with asyncio.timeout(TIMEOUT_S):
        statuses = [int((await reader.readline()).split()[1]) for reader, _ in opened]
    assert sorted(statuses) == [201, 429, 429, 429, 429]
    for _, writer in opened:
        writer.close()
    async with Client(server.url) as client:
        assert len((await client.get("/api/events/history?channel=a"))[1]["events"]) == 1


async def test_the_rate_of_a_household(launch: Launcher) -> None:
    server = await launch(publish_rate=0.01, trusted_proxies="127.0.0.0/8")
    async with Client(server.url) as client:
        for address, status in (("2001:db8::1", 201), ("2001:db8::ffff:2", 429), ("2001:db8:0:1::1", 201)):
            client.session.headers["X-Forwarded-For"] = address
            assert (await client.post("/api/events/publish", {"channel": "a", "payload": 1}))[0] == status


# ---- bytes that are no request, or come too slowly


def port(url: str) -> tuple[str, int]:
    host, _, number = url.removeprefix("http://").partition(":")
    return host, int(number)


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Read to the end of the connection, which is a reset if the server closes it before it has read everything."""
    found = b""
    async with asyncio.timeout(TIMEOUT_S):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                found += data
    return found


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    """Read one response that ends the connection."""
    head, _, body = (await rest(reader)).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert headers["content-type"].startswith("application/problem+json"), head
    told = json.loads(body)
    assert told["status"] == int(first.split()[1])
    return told["status"], headers, told


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"a" * connections.MAX_REQUEST_LINE_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (connections.MAX_HEADER_BYTES + 1) + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: 1\r\n" * connections.MAX_HEADERS + b"\r\n", 431),
        (b"\x16\x03\x01 this is TLS\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX : 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ],
    ids=["url", "header", "headers", "tls", "space", "nul", "smuggling"],
)
async def test_what_is_no_request_is_told_so(launch: Launcher, sent: bytes, status: int) -> None:
    server = await launch()
    reader, writer = await asyncio.open_connection(*port(server.url))
    writer.write(sent)
    assert (await answer(reader))[0] == status
    writer.close()


async def test_a_thousand_channels_fit_into_a_url(launch: Launcher) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream(",".join(f"{n:060}" for n in range(1000))):
        pass


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nX: "], ids=["silent", "dripping"])
async def test_a_head_that_never_ends_ends_the_connection(launch: Launcher, head: bytes) -> None:
    server = await launch(idle=0.5)
    reader, writer = await asyncio.open_connection(*port(server.url))
    writer.write(head)

    async def drip() -> None:
        while head:
            writer.write(b"a")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    assert await rest(reader) == b""
    dripping.cancel()
    writer.close()


async def test_a_kept_connection_is_closed_when_idle(launch: Launcher) -> None:
    server = await launch(idle=0.3)
    reader, writer = await asyncio.open_connection(*port(server.url))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(TIMEOUT_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert (await rest(reader)).count(b"HTTP/1.1") == 0  # the rest of the one answer, then the end
    writer.close()


async def test_a_stream_is_not_idle(launch: Launcher) -> None:
    server = await launch(idle=0.1, heartbeat=0.3)
    async with Client(server.url) as client, client.stream("a") as stream:
        for _ in range(3):
            assert (await stream.block()).comment


PUBLISH = b"POST /api/events/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def test_a_body_that_drips(launch: Launcher) -> None:
    server = await launch(body_seconds=0.5)
    reader, writer = await asyncio.open_connection(*port(server.url))
    writer.write(PUBLISH + b"Content-Length: 1000\r\n\r\n[")

    async def drip() -> None:
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(TIMEOUT_S):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    dripping.cancel()
    writer.close()
    await eventually(lambda: server.bus.limits.bodies.held == 0)


async def test_bodies_share_their_memory(launch: Launcher) -> None:
    server = await launch(max_bodies=10000)
    bodies = server.bus.limits.bodies
    first, holder = await asyncio.open_connection(*port(server.url))
    holder.write(PUBLISH + b"Content-Length: 9001\r\n\r\n" + b" " * 9000)
    await eventually(lambda: bodies.held == 9000)
    second, writer = await asyncio.open_connection(*port(server.url))
    writer.write(PUBLISH + b"Content-Length: 2000\r\n\r\n" + b" " * 2000)
    status, headers, _ = await answer(second)
    assert (status, "retry-after" in headers) == (503, True)
    await eventually(lambda: bodies.held == 9000)
    holder.write(b"x")
    async with asyncio.timeout(TIMEOUT_S):
        assert (await first.readline()).startswith(b"HTTP/1.1 400")
    await eventually(lambda: bodies.held == 0)
    for each in (holder, writer):
        each.close()


async def test_without_the_right_to_publish_no_body_is_read(launch: Launcher) -> None:
    server = await launch(token_secret=SECRET)
    reader, writer = await asyncio.open_connection(*port(server.url))
    authorization = f"Authorization: {bearer(token(subscribe=['*']))['Authorization']}\r\n".encode()
    writer.write(PUBLISH + authorization + b"Content-Length: 16000000\r\n\r\n")
    async with asyncio.timeout(TIMEOUT_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 403")
    assert server.bus.limits.bodies.held == 0
    writer.close()


async def test_a_channel_that_is_not_allowed_ends_the_decoding(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    decode = publish_body.Drafts._drafts

    def counted(self: publish_body.Drafts, events: list[publish_body.EventBody], first: int) -> list[Draft]:
        made.append(len(events))
        return decode(self, events, first)

    monkeypatch.setattr(publish_body.Drafts, "_drafts", counted)
    server = await launch(token_secret=SECRET)
    body = "[" + ",".join(['{"channel":"a","payload":1}'] * 90_000) + "]"
    async with Client(server.url, bearer(token(publish=["b"]))) as client:
        headers = {"Content-Type": "application/json"}
        status, _, _ = await client.request(
            "POST", "/api/events/publish", data=io.BytesIO(body.encode()), headers=headers
        )
    assert status == 403
    assert sum(made) < 3000


async def test_the_memory_of_bodies_counts_what_is_decoded(launch: Launcher) -> None:
    server = await launch(max_bodies=5_000_000)
    body = "[" + ",".join(['{"channel":"a","payload":1}'] * 50_000) + "]"
    assert len(body) < 2_000_000
    async with Client(server.url) as client:
        headers = {"Content-Type": "application/json"}
        status, _, _ = await client.request(
            "POST", "/api/events/publish", data=io.BytesIO(body.encode()), headers=headers
        )
        assert status == 503
        await eventually(lambda: server.bus.limits.bodies.held == 0)
        assert (await client.get("/api/events/history?channel=a"))[1]["events"] == []
        await client.publish("a", 1)


# ---- connections


async def test_connections_in_all(launch: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_REFUSALS", 1)
    server = await launch(max_connections=2)
    open_ones = [await asyncio.open_connection(*port(server.url)) for _ in range(2)]
    assert server.runner.server is not None
    web_server = server.runner.server
    await eventually(lambda: len(web_server.connections) == 2)
    reader, writer = await asyncio.open_connection(*port(server.url))
    told = SimpleNamespace(reader=reader, writer=writer)
    reader, writer = await asyncio.open_connection(*port(server.url))
    assert await rest(reader) == b""  # closed, and nothing is said
    told.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    status, headers, body = await answer(told.reader)
    assert (status, body["detail"]) == (503, "Connection limit reached (2 on this server); retry later.")
    assert int(headers["retry-after"]) > 0
    open_ones[0][1].close()
    await eventually(lambda: len(web_server.connections) == 1)
    async with Client(server.url) as client:
        assert (await client.get("/healthz"))[0] == 200
    for each in (open_ones[1][1], told.writer, writer):
        each.close()


async def test_streams_count_as_connections(launch: Launcher) -> None:
    server = await launch(max_connections=2)
    async with Client(server.url) as client, client.stream("a") as one, client.stream("a"):
        await eventually(lambda: not server.runner.server.connections if server.runner.server else False)
        reader, writer = await asyncio.open_connection(*port(server.url))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await answer(reader))[0] == 503
        one.close()
        await eventually(lambda: len(server.bus.hub.streams) == 1)
        assert (await client.get("/healthz"))[0] == 200
        writer.close()


async def test_hundreds_that_send_nothing_leave_room_for_others(launch: Launcher) -> None:
    server = await launch(idle=2.0)
    silent = [await asyncio.open_connection(*port(server.url)) for _ in range(200)]
    for _ in range(200):
        silent.append(await asyncio.open_connection(*port(server.url)))
        silent[-1][1].write(PUBLISH + b"Content-Length: 100000\r\n\r\n" + b" " * 1000)
    await eventually(lambda: server.bus.limits.bodies.held == 200_000)
    async with Client(server.url) as client, client.stream("a") as stream:
        await client.publish("a", 1)
        assert (await stream.event()).json() == 1
    for _, writer in silent[200:]:
        writer.close()
    async with asyncio.timeout(TIMEOUT_S):
        for reader, writer in silent[:200]:
            assert await rest(reader) == b""
            writer.close()
    await eventually(lambda: server.bus.limits.bodies.held == 0)
