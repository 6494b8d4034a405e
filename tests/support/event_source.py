"""An EventSource as the standard has it, written by nothing of the package."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import aiohttp


@dataclass
class Dispatched:
    """An event as a browser hands it to its listeners."""

    type: str
    data: str
    last_event_id: str


def browser(stream: bytes) -> tuple[list[Dispatched], int | None]:
    """Interpret a stream as WHATWG HTML 9.2.6 says; return the events, and the reconnection time."""
    text = stream.decode("utf-8").removeprefix("\ufeff")
    found: list[Dispatched] = []
    last_id, name, data, retry = "", "", "", None
    pending = id_buffer = ""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert lines.pop() == "", "the stream ends inside a line"
    for line in lines:
        if line == "":
            last_id = id_buffer
            if data:
                found.append(Dispatched(name or "message", data.removesuffix("\n"), last_id))
            data = name = ""
            continue
        if line.startswith(":"):
            continue
        field, colon, pending = line.partition(":")
        value = pending.removeprefix(" ") if colon else ""
        if field == "event":
            name = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            id_buffer = value
        elif field == "retry" and value.isascii() and value.isdigit():
            retry = int(value)
    return found, retry


class EventSource:
    """An EventSource that runs: it connects again after a lost connection, and is dead after any status but 200."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._retry_s = 3.0
        self.last_event_id = ""
        self.got: list[Dispatched] = []
        self.opens = 0
        self.died: str | None = None
        """Why it will never connect again."""
        self.news = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled, or dead."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, ssl=False)) as session:
            while self.died is None:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    await self._connection(session)
                await asyncio.sleep(self._retry_s)

    async def _connection(self, session: aiohttp.ClientSession) -> None:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self.last_event_id:
            headers["Last-Event-ID"] = self.last_event_id
        timeout = aiohttp.ClientTimeout(total=None)
        async with session.get(self._url, headers=headers, timeout=timeout) as response:
            kind = response.content_type
            if response.status != 200 or kind != "text/event-stream":
                self.died = f"{response.status} {kind}: {(await response.text())[:200]}"
                return
            self.opens += 1
            rest = b""
            async for data in response.content.iter_any():
                whole, end, rest = (rest + data).rpartition(b"\n\n")
                self._take(whole + end)
            self._take(rest if rest.endswith(b"\n") else b"")  # whole lines count, an event without its end does not
            response.close()

    def _take(self, blocks: bytes) -> None:
        found, retry = browser(blocks)
        if retry is not None:
            self._retry_s = retry / 1000
        for event in found:
            # Without an id of its own a block has that of the block before, of an earlier call, too.
            self.last_event_id = event.last_event_id = event.last_event_id or self.last_event_id
            if not event.type.startswith("sse-pg.") or event.type == "sse-pg.gap":
                self.got.append(event)
        self.news.set()
