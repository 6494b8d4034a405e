"""What the command ``sse-pg erase`` asks the database: how many events there are, their deletion, and a VACUUM."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import psycopg

from sse_pg.db.connection import Connection, is_unavailable, summary
from sse_pg.db.pool import Pool, connection
from sse_pg.db.queries import query


class Wanted(NamedTuple):
    """Which events of a channel are meant."""

    channel: str
    before: str
    """A moment, as PostgreSQL reads it."""
    containing: str | None
    """JSON that the payload contains; None for any payload."""


class Erasing:
    """One connection for the whole command. Its statements may take long: a channel may have most of the log."""

    def __init__(self, conn: Connection, wanted: Wanted) -> None:
        self._conn = conn
        self._wanted = wanted

    async def count(self) -> int:
        """Return how many events are meant."""
        return await self._number("erase_count")

    async def erase(self) -> int:
        """Erase the events; return how many those were."""
        return await self._number("erase")

    async def vacuum(self) -> str | None:
        """Remove the dead rows from the partitions that had events of the channel; return why not, if that fails.

        Nobody waits for it: without TRUNCATE it takes no lock that excludes publishers or readers.
        """
        refused: list[str | None] = []
        self._conn.add_notice_handler(lambda notice: refused.append(notice.message_primary))
        try:
            cursor = await self._conn.execute(query("erase_vacuums"), {"channel": self._wanted.channel})
            for (statement,) in await cursor.fetchall():
                await self._conn.execute(statement)
        except psycopg.Error as error:
            if is_unavailable(error):
                raise
            return summary(error)
        return next(filter(None, refused), None)

    async def _number(self, name: str) -> int:
        ((number,),) = await (await self._conn.execute(query(name), self._wanted._asdict())).fetchall()
        return int(number)


@asynccontextmanager
async def erasing(pool: Pool, wanted: Wanted) -> AsyncIterator[Erasing]:
    """Lend a connection on which statements may take as long as they need."""
    async with connection(pool) as conn:
        if not pool.behind_pooler:
            await conn.execute(query("erase_session"))
        yield Erasing(conn, wanted)
