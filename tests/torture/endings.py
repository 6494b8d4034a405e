"""Channels that end, are opened again and end again, and readers with ``until=end`` that follow until they are stopped.

Some of what is published before an end commits after it. A reader that gets 204 must have all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import aiohttp
import psycopg

from sse_pg.core.cursor import Cursor

PUBLISH = "SELECT sse_pg.publish(%s, '{}')"
FINISH = "SELECT sse_pg.finish(%s)"
EVENTS = "SELECT id, event_type = 'sse-pg.end' FROM sse_pg.events WHERE channel = %s"


class Stopped:
    """A reader of one channel."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.cursor = "0"
        self.overflowed = False
        """Whether it has come back with a cursor whose gaps did not fit: then events may come twice."""
        self.is_stopped = False


class Ending:
    """A channel that is finished now and then, and its readers."""

    def __init__(self, number: int, seed: int, urls: list[str], conninfo: str) -> None:
        self.channel = f"ending.{number}"
        self._random = Random(f"{seed} ending {number}")
        self._urls = urls
        self._conninfo = conninfo
        self._is_over = False
        self._written = asyncio.Event()
        self.stopped: list[Stopped] = []
        """The readers that got 204."""
        self.all_stopped = asyncio.Event()

    async def run(self) -> None:
        """Write and read until over() is called and the last readers got 204."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write())
            for _ in range(3):
                group.create_task(self._read_again_and_again())
        self.all_stopped.set()

    async def _read_again_and_again(self) -> None:
        while not self._is_over:
            reader = Stopped()
            await self._read(reader)
            self.stopped.append(reader)
            await asyncio.sleep(self._random.uniform(0, 2))

    async def _write(self) -> None:
        """Publish and finish until over() is called. What fails is tried again: the table says what was committed."""
        while not self._is_over:
            try:
                async with (
                    await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=5, autocommit=True) as one,
                    await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=5) as late,
                ):
                    while not self._is_over:
                        await self._once(one, late)
            except psycopg.Error:
                await asyncio.sleep(0.1)
        self._written.set()

    async def _once(self, one: psycopg.AsyncConnection, late: psycopg.AsyncConnection) -> None:
        if self._random.random() < 0.5:
            await late.execute(PUBLISH, [self.channel])
        for _ in range(self._random.randint(0, 4)):
            await one.execute(PUBLISH, [self.channel])
        await one.execute(FINISH, [self.channel])
        await asyncio.sleep(self._random.uniform(0, 0.3))
        await (late.commit() if self._random.random() < 0.7 else late.rollback())
        await asyncio.sleep(self._random.uniform(0, 2))

    async def over(self) -> None:
        """Let the writer stop, and finish the channel for good."""
        self._is_over = True
        await self._written.wait()
        async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as conn:
            await conn.execute(FINISH, [self.channel])

    async def _read(self, reader: Stopped) -> None:
        """Follow until the response is 204."""
        while not reader.is_stopped:
            await asyncio.sleep(self._random.uniform(0, 0.3))
            try:
                async with aiohttp.ClientSession() as session, asyncio.timeout(self._random.expovariate(1 / 2)):
                    await self._connection(session, reader)
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue

    async def _connection(self, session: aiohttp.ClientSession, reader: Stopped) -> None:
        reader.overflowed |= len(reader.cursor) > 100
        params = {"channels": self.channel, "until": "end"}
        url = f"{self._random.choice(self._urls)}/api/events/stream"
        async with session.get(url, params=params, headers={"Last-Event-ID": reader.cursor}) as response:
            if response.status == 204:
                reader.is_stopped = True
                return
            rest = b""
            async for data in response.content.iter_any() if response.status == 200 else _nothing():
                *blocks, rest = (rest + data).split(b"\n\n")
                for block in blocks:
                    fields = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
                    reader.cursor = fields.get(b"id", reader.cursor.encode()).decode()
                    if fields.get(b"event") == b"message":
                        reader.got.append(int(fields.get(b"number", reader.cursor.partition("~")[0])))

    def faults(self, conninfo: str) -> list[str]:
        """Return what is wrong with what the readers have that were stopped."""
        with psycopg.connect(conninfo) as conn:
            events = dict(conn.execute(EVENTS, [self.channel]).fetchall())
        found = []
        for reader in self.stopped:
            cursor = Cursor.parse(reader.cursor)
            last = max((number for number, is_end in events.items() if is_end and cursor.offered(number)), default=0)
            wanted = {number for number, is_end in events.items() if number < last and not is_end}
            if set(reader.got) != wanted:
                missing, strange = sorted(wanted - set(reader.got)), sorted(set(reader.got) - wanted)
                found.append(
                    f"{self.channel} at {reader.cursor}: lacks {missing[:5]}, has {strange[:5]} beyond the end"
                )
            if len(set(reader.got)) != len(reader.got) and not reader.overflowed:
                found.append(f"{self.channel}: events came twice")
        return found


async def _nothing() -> AsyncIterator[bytes]:
    """Yield nothing."""
    for never in ():
        yield never
