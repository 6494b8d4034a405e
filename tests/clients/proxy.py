"""A TCP proxy before a bus: cuts connections when told to, or at a given place in the bytes."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

_HEARTBEAT = re.compile(rb"(?<=\r\n):\n")


@dataclass(frozen=True)
class Request:
    """A request for the bus, as the client sent it."""

    target: str
    headers: dict[str, str]

    @property
    def header_id(self) -> str:
        """The cursor in the header."""
        return self.headers.get("last-event-id", "")

    @property
    def query_id(self) -> str:
        """The cursor in the query."""
        return parse_qs(urlsplit(self.target).query).get("lastEventId", [""])[-1]

    @property
    def cursor(self) -> str:
        """Where the client resumes."""
        return self.header_id or self.query_id


class Proxy:
    """Passes ``/api/`` to the bus at ``target`` and, for a browser, the rest to ``pages``, which is never cut."""

    def __init__(self, target: int, pages: int | None = None) -> None:
        self.target = target
        self.url = ""
        self.requests: list[Request] = []
        self.heartbeats = 0
        self.refusing = False
        self.refused = 0
        self.answer: bytes | None = None
        """What the next request gets instead of the bus's answer."""
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._streams: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._place: re.Pattern[bytes] | None = None
        self._cut_there = asyncio.Event()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection to the bus."""
        for writer in list(self._streams):
            writer.transport.abort()

    async def cut_at(self, place: bytes) -> None:
        """End the next stream in which these bytes come, just behind them; they still reach the client."""
        self._cut_there.clear()
        self._place = re.compile(place)
        await self._cut_there.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # StreamReaderProtocol reports a cancelled callback as an error
        finally:
            self._tasks.discard(task)
            await _close(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        request = _request(head)
        api = request.target.startswith("/api/")
        if api and self.refusing:
            self.refused += 1
            writer.transport.abort()
            return
        if api:
            self.requests.append(request)
        if api and self.answer is not None:
            writer.write(self.answer)
            self.answer = None
            await writer.drain()
            return
        port = self.target if api else self._pages
        if port is None:
            return
        there, back = await asyncio.open_connection("127.0.0.1", port)
        back.write(head)
        if api:
            self._streams.add(writer)
        upward = asyncio.create_task(self._upward(reader, back))
        self._tasks.add(upward)
        try:
            await self._downward(there, writer, api=api)
        finally:
            self._streams.discard(writer)
            upward.cancel()
            self._tasks.discard(upward)
            await _close(back)

    async def _upward(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                back.write(data)
                await back.drain()
            back.close()  # the client has gone

    async def _downward(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, *, api: bool) -> None:
        seen, place = b"", None
        while data := await there.read(65536):
            if api:
                self.heartbeats += len(_HEARTBEAT.findall(data))
                if self._place is not place:
                    seen, place = b"", self._place
            if place is not None:
                already, seen = len(seen), seen + data
                found = place.search(seen)
                if found is not None:
                    writer.write(seen[already : found.end()])
                    await writer.drain()
                    self._place = None
                    self._cut_there.set()
                    return
            writer.write(data)
            await writer.drain()


def _request(head: bytes) -> Request:
    first, *rest = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    headers: dict[str, str] = {}
    for line in rest:
        name, _, value = line.partition(":")
        assert name.lower() not in headers or name.lower() != "last-event-id", "two cursors in one request"
        headers[name.lower()] = value.strip()
    return Request(first.split(" ")[1], headers)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
