"""Checks of the connection that LISTENs: it needs a backend of its own.

A transaction pooler (PgBouncer with pool_mode = transaction, and what cloud services put in front) gives the backend to
another client between two transactions. So the process ids of the backends are compared before anything LISTENs: a
LISTEN that went through would stay on a backend that others use.
"""

from __future__ import annotations

import secrets

import psycopg

from sse_pg.db.connect_failure import cause_of
from sse_pg.db.connection import summary
from sse_pg.db.pooler import shares_backends
from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, ok
from sse_pg.doctor.session import ReadOnlySession, read_only_session

#: Time within which a notification has to arrive.
NOTIFICATION_TIMEOUT_S = 5.0

FIX_POOLER = (
    "set SSE_PG_LISTEN_DATABASE_URL to PostgreSQL itself (often port 5432), to a pooler with pool_mode = session, or "
    "to none (docs/poolers.md)"
)


async def listening(exam: Examination) -> list[Finding]:
    """Check that a notification sent over DATABASE_URL arrives at a connection that LISTENs."""
    settings = exam.settings
    if settings.polls:
        busy_ms, idle_ms = round(settings.poll * 1000), round(settings.idle_poll * 1000)
        return [ok("listen", f"nothing listens: the server reads the log every {busy_ms} to {idle_ms} ms")]
    source = "SSE_PG_LISTEN_DATABASE_URL" if settings.listen_database_url else "DATABASE_URL"
    try:
        async with read_only_session(settings.listen_url) as session:
            if await shares_backends(settings.listen_url, session.conn, thorough=True):
                return [
                    error(
                        "listen",
                        f"{source} goes through a transaction pooler, which loses LISTEN and the session's locks",
                        FIX_POOLER,
                    )
                ]
            arrived = await _notification_arrives(settings.database_url, session)
    except (psycopg.Error, OSError) as problem:
        cause = cause_of(problem)
        return [
            error("listen", f"no connection to {source} can LISTEN: {cause.reason} ({summary(problem)})", cause.fix)
        ]
    if not arrived:
        return [
            error(
                "listen",
                f"a notification sent over DATABASE_URL does not arrive over {source} within "
                f"{NOTIFICATION_TIMEOUT_S:g} s",
                "point both at the same database of the same server; " + FIX_POOLER,
            )
        ]
    return [ok("listen", f"notifications arrive over {source}")]


async def requests(exam: Examination) -> list[Finding]:
    """If LISTEN has a connection string of its own, or there is no LISTEN, check how the requests connect."""
    if exam.settings.listen_database_url is None:
        return []
    async with read_only_session(exam.settings.database_url) as session:
        pooled = await shares_backends(exam.settings.database_url, session.conn, thorough=True)
    if pooled:
        return [
            ok("requests", "DATABASE_URL goes through a transaction pooler; requests do not use prepared statements")
        ]
    more = ", so LISTEN works there, and events arrive sooner with it" if exam.settings.polls else ""
    return [ok("requests", f"each connection of DATABASE_URL has a backend of its own{more}")]


async def _notification_arrives(url: str | None, session: ReadOnlySession) -> bool:
    """Send a notification to ``url`` and wait for it in the session."""
    token = secrets.token_hex(8)
    await session.rows("doctor_listen")
    try:
        async with read_only_session(url) as other:
            await other.rows("doctor_notify", [token])
        async for notify in session.conn.notifies(timeout=NOTIFICATION_TIMEOUT_S):
            if notify.payload == token:
                return True
        return False
    finally:
        await session.rows("doctor_unlisten")
