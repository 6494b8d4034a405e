"""Behind real proxies, with the configurations of docker/: nothing held back, nothing cut, nothing lost at a deploy."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import psycopg
import pytest
from support.client import Client
from support.proxies import proxy
from support.server import Launcher
from support.waiting import TIMEOUT_S, eventually

from sse_pg.client import Event, publish, subscribe

NAMES = pytest.mark.parametrize("name", ["nginx", "haproxy"])


class Behind(Client):
    """A client that does not ask who signed the proxy's certificate."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = session()


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=False))


@NAMES
async def test_an_event_goes_through_before_the_next_one(name: str, launch: Launcher, tmp_path: Path) -> None:
    server = await launch(heartbeat=0.3 if name == "nginx" else 3600)
    async with proxy(name, tmp_path, server.url) as url, Behind(url) as client, client.stream("a") as stream:
        assert stream.response.headers["Content-Type"] == "text/event-stream"
        for number in range(3):
            await client.publish("a", number)
            assert (await stream.event()).json() == number
        stream.close()
        async with asyncio.timeout(TIMEOUT_S):  # nginx does not see that a TLS connection ends; a heartbeat tells it
            while server.bus.hub.streams:
                await asyncio.sleep(0.01)


@NAMES
async def test_a_client_that_is_killed_is_noticed(name: str, launch: Launcher, tmp_path: Path) -> None:
    """It has HTTP/2 in TLS, and ends neither."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    server = await launch(heartbeat=3600)
    async with proxy(name, tmp_path, server.url) as url:
        words = ["-skN", "--http2", "-o", "/dev/null", f"{url}/api/events/stream?channels=a"]
        reader = await asyncio.create_subprocess_exec(curl, *words)
        await eventually(lambda: server.bus.hub.streams)
        reader.kill()
        await reader.wait()
        await eventually(lambda: not server.bus.hub.streams)


@NAMES
async def test_heartbeats_keep_a_quiet_stream(name: str, launch: Launcher, tmp_path: Path) -> None:
    server = await launch(heartbeat=0.3)
    async with proxy(name, tmp_path, server.url, quiet="1s") as url, Behind(url) as client:  # noqa: SIM117
        async with client.stream("a") as stream:
            for _ in range(7):  # twice as long as the proxy's time-out
                assert (await stream.block()).comment
            await client.publish("a", 1)
            assert (await stream.event()).json() == 1


@NAMES
async def test_a_time_out_below_the_heartbeat_cuts(name: str, launch: Launcher, tmp_path: Path) -> None:
    server = await launch(heartbeat=3600)
    async with proxy(name, tmp_path, server.url, quiet="1s") as url, Behind(url) as client:  # noqa: SIM117
        async with client.stream("a") as stream:
            await stream.ended()


@NAMES
async def test_nobody_says_who_he_is(name: str, launch: Launcher, tmp_path: Path) -> None:
    server = await launch(max_streams_address=1, trusted_proxies="127.0.0.0/8,::1")
    async with proxy(name, tmp_path, server.url) as url, Behind(url) as client, client.stream("a"):
        path = f"{url}/api/events/stream?channels=a"
        async with client.session.get(path, headers={"X-Forwarded-For": "203.0.113.7"}) as answer:
            assert answer.status == 429


@NAMES
async def test_a_deploy_loses_nothing(name: str, launch: Launcher, tmp_path: Path) -> None:
    """One of two servers stops while streams are open and events are published with keys; nobody sees a difference."""
    one, two = await launch(), await launch()
    readers, per_writer, writers = 6, 60, 3
    expected = {(writer, number) for writer in range(writers) for number in range(per_writer)}
    half, stopped = asyncio.Event(), asyncio.Event()

    async with proxy(name, tmp_path, one.url, two.url) as url, session() as http:

        async def write(writer: int) -> None:
            for number in range(per_writer):
                if number == per_writer // 2:
                    half.set()
                key = f"{writer}-{number}"
                await publish(url, "a", [writer, number], idempotency_key=key, session=http)
            await stopped.wait()

        async def read() -> list[tuple[int, int]]:
            got: list[tuple[int, int]] = []
            async with subscribe(url, ["a"], cursor="0", session=http) as events:
                async for event in events:
                    if isinstance(event, Event):
                        got.append(tuple(event.json()))
                    if len(got) == len(expected):
                        return got
            return got

        async def stop() -> None:
            await half.wait()
            await one.stop(drain=0.3)
            stopped.set()

        async with asyncio.timeout(TIMEOUT_S * 2), asyncio.TaskGroup() as group:
            reading = [group.create_task(read()) for _ in range(readers)]
            for writer in range(writers):
                group.create_task(write(writer))
            group.create_task(stop())
        for each in reading:
            assert len(each.result()) == len(expected)
            assert set(each.result()) == expected
        # Once more for what a reader that had all of it would not have seen.
        async with Behind(url) as client:
            status, body = await client.get("/api/events/history?channel=a&limit=1000")
            assert (status, len(body["events"])) == (200, len(expected))


@NAMES
async def test_a_deploy_turns_no_publisher_away(name: str, launch: Launcher, tmp_path: Path) -> None:
    """One of two servers stops. Publishers that have no keys and repeat nothing get 201 each time, for one event."""
    one, two = await launch(), await launch()
    publishers, more = 6, 50
    answers: Counter[int | str] = Counter()
    stopped = asyncio.Event()

    async with proxy(name, tmp_path, one.url, two.url) as url, session() as http, Behind(url) as client:

        async def write() -> None:
            left = more
            while left:
                left -= stopped.is_set()
                body = {"channel": "a", "payload": 1}
                try:
                    async with http.post(f"{url}/api/events/publish", json=body) as answer:
                        answers[answer.status] += 1
                except aiohttp.ClientError as error:
                    answers[repr(error)] += 1

        async with asyncio.timeout(TIMEOUT_S * 2), asyncio.TaskGroup() as group:
            for _ in range(publishers):
                group.create_task(write())
            await eventually(lambda: answers.total() > 100)
            async with client.stream("b"):
                await one.stop(drain=5)
            stopped.set()
        assert set(answers) == {201}, answers
        async with await psycopg.AsyncConnection.connect(launch.database_url) as conn:
            count = await (await conn.execute("SELECT count(*) FROM sse_pg.events")).fetchone()
        assert count == (answers[201],)


@pytest.mark.parametrize("name", ["nginx", "haproxy", "caddy"])
async def test_an_event_source_comes_back_whatever_happens(name: str, launch: Launcher, tmp_path: Path) -> None:
    """A client that asks for a stream gets no error that ends it: 200, and when to come back. The others get errors."""
    server = await launch(max_streams=1)
    headers = {"Accept": "text/event-stream", "Origin": "https://shop.example"}
    async with proxy(name, tmp_path, server.url) as url, Behind(url) as client:

        async def ask(path: str, **headers: str) -> tuple[int, str, str]:
            async with client.session.get(url + path, headers=headers) as answer:
                return answer.status, answer.content_type, await answer.text()

        async def comes_back() -> None:
            path = f"{url}/api/events/stream?channels=a"
            async with client.session.get(path, headers=headers) as answer:
                assert (answer.status, answer.content_type) == (200, "text/event-stream")
                assert await answer.text() == "retry: 3000\n"
                assert answer.headers["Cache-Control"] == "no-store"
                assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
                assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            assert (await ask("/api/events/stream?channels=a"))[0] == 503

        async with Client(server.url) as direct, direct.stream("a"):
            await comes_back()  # the server refuses another stream for now
        await eventually(lambda: not server.bus.hub.streams)
        status, kind, _ = await ask("/api/events/stream?channels=a,,b", **headers)
        assert (status, kind) == (422, "application/problem+json")
        await server.stop()
        await comes_back()
        assert (await ask("/api/events/history?channel=a", **headers))[0] in (502, 503)


async def test_a_kept_connection_has_one_more_request(launch: Launcher) -> None:
    """A server that drains does not close it under a request that may be on its way, and leaves when it has had it."""
    server = await launch()
    async with Client(server.url) as client:
        await client.publish("a", 1)  # the connection of this one is kept
        stopping = asyncio.create_task(server.stop(drain=TIMEOUT_S * 2))
        await eventually(lambda: server.bus.draining)
        await client.publish("a", 2)
        async with asyncio.timeout(TIMEOUT_S):
            await stopping


async def test_who_waits_to_be_accepted_is_served(launch: Launcher) -> None:
    server = await launch()
    where = urlsplit(server.url)
    request = f"GET /healthz HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode()
    waiting = []
    for _ in range(5):  # no await from here on: this process accepts nobody, the kernel lets them wait
        waiting.append(socket.create_connection((where.hostname, where.port)))
        waiting[-1].sendall(request)
    stopping = asyncio.create_task(server.stop())
    for each in waiting:
        with each:
            answer = await asyncio.to_thread(each.recv, 1000)
        assert answer.startswith(b"HTTP/1.1 200"), answer
    await stopping
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((where.hostname, where.port))


async def test_a_server_that_stops_keeps_no_connection(launch: Launcher) -> None:
    server = await launch()
    async with Client(server.url) as client:
        _, _, before = await client.request("GET", "/healthz")
        await server.bus.end_streams(0)
        _, _, after = await client.request("GET", "/healthz")
        missing, _, _ = await client.request("GET", "/api/events/history?channel=a")
    assert "Connection" not in before.headers
    assert (after.headers["Connection"], missing) == ("close", 200)
