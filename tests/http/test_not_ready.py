"""What a client of a stream meets where the server cannot serve it: an EventSource ends for ever at a 503."""

from __future__ import annotations

import aiohttp
import pytest
from support.client import Client
from support.server import Launcher

EVENT_STREAM = {"Accept": "text/event-stream"}


async def test_a_stopping_server_drops_an_event_source_and_answers_others(launch: Launcher) -> None:
    server = await launch()
    async with Client(server.url) as client:
        server.bus.draining = True
        with pytest.raises(aiohttp.ClientError):
            await client.session.get(f"{client.url}/api/events/stream?channels=a", headers=EVENT_STREAM)
        status, _, response = await client.request("GET", "/api/events/stream?channels=a")
        assert (status, "Retry-After" in response.headers) == (503, True)
        status, body = await client.get("/readyz")
        assert (status, body["detail"]) == (503, "Not ready: the server is stopping.")


async def test_a_stream_waits_for_a_server_that_starts(launch: Launcher) -> None:
    server = await launch(ready=False)
    async with Client(server.url) as client, client.stream("a") as stream:
        number = await client.publish("a", 1)
        assert (await stream.event()).id == str(number)


async def test_without_a_database_the_wait_ends(launch: Launcher) -> None:
    server = await launch(ready=False, listen_database_url="host=127.0.0.1 port=1", pool_timeout=0.2)
    async with Client(server.url) as client:
        status, _, response = await client.request("GET", "/api/events/stream?channels=a")
        assert (status, "Retry-After" in response.headers) == (503, True)
        with pytest.raises(aiohttp.ClientError):
            await client.session.get(f"{client.url}/api/events/stream?channels=a", headers=EVENT_STREAM)
