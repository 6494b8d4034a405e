"""Checks of the way to the database: a connection that LISTENs needs a backend of its own.

A transaction pooler (PgBouncer's pool_mode = transaction, and what cloud services put in front) gives the backend away
between two transactions. That is looked for first, by the backends' process ids: a LISTEN that went through
would stay behind on a backend that others use.
"""

from __future__ import annotations

import secrets

import psycopg

from sse_pg.db.connection import summary
from sse_pg.db.pooler import shares_backends
from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, ok
from sse_pg.doctor.session import ReadOnlySession, read_only_session

#: Seconds that a notification may take.
PATIENCE = 5.0

PAST = "set SSE_PG_LISTEN_DATABASE_URL to PostgreSQL itself (often port 5432), or to a pooler with pool_mode = session"


async def listening(exam: Examination) -> list[Finding]:
    """Check that a notification sent over DATABASE_URL arrives at a connection that LISTENs."""
    settings = exam.settings
    way = "SSE_PG_LISTEN_DATABASE_URL" if settings.listen_database_url else "DATABASE_URL"
    try:
        async with read_only_session(settings.listen_url) as session:
            if await shares_backends(settings.listen_url, session.conn, thorough=True):
                return [
                    error(
                        "listen",
                        f"{way} goes through a transaction pooler, which loses LISTEN and the locks that go with it",
                        PAST,
                    )
                ]
            heard = await _hears(settings.database_url, session)
    except (psycopg.Error, OSError) as problem:
        return [error("listen", f"no connection over {way} can LISTEN: {summary(problem)}", PAST)]
    if not heard:
        return [
            error(
                "listen",
                f"a notification sent over DATABASE_URL does not arrive over {way} within {PATIENCE:g} s",
                "let both lead to the same database of the same server; " + PAST,
            )
        ]
    return [ok("listen", f"notifications arrive over {way}")]


async def requests(exam: Examination) -> list[Finding]:
    """Where LISTEN has a way of its own: say what the way of the requests is."""
    if not exam.settings.listen_database_url:
        return []
    async with read_only_session(exam.settings.database_url) as session:
        pooled = await shares_backends(exam.settings.database_url, session.conn, thorough=True)
    if pooled:
        return [
            ok("requests", "DATABASE_URL goes through a transaction pooler; requests go without prepared statements")
        ]
    return [ok("requests", "DATABASE_URL has backends of its own")]


async def _hears(url: str | None, session: ReadOnlySession) -> bool:
    """Send a notification over the one way and wait for it on the other."""
    token = secrets.token_hex(8)
    await session.rows("doctor_listen")
    try:
        async with read_only_session(url) as other:
            await other.rows("doctor_notify", [token])
        async for notify in session.conn.notifies(timeout=PATIENCE):
            if notify.payload == token:
                return True
        return False
    finally:
        await session.rows("doctor_unlisten")
