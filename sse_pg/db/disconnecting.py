"""Asks all servers to end the streams of a user."""

from __future__ import annotations

from sse_pg.db.pool import Pool, connection
from sse_pg.db.queries import query


async def disconnect(pool: Pool, user: str) -> None:
    """Send the message. Raises BusUnavailable if the database is unavailable."""
    async with connection(pool) as conn:
        await conn.execute(query("disconnect"), (user,))
