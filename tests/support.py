"""What tests share: servers in this process, and a client that reads streams with a parser of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import openapi_check
from aiohttp import web

from sse_pg.app import BUS, create_app
from sse_pg.bus import Bus
from sse_pg.config import Settings
from sse_pg.connections import Site
from sse_pg.server import drain as end

PATIENCE = 20.0
"""Seconds a test waits for what must come; only a failure takes that long."""


async def eventually(condition: Callable[[], Any], *, patience: float = PATIENCE) -> None:
    """Wait until a condition on this process's own objects holds."""
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass(eq=False)
class Server:
    """A server in this process."""

    url: str
    bus: Bus
    runner: web.AppRunner

    async def stop(self, drain: float = 0) -> None:
        """Stop as SIGTERM would."""
        await end(self.runner, self.bus, drain)
        await self.runner.cleanup()


def greeted(server: Server) -> bool:
    """Whether a stream has its position: it gets what is published from now on. It is open a moment before."""
    return any(stream.greeted for stream in server.bus.hub.streams)


class Launcher:
    """Starts servers on free loopback ports and stops what is left."""

    def __init__(self, database_url: str) -> None:
        self.database_url = database_url
        self._servers: list[Server] = []

    async def __call__(self, *, ready: bool = True, **overrides: Any) -> Server:
        values: dict[str, Any] = {"database_url": self.database_url, "drain": 0.0, "retry": 0.02, **overrides}
        settings = Settings(**values)
        app = create_app(settings)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=5)
        await runner.setup()
        await Site(runner, settings, host="127.0.0.1", port=0, streams=lambda: len(app[BUS].hub.streams)).start()
        host, port = runner.addresses[0][:2]
        server = Server(f"http://{host}:{port}", app[BUS], runner)
        self._servers.append(server)
        if ready:
            async with asyncio.timeout(PATIENCE):
                await server.bus.tail.listening.wait()
        return server

    async def close(self) -> None:
        """Stop what is left."""
        for server in self._servers:
            await server.stop()


@dataclass
class Block:
    """One block of a stream, as a strict reader sees it."""

    event: str = "message"
    data: str = ""
    id: str | None = None
    retry: int | None = None
    comment: bool = False

    def json(self) -> Any:
        """Decode the data."""
        return json.loads(self.data)


def parse_block(text: str) -> Block:
    """Read one block, field by field; written apart from the package's parser on purpose."""
    block = Block()
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith(":"):
            block.comment = True
            continue
        name, _, value = line.partition(": ")
        if name == "data":
            lines.append(value)
        elif name == "id":
            block.id = value
        elif name == "event":
            block.event = value
        elif name == "retry":
            block.retry = int(value)
        else:
            raise AssertionError(f"a line that is no field: {line!r}")
    block.data = "\n".join(lines)
    return block


@dataclass(eq=False)
class StreamReader:
    """An open stream."""

    response: aiohttp.ClientResponse
    hello: Block
    last_id: str = ""
    _rest: str = field(default="", repr=False)

    async def block(self) -> Block:
        """Return the next block, heartbeats and the bus's own included."""
        async with asyncio.timeout(PATIENCE):
            while not (self._rest.startswith(":\n") or "\n\n" in self._rest):
                data = await self.response.content.readany()
                if not data:
                    raise EOFError("the stream ended")
                self._rest += data.decode()
        if self._rest.startswith(":\n"):
            self._rest = self._rest[2:]
            return Block(comment=True)
        text, _, self._rest = self._rest.partition("\n\n")
        block = parse_block(text)
        if block.id is not None:
            self.last_id = block.id
        return block

    async def event(self) -> Block:
        """Return the next block that is not a heartbeat or a position."""
        while True:
            block = await self.block()
            if not block.comment and block.event != "sse-pg.position":
                return block

    async def events(self, count: int) -> list[Block]:
        """Return the next ``count`` events."""
        return [await self.event() for _ in range(count)]

    async def ended(self) -> None:
        """Wait for the end of the stream."""
        try:
            while True:
                await self.block()
        except (EOFError, aiohttp.ClientError):
            return

    def close(self) -> None:
        """Drop the connection without a word."""
        self.response.close()


class Client:
    """Requests to one server."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.url = url
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def request(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any, aiohttp.ClientResponse]:
        """Return (status, decoded JSON body, response)."""
        async with self.session.request(method, self.url + path, **kwargs) as response:
            text = await response.text()
            body = json.loads(text) if text else None
            openapi_check.check(method, path.partition("?")[0], response.status, response.content_type, body)
            return response.status, body, response

    async def get(self, path: str, **kwargs: Any) -> tuple[int, Any]:
        """Return (status, body)."""
        status, body, _ = await self.request("GET", path, **kwargs)
        return status, body

    async def post(self, path: str, body: Any, **kwargs: Any) -> tuple[int, Any]:
        """Return (status, body)."""
        status, answer, _ = await self.request("POST", path, json=body, **kwargs)
        return status, answer

    async def publish(self, channel: str, payload: Any, event_type: str = "message") -> int:
        """Publish one event; return its id."""
        status, body = await self.post(
            "/api/events/publish", {"channel": channel, "eventType": event_type, "payload": payload}
        )
        assert status == 201, body
        return int(body["id"])

    @asynccontextmanager
    async def stream(
        self, channels: str | None = None, *, last_event_id: str | None = None, **params: str
    ) -> AsyncIterator[StreamReader]:
        """Open a stream and read its hello."""
        if channels is not None:
            params["channels"] = channels
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        response = await self.session.get(
            self.url + "/api/events/stream",
            params=params,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        try:
            assert response.status == 200, await response.text()
            reader = StreamReader(response, Block())
            reader.hello = await reader.block()
            assert reader.hello.event == "sse-pg.hello"
            yield reader
        finally:
            response.close()
