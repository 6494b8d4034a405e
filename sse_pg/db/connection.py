"""Connections: the pool for requests, the one connection that LISTENs, and what their errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import psycopg_pool
from psycopg.adapt import AdaptersMap
from psycopg.types.numeric import Int8BinaryLoader

from sse_pg.errors import BusUnavailable, SsePgError, one_line

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class Pool(psycopg_pool.AsyncConnectionPool[Connection]):
    """A pool that knows for how long its connections were lent: its own count leaves out ``getconn``."""

    lent_seconds = 0.0


#: Seconds without an answer to a request's statement after which its connection is taken for dead.
RESPONSE_DEADLINE_S = 30.0

_APPLICATION = "sse-pg"
#: In binary answers a moment is what PostgreSQL sends: the microseconds since 2000, UTC. Making datetimes of them takes
#: longer than reading the rest of a row.
ADAPTERS = AdaptersMap(psycopg.adapters)
ADAPTERS.register_loader("timestamptz", Int8BinaryLoader)
# A peer that vanished without a word is noticed in half a minute, not in the two hours of the system's default.
_KEEPALIVE: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20000,
}

#: SQLSTATE classes that say that the server, not the statement, is at fault: connection (08), resources (53: disk,
#: memory, connections), operator intervention (57), system error (58).
#: 25006: it only reads, as a primary does that was demoted.
_UNAVAILABLE = ("08", "53", "57", "58", "25006")


def make_pool(url: str | None, size: int, timeout: float, *, pooled: bool = False) -> Pool:
    """Return the pool of request connections, not yet open. ``timeout`` in seconds.

    ``pooled``: a transaction pooler is in between. It hands each transaction to another backend, where a statement that
    was prepared is unknown or another's, unless it keeps track of them, which PgBouncer does since 1.21. So none is
    prepared.
    """
    return Pool(
        url or "",
        connection_class=psycopg.AsyncConnection[tuple[Any, ...]],
        kwargs={
            "autocommit": True,
            "application_name": _APPLICATION,
            "connect_timeout": 5,
            "context": ADAPTERS,
            **({"prepare_threshold": None} if pooled else {}),
            **_KEEPALIVE,
        },
        min_size=1,
        max_size=size,
        timeout=timeout,
        reconnect_timeout=5,
        open=False,
    )


async def connect_listener(url: str | None) -> Connection:
    """Open the connection that LISTENs."""
    return await psycopg.AsyncConnection.connect(
        url or "",
        autocommit=True,
        application_name=f"{_APPLICATION} tail",
        connect_timeout=5,
        context=ADAPTERS,
        **_KEEPALIVE,
    )


@asynccontextmanager
async def lend(pool: Pool) -> AsyncIterator[Connection]:
    """Lend a connection that is still there, as far as can be told.

    The pool has a check of its own, but pauses for longer and longer after each connection that it finds dead: after a
    restart of the database all of them are.
    """
    conn = await pool.getconn()
    for _ in range(pool.max_size):
        if await _is_alive(conn):
            break
        await conn.close()
        await pool.putconn(conn)
        conn = await pool.getconn()
    since = time.monotonic()
    try:
        yield conn
    finally:
        await pool.putconn(conn)
        pool.lent_seconds += time.monotonic() - since


async def _is_alive(conn: Connection) -> bool:
    """Find out, without a round trip in the usual case, whether a pooled connection is still there.

    An idle connection with something to read has been told that it is over (or has a notice): ask.
    """
    poller = select.poll()  # not select(): file numbers go beyond 1024 with thousands of streams
    try:
        poller.register(conn.fileno(), select.POLLIN)
        if poller.poll(0):
            await conn.execute(b"")
    except psycopg.Error:
        return False
    return not conn.closed


def is_unavailable(error: BaseException) -> bool:
    """Tell whether an error means that the database cannot serve now."""
    if isinstance(error, psycopg_pool.PoolTimeout | psycopg_pool.PoolClosed | psycopg_pool.TooManyRequests):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_UNAVAILABLE)
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


@contextlib.contextmanager
def deadline(conn: Connection, seconds: float) -> Iterator[None]:
    """Cut a connection that does not answer in time; the statement then fails with an OperationalError.

    Cancelling the task instead would make psycopg ask the server to cancel, over a network that may be as dead.
    """
    late = False

    def cut() -> None:
        nonlocal late
        late = True
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(seconds, cut)
    try:
        yield
    except psycopg.Error as error:
        if late:
            raise psycopg.OperationalError(f"no answer within {seconds:g} s") from error
        raise
    finally:
        timer.cancel()


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    """Lend a connection for reading; raises BusUnavailable when the database is away."""
    try:
        async with lend(pool) as conn:
            with deadline(conn, RESPONSE_DEADLINE_S):
                yield conn
    except psycopg.Error as error:
        if is_unavailable(error):
            raise BusUnavailable(summary(error)) from error
        raise


def describe(error: Exception) -> str:
    """Return an error as one line for a person; an error that nobody expects is called so."""
    if isinstance(error, SsePgError | psycopg.Error | OSError):
        return one_line(error)
    return f"unexpected {type(error).__name__}: {one_line(error)}"


def summary(error: BaseException) -> str:
    """Return the first line of an error, for a log line or a person."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
