"""The connections of a command that works on the database itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from sse_pg import logs
from sse_pg.config import Settings
from sse_pg.database import Pool, make_pool, summary
from sse_pg.errors import BusUnavailable


@asynccontextmanager
async def open_pool(settings: Settings, size: int) -> AsyncIterator[Pool]:
    """Give a pool. Raises BusUnavailable that says why, where the database cannot be reached; a pool only times out."""
    logs.configure("error", "text")
    try:
        conn = await psycopg.AsyncConnection.connect(settings.database_url or "", connect_timeout=10)
    except psycopg.OperationalError as error:
        raise BusUnavailable(f"the database cannot be reached: {summary(error)}") from error
    await conn.close()
    pooled = settings.listen_database_url is not None
    async with make_pool(settings.database_url, size, settings.pool_timeout, pooled=pooled) as pool:
        yield pool
