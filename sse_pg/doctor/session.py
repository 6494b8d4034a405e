"""The doctor's read-only session: every query is a READ ONLY transaction of its own.

No setting outlives its transaction and no statement is prepared, so nothing of ours stays on a backend that a
transaction pooler gives to another client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from sse_pg.db.connection import RESPONSE_DEADLINE_S, Connection, deadline, set_up
from sse_pg.db.hosts import parameters
from sse_pg.db.queries import query


class ReadOnlySession:
    """Runs statements of ``sql/queries/`` by their names."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn

    async def rows(self, name: str, params: Any = None, *, timeout_s: float | None = None) -> list[Any]:
        """Return the rows of a statement as named tuples. ``timeout_s`` is how long it may take, if not as usual."""
        with deadline(self.conn, RESPONSE_DEADLINE_S):
            async with self.conn.transaction():
                await set_up(self.conn, local=True, limits=False)
                await self.conn.execute(query("doctor_begin"))
                if timeout_s is not None:
                    await self.conn.execute(query("authorize_timeout"), (f"{max(1, round(timeout_s * 1000))}ms",))
                cursor = self.conn.cursor(row_factory=namedtuple_row)
                await cursor.execute(query(name), params)
                return await cursor.fetchall() if cursor.description else []

    async def row(self, name: str, params: Any = None) -> Any:
        """Return the first row of a statement, or None if there is none."""
        found = await self.rows(name, params)
        return found[0] if found else None


@asynccontextmanager
async def read_only_session(url: str | None, where: dict[str, Any] | None = None) -> AsyncIterator[ReadOnlySession]:
    """Open a session, with the primary or ``where`` these parameters lead. Raises psycopg's errors if it cannot."""
    conn = await psycopg.AsyncConnection[tuple[Any, ...]].connect(
        url or "",
        application_name="sse-pg doctor",
        connect_timeout=5,
        prepare_threshold=None,
        **(parameters(url) if where is None else where),
    )
    try:
        await conn.set_read_only(True)
        yield ReadOnlySession(conn)
    finally:
        await conn.close()
