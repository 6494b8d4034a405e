"""A client of one server, whose responses are held against the description of the HTTP interface."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from support import openapi
from support.streams import Block, StreamReader

SMALL_BUFFER = 16384
"""Bytes. The kernel then takes little of what a client does not read: a few hundred kilobytes at the most."""


class Client:
    """Requests to one server."""

    def __init__(self, url: str, headers: dict[str, str] | None = None, *, receive_buffer: int | None = None) -> None:
        """``receive_buffer``: bytes that the kernel takes for this client. By default it may take tens of megabytes.

        A test whose client does not read passes SMALL_BUFFER, or the kernel may read everything instead.
        """
        self.url = url

        def connection(address: Any) -> socket.socket:
            sock = socket.socket(address[0], address[1], address[2])
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            return sock

        connector = aiohttp.TCPConnector(limit=0, socket_factory=connection)
        self.session = aiohttp.ClientSession(connector=connector, headers=headers)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def request(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any, aiohttp.ClientResponse]:
        """Return (status, decoded JSON body, response)."""
        async with self.session.request(method, self.url + path, **kwargs) as response:
            text = await response.text()
            body = json.loads(text) if text else None
            openapi.check(method, path.partition("?")[0], response.status, response.content_type, body)
            return response.status, body, response

    async def get(self, path: str, **kwargs: Any) -> tuple[int, Any]:
        """Return (status, body)."""
        status, body, _ = await self.request("GET", path, **kwargs)
        return status, body

    async def post(self, path: str, body: Any, **kwargs: Any) -> tuple[int, Any]:
        """Return (status, body)."""
        status, answer, _ = await self.request("POST", path, json=body, **kwargs)
        return status, answer

    async def delete(self, path: str) -> tuple[int, Any]:
        """Return (status, body)."""
        status, body, _ = await self.request("DELETE", path)
        return status, body

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
