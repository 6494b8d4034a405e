"""Behind real proxies, with the configurations of docker/: nothing held back, nothing cut, nothing lost at a deploy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from proxies import proxy
from support import PATIENCE, Client, Launcher

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
    server = await launch(heartbeat=0.3)
    async with proxy(name, tmp_path, server.url) as url, Behind(url) as client, client.stream("a") as stream:
        assert stream.response.headers["Content-Type"] == "text/event-stream"
        for number in range(3):
            await client.publish("a", number)
            assert (await stream.event()).json() == number
        stream.close()
        async with asyncio.timeout(PATIENCE):  # who went is noticed at a heartbeat, at the latest
            while server.bus.hub.streams:
                await asyncio.sleep(0.01)


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

        async with asyncio.timeout(PATIENCE * 2), asyncio.TaskGroup() as group:
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


async def test_a_server_that_stops_keeps_no_connection(launch: Launcher) -> None:
    server = await launch()
    async with Client(server.url) as client:
        _, _, before = await client.request("GET", "/healthz")
        await server.bus.end_streams(0)
        _, _, after = await client.request("GET", "/healthz")
        missing, _, _ = await client.request("GET", "/api/events/history?channel=a")
    assert "Connection" not in before.headers
    assert (after.headers["Connection"], missing) == ("close", 200)
