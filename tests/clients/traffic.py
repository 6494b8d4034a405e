"""Events published over SQL while clients are cut off, some in transactions that commit late."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg

CHANNEL = "räume/1"
TYPES = ("message", "order.paid", "größe")
# U+0085 and U+2028 end a line for some programs, never for an event stream; then characters of two to four bytes.
TEXT = "a\u0085b\u2028c – naïve 日本語 🐘"
INSERT = "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES (%s, %s, %s)"


class Traffic:
    """Publishes an event every few milliseconds until told to stop; half as many again go to another channel."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._count = 0
        self._late: list[psycopg.AsyncConnection[Any]] = []
        self._task: asyncio.Task[None] | None = None
        self._conn: psycopg.AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Traffic:
        self._conn = await self._connect(autocommit=True)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self.commit_late()
        assert self._conn is not None
        await self._conn.close()

    async def stop(self) -> None:
        """Publish nothing more by itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def open_late(self, count: int) -> None:
        """Open transactions that have published and do not commit, with committed events between them."""
        for _ in range(count):
            conn = await self._connect()
            await self._publish(conn, late=True)
            self._late.append(conn)
            before = self._count
            while self._task is not None and self._count < before + 2:
                await asyncio.sleep(0.002)

    async def commit_late(self) -> None:
        """Commit them, the youngest first; one is rolled back."""
        for number, conn in enumerate(reversed(self._late)):
            await (conn.rollback() if number == 1 else conn.commit())
            await conn.close()
        self._late.clear()

    async def publish_large(self, size: int) -> None:
        """Publish one large event."""
        await self._publish(None, filler=("0123456789 🐘é" * size)[:size])

    async def rows(self) -> list[tuple[str, str]]:
        """Return (event type, payload as text) of the channel, in order of id."""
        async with await self._connect() as conn:
            cursor = await conn.execute(
                "SELECT event_type, payload::text FROM sse_pg.events WHERE channel = %s ORDER BY id", (CHANNEL,)
            )
            return [(kind, payload) for kind, payload in await cursor.fetchall()]

    async def _connect(self, *, autocommit: bool = False) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self._url, autocommit=autocommit)

    async def _publish(self, conn: psycopg.AsyncConnection[Any] | None, **more: Any) -> None:
        self._count += 1
        payload = json.dumps({"n": self._count, "text": TEXT, **more}, ensure_ascii=False)
        conn = conn or self._conn
        assert conn is not None
        await conn.execute(INSERT, (CHANNEL, TYPES[self._count % len(TYPES)], payload))

    async def _run(self) -> None:
        assert self._conn is not None
        while True:
            await self._publish(None)
            if self._count % 2:
                await self._conn.execute(INSERT, ("elsewhere", "message", "{}"))
            await asyncio.sleep(0.004)
