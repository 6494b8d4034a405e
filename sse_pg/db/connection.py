"""Connections: how they are opened and set up, how long a response may take, and what their errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg_pool
from psycopg.adapt import AdaptersMap
from psycopg.types.numeric import Int8BinaryLoader

from sse_pg.db import pooler
from sse_pg.db.hosts import Hosts
from sse_pg.db.queries import query
from sse_pg.errors import SsePgError, one_line

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

#: Seconds without a response to a statement after which a connection counts as dead.
RESPONSE_DEADLINE_S = 30.0

APPLICATION = "sse-pg"
#: Time that an attempt to connect to one host may take.
CONNECT_TIMEOUT_S = 5
#: In binary results a timestamptz stays what PostgreSQL sends: microseconds since 2000, UTC. Making datetimes of them
#: takes longer than reading the rest of a row.
ADAPTERS = AdaptersMap(psycopg.adapters)
ADAPTERS.register_loader("timestamptz", Int8BinaryLoader)
#: Parameters of every connection. A database that vanishes is noticed after some ten seconds, even if nothing is sent,
#: and not after the two hours that are the system's default. PostgreSQL does the same with a server: session_settings
#: has the same figures. The encoding is a parameter because it is in force before the first statement, and because a
#: pooler passes it on.
PARAMETERS: dict[str, Any] = {
    "autocommit": True,
    "client_encoding": "UTF8",
    "connect_timeout": CONNECT_TIMEOUT_S,
    "context": ADAPTERS,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10000,
}

#: SQLSTATEs, or their beginnings, that blame the server and not the statement: connection (08), resources (53: disk,
#: memory, connections), operator intervention (57), system error (58), read-only (25006: a primary that was demoted),
#: and what expect_log() raises (SP503: a standby, another log).
_UNAVAILABLE = ("08", "53", "57", "58", "25006", "SP503")


class NoResponse(psycopg.OperationalError):
    """The server did not respond within a deadline. Its other connections may be as dead as this one."""


async def connect_listener(url: str | None, hosts: Hosts | None = None) -> Connection:
    """Open and set up the connection that LISTENs; ``hosts`` are those of the connection string.

    Raises BusUnavailable, before anything is set, if a transaction pooler is in between.
    """
    conn = await psycopg.AsyncConnection[tuple[Any, ...]].connect(
        url or "", application_name=f"{APPLICATION} tail", **PARAMETERS, **(hosts or Hosts(url)).parameters
    )
    try:
        await pooler.refuse(url, conn)
        await set_up(conn)
    except BaseException:
        await conn.close()
        raise
    return conn


async def refuse_pooler(url: str | None) -> None:
    """Raise BusUnavailable if a transaction pooler is on the way of the connection that LISTENs.

    A database that cannot be reached now is no reason: the server waits for it.
    """
    with contextlib.suppress(psycopg.Error, OSError):
        await (await connect_listener(url)).close()


async def set_up(conn: psycopg.AsyncConnection[Any], *, local: bool = False, limits: bool = True) -> None:
    """Set what our statements rely on, for the session, or with ``local`` for the transaction.

    ``limits``: how long statements and transactions may take, too.
    """
    await conn.execute(query("session_settings"), {"local": local, "limits": limits})


def is_unavailable(error: BaseException) -> bool:
    """Return whether an error means that the database cannot serve now."""
    if isinstance(error, psycopg_pool.PoolTimeout | psycopg_pool.PoolClosed | psycopg_pool.TooManyRequests):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate in ("40001", "40P01"):
        # On a standby: what the primary has dropped or vacuumed is in the way of the statement. In a transaction, the
        # same code comes from elsewhere, and its text is in the language of the server.
        return error.diag.source_file == "postgres.c"
    if error.sqlstate == "42501":
        return error.diag.source_file == "rls.c"  # a policy that would hide rows from us: see row_security
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_UNAVAILABLE)
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


@contextlib.contextmanager
def deadline(conn: psycopg.AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """Cut a connection that does not respond in time; the statement then fails with an OperationalError.

    Cancelling the task instead would make psycopg ask the server to cancel, over a network that may be just as dead.
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
            raise NoResponse(f"no response within {seconds:g} s") from error
        raise
    finally:
        timer.cancel()


def describe(error: Exception) -> str:
    """Return an error as one line for a person. An error that nobody expects is called unexpected."""
    if isinstance(error, SsePgError | psycopg.Error | OSError):
        return one_line(error)
    return f"unexpected {type(error).__name__}: {one_line(error)}"


def summary(error: BaseException) -> str:
    """Return the first line of an error, for a log line or a person."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
