"""Detects a transaction pooler: PgBouncer with pool_mode = transaction, and what cloud services put in front.

It gives a backend to somebody else between two transactions. A LISTEN, a setting and an advisory lock of a session
would stay behind on a backend that others use. So the detection only compares the backends' process ids.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psycopg

from sse_pg.db.hosts import parameters
from sse_pg.db.queries import query
from sse_pg.errors import BusUnavailable

#: Other connections that are opened at the same time to see whether one of them is given our backend.
OTHER_CONNECTIONS = 4
#: How often that is done: somebody else may hold our backend just then.
ROUNDS = 3
#: Seconds that a pooler may take to give a backend.
BACKEND_TIMEOUT_S = 5.0

ADVICE = (
    "the connection goes through a transaction pooler, which loses LISTEN and the locks that go with it: set "
    "SSE_PG_LISTEN_DATABASE_URL to PostgreSQL itself (often port 5432), to a pooler with pool_mode = session, or to "
    "none if there is no such address: the server then polls (docs/poolers.md)"
)


async def shares_backends(url: str | None, conn: psycopg.AsyncConnection[Any], *, thorough: bool = False) -> bool:
    """Return whether the connection's backend is given to others between its transactions.

    A connection whose backend has the process id that was announced when it began leads to PostgreSQL itself, because
    poolers announce ids of their own. ``thorough`` does not rely on that, and takes a backend that is not given in time
    for the work of a pooler.
    """
    own = await _backend(conn)
    if own == conn.info.backend_pid and not thorough:
        return False
    for _ in range(ROUNDS):
        if await _is_given_to_others(url, conn, own, thorough=thorough):
            return True
    return False


async def _is_given_to_others(url: str | None, conn: psycopg.AsyncConnection[Any], own: int, *, thorough: bool) -> bool:
    """Hold other backends, and see whether our own is among them or is no longer ours."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(OTHER_CONNECTIONS):
            try:
                async with asyncio.timeout(BACKEND_TIMEOUT_S):
                    other = await psycopg.AsyncConnection.connect(
                        url or "",
                        autocommit=True,
                        application_name="sse-pg",
                        connect_timeout=5,
                        prepare_threshold=None,
                        **parameters(url),
                    )
                    stack.push_async_callback(other.close)
                    await stack.enter_async_context(other.transaction())
                    if await _backend(other) == own:
                        return True
            except TimeoutError:  # no backend is given: something between us and PostgreSQL counts them, or all is slow
                if thorough:
                    return True
                break
        return await _backend(conn) != own


async def refuse(url: str | None, conn: psycopg.AsyncConnection[Any]) -> None:
    """Raise BusUnavailable if the connection, of which nothing was asked yet, goes through a transaction pooler."""
    if await shares_backends(url, conn):
        raise BusUnavailable(ADVICE)


async def _backend(conn: psycopg.AsyncConnection[Any]) -> int:
    """Return the process id of the backend that serves a transaction."""
    row = await (await conn.execute(query("backend"))).fetchone()
    if not conn.autocommit:
        await conn.rollback()
    assert row is not None
    return int(row[0])
