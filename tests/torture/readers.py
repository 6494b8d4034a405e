"""Readers: clients that are dropped, stall, move between servers, and keep a record of what they got."""

from __future__ import annotations

import asyncio
import json
import zlib
from array import array
from random import Random

import aiohttp
import msgspec

from sse_pg.core.cursor import Cursor


class _Enveloped(msgspec.Struct):
    payload: msgspec.Raw
    headers: msgspec.Raw = msgspec.Raw()


_enveloped = msgspec.json.Decoder(_Enveloped)


def checksum(payload: bytes | msgspec.Raw, headers: bytes | msgspec.Raw = b"") -> int:
    """Return the checksum of an event's texts."""
    return zlib.crc32(headers, zlib.crc32(payload))


class Reader:
    """One client with its channels. ``marks`` and ``sums`` are its record, in the order of arrival."""

    def __init__(
        self,
        number: int,
        seed: int,
        urls: list[str],
        channels: tuple[str, ...],
        start: str | None,
        *,
        latest: int = 0,
        ignore_gaps: bool = False,
    ) -> None:
        """``latest``: it comes late, without a cursor, and asks for so many last events of each channel.

        ``ignore_gaps``: take cursors as if ids were committed in order, to show that the checker notices.
        """
        self.latest = latest
        self.began: Cursor | None = None
        """What a late reader was offered when it began."""
        self.gone: set[int] = set()
        """Ids that were deleted by then: they are not among the last events, and no gap event is due."""
        self._ignore_gaps = ignore_gaps
        self._random = Random(f"{seed} reader {number}")
        self.envelope = number % 3 == 1
        """Whether it asks for whole events, and so has their headers."""
        self._urls = urls
        self.channels = channels
        self.cursor = start
        self.marks = array("Q")
        self.sums = array("L")
        self.connects = 0
        self.ids = 0
        self.ids_with_gaps = 0
        self.gaps_told: list[str] = []
        self.excused: set[int] = set()
        """Marks that may come twice: those before a reconnect with a cursor whose gaps did not fit."""
        self.overflowed = False
        """Whether it has come back with such a cursor."""
        self.opened = asyncio.Event()
        self.dropping = True

    def wants(self, number: int, channel: str) -> bool:
        """Return whether it must get an event."""
        if channel not in self.channels:
            return False
        return not self.latest or (self.began is not None and not self.began.offered(number))

    async def run(self) -> None:
        """Follow until cancelled."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            while True:
                try:
                    await self._connection(session)
                except (aiohttp.ClientError, OSError, TimeoutError):
                    await asyncio.sleep(self._random.uniform(0.02, 0.3))

    async def _connection(self, session: aiohttp.ClientSession) -> None:
        headers = {"Accept-Encoding": self._random.choice(("gzip", "identity"))}
        if self.cursor is not None:
            headers["Last-Event-ID"] = self.cursor
        if self.cursor is not None and len(self.cursor) > 100:
            self.excused.update(self.marks[-5000:])
            self.overflowed = True
        life = self._random.expovariate(1 / 4) if self.dropping else 3600
        url = self._random.choice(self._urls)
        is_new = self.cursor is None
        begin = {"latest": str(self.latest)} if self.latest else {}
        async with session.get(
            f"{url}/api/events/stream",
            params={"channels": ",".join(self.channels), "envelope": str(self.envelope).lower(), **begin},
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=8),
        ) as response:
            if response.status != 200:
                await asyncio.sleep(0.1)
                return
            self.connects += 1
            try:
                async with asyncio.timeout(life):
                    await self._read(response, is_new=is_new)
            except TimeoutError:
                if self._random.random() < 0.1:
                    await asyncio.sleep(self._random.uniform(1, 3))  # stalls, then drops the connection
            response.close()

    async def _read(self, response: aiohttp.ClientResponse, *, is_new: bool) -> None:
        rest = b""
        async for data in response.content.iter_any():
            *blocks, rest = (rest + data).split(b"\n\n")
            for block in blocks:
                self._take(block)
                if is_new and self.latest:
                    is_new = False
                    assert self.cursor is not None
                    if len(self.cursor) > 100:  # it may not say all that the stream leaves out: try again
                        self.cursor = None
                        return
                    self.began = Cursor.parse(self.cursor)
                    self.opened.set()

    def _take(self, block: bytes) -> None:
        fields = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
        if b"id" not in fields:
            return
        name, data = fields.get(b"event"), fields.get(b"data", b"")
        if name is None and self.envelope:
            event = _enveloped.decode(data)
            self.marks.append(json.loads(bytes(event.payload))["m"])
            self.sums.append(checksum(event.payload, event.headers))
            self.ids += 1
            self.ids_with_gaps += b"~" in fields[b"id"]
        elif name == b"tick":
            self.marks.append(json.loads(data)["m"])
            self.sums.append(checksum(data))
            self.ids += 1
            self.ids_with_gaps += b"~" in fields[b"id"]
        elif name == b"sse-pg.gap":
            self.gaps_told.append(data.decode())
        elif name == b"sse-pg.hello" and not self.latest:
            self.opened.set()
        self.cursor = fields[b"id"].decode()
        if self._ignore_gaps:
            self.cursor = self.cursor.partition("~")[0]
