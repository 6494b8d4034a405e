"""Readers that come late and begin with the last events of their channels, and what was in the table then."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import psycopg

from torture.readers import Reader
from torture.writers import CHANNELS

COUNTS = "SELECT channel, count(*) FROM sse_pg.events GROUP BY channel"
NEWEST = "SELECT id, channel FROM sse_pg.events WHERE channel = ANY (%s) ORDER BY id DESC LIMIT 5000"

GONE = """
    SELECT c.id FROM copies c
     WHERE c.channel = ANY (%s) AND NOT EXISTS (SELECT FROM sse_pg.events e WHERE e.id = c.id)"""


class Beginning:
    """A late reader."""

    def __init__(self, number: int, seed: int, urls: list[str], conninfo: str, *, copies: bool) -> None:
        """``copies``: events are deleted in this run, and copies of them are kept."""
        rand = Random(f"{seed} beginning {number}")
        # With few channels or few events, a cursor has room for everything that the stream leaves out.
        count, latest = rand.choice(((1, 1), (1, 100), (2, 1), (2, 12), (6, 2)))
        channels = tuple(rand.sample(CHANNELS, count))
        self.reader = Reader(number, seed, urls, channels, None, latest=latest)
        self.before: dict[str, int] = {}
        """How many events of each channel there were before it began."""
        self.after: list[tuple[int, str]] = []
        """The newest ids of its channels soon after it had begun."""
        self._conninfo = conninfo
        self._copies = copies

    async def run(self) -> None:
        """Follow until cancelled."""
        self.before = dict(await self._ask(COUNTS))
        async with asyncio.TaskGroup() as group:
            group.create_task(self.reader.run())
            await self.reader.opened.wait()
            self.after = await self._ask(NEWEST, list(self.reader.channels))
            if self._copies:
                self.reader.gone = {number for (number,) in await self._ask(GONE, list(self.reader.channels))}

    async def _ask(self, statement: str, *params: object) -> list[Any]:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=5) as conn:
                    return await (await conn.execute(statement.encode(), params)).fetchall()
            except psycopg.Error:  # the database is down, as it is now and then
                await asyncio.sleep(0.1)
