"""What the command ``sse-pg erase`` asks the database: how many events there are, their deletion, and a VACUUM."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import psycopg

from sse_pg.db.connection import APPLICATION, PARAMETERS, Connection, is_unavailable, set_up, summary
from sse_pg.db.queries import query
from sse_pg.errors import BusUnavailable


class Wanted(NamedTuple):
    """Which events of a channel are meant."""

    channel: str
    before: str
    """A moment, as PostgreSQL reads it."""
    containing: str | None
    """JSON that the payload contains; None for any payload."""


class Erasing:
    """One connection for the whole command. Its statements may take long: a channel may have most of the log.

    It may go through a transaction pooler: nothing is set for longer than a transaction, and VACUUM is in none.
    """

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
            for (statement,) in await self._rows("erase_vacuums"):
                await self._conn.execute(statement)
        except psycopg.Error as error:
            if is_unavailable(error):
                raise
            return summary(error)
        return next(filter(None, refused), None)

    async def _number(self, name: str) -> int:
        ((number,),) = await self._rows(name)
        return int(number)

    async def _rows(self, name: str) -> list[tuple[Any, ...]]:
        async with self._conn.transaction():
            await set_up(self._conn, local=True, limits=False)
            await self._conn.execute(query("erase_session"))
            return await (await self._conn.execute(query(name), self._wanted._asdict())).fetchall()


@asynccontextmanager
async def erasing(url: str | None, wanted: Wanted) -> AsyncIterator[Erasing]:
    """Open a connection on which statements may take as long as they need. Raises BusUnavailable without a database."""
    try:
        async with await psycopg.AsyncConnection[tuple[Any, ...]].connect(
            url or "", application_name=APPLICATION, prepare_threshold=None, **PARAMETERS
        ) as conn:
            await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
            yield Erasing(conn, wanted)
    except psycopg.Error as error:
        if not is_unavailable(error):
            raise
        raise BusUnavailable(
            f"the database cannot be reached: {summary(error)}; check that it is up and that DATABASE_URL is correct"
        ) from error
