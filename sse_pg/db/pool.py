"""The pool of connections for requests: each is checked before it is lent."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import random
from typing import Any

import psycopg
import psycopg_pool

from sse_pg.db import pooler
from sse_pg.db.connection import (
    APPLICATION,
    PARAMETERS,
    RESPONSE_DEADLINE_S,
    Connection,
    NoResponse,
    deadline,
    is_unavailable,
    set_up,
    summary,
)
from sse_pg.db.demand import Demand
from sse_pg.db.hosts import Hosts
from sse_pg.db.queries import query
from sse_pg.errors import BusUnavailable

#: Seconds that the check of a connection may take.
CHECK_DEADLINE_S = 5.0
#: Connections that stay open without a request, so that the first publish after a quiet time does not have to connect.
MIN_CONNECTIONS = 1
#: Time without use after which another connection is closed; one of them each time.
MAX_IDLE_S = 60.0
#: Seconds until the next attempt to connect while a request waits for a connection, on average.
RECONNECT_PAUSE_S = 0.25
#: Connections that reading the log leaves to others: publishing without and with keys, and everything that is short.
RESERVED_CONNECTIONS = 3


class PooledConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection that knows where it leads."""

    log_identity: str | None = None
    """Which log is there; None as long as the connection has not been lent."""

    @classmethod
    async def connect(cls, conninfo: str = "", *, hosts: Hosts, **kwargs: Any) -> PooledConnection:  # type: ignore[override]
        """Connect to the first of the hosts that can be written to."""
        return await super().connect(conninfo, **kwargs, **hosts.parameters)


class Pool(psycopg_pool.AsyncConnectionPool[PooledConnection]):
    """A pool that knows where its connections must lead, and for how long they were lent.

    psycopg's own count of the time leaves out ``getconn``.
    """

    lent_seconds = 0.0
    behind_pooler = False
    """Whether a transaction pooler is in between."""
    identity_query = "expect_log"
    """The statement that says where a connection leads."""
    _is_direct = False
    """Whether it is known that there is none."""
    log_identity: str | None = None
    """Which log its connections must lead to; None until that is known."""

    def __init__(self, url: str, demand: Demand, **kwargs: Any) -> None:
        super().__init__(url, connection_class=PooledConnection, configure=self.set_up, open=False, **kwargs)
        self._url = url
        self.hosts = kwargs["kwargs"]["hosts"]
        self.demand = demand
        self._has_let_go = False
        self._returning: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._min_open = self.min_size
        self._reads = asyncio.Semaphore(max(1, self.max_size - RESERVED_CONNECTIONS))

    async def set_up(self, conn: PooledConnection) -> None:
        """Set up a new connection. Nothing is set for a session behind a transaction pooler, expected or not."""
        await self._refuse_at_rest(conn)  # this attempt to connect began earlier
        if self.behind_pooler:
            await conn.set_isolation_level(
                psycopg.IsolationLevel.READ_COMMITTED
            )  # of each transaction that lend() begins
            return
        with deadline(conn, CHECK_DEADLINE_S):
            if not self._is_direct:
                await pooler.refuse(self._url, conn)
                self._is_direct = True
            await set_up(conn)
        await self._refuse_at_rest(conn)  # the rest began meanwhile

    async def _refuse_at_rest(self, conn: PooledConnection) -> None:
        if self._has_let_go:
            await conn.close()
            raise psycopg.OperationalError("this server has let go of the database")

    @asynccontextmanager
    async def read_share(self) -> AsyncIterator[None]:
        """Wait until a connection may be taken to read the log, so that readers leave some to the others."""
        try:
            async with asyncio.timeout(self.timeout):
                await self._reads.acquire()
        except TimeoutError:
            raise BusUnavailable(f"others read the log for more than {self.timeout:g} s") from None
        try:
            yield
        finally:
            self._reads.release()

    async def let_go(self) -> None:
        """Close all connections, and open none until ``come_back``. Nobody may have one.

        psycopg's pool cannot be opened again once it is closed, and keeps ``min_size`` connections as long as it is
        open. So this takes the idle ones out of it, as its own shrinking does.
        """
        self._has_let_go = True
        await asyncio.gather(*self._returning, return_exceptions=True)
        await self.resize(0, self.max_size)
        async with self._lock:
            idle = list(self._pool)
            self._pool.clear()
            self._nconns -= len(idle)
        for conn in idle:
            await self._close_connection(conn)

    async def come_back(self) -> None:
        """Open connections again when they are needed."""
        if self._has_let_go:
            self._has_let_go = False
            await self.resize(self._min_open, self.max_size)

    async def give_back(self, conn: PooledConnection) -> None:
        """Put a connection back, even if the caller is cancelled meanwhile."""
        task = asyncio.create_task(self.putconn(conn))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)
        await asyncio.shield(task)

    async def reconnect_failed(self) -> None:
        """Try again soon if requests wait. psycopg calls this when it gives up; it does not try again by itself."""
        if self._retry is None:
            pause = RECONNECT_PAUSE_S * (0.5 + random())  # noqa: S311 - not a secret
            self._retry = asyncio.get_running_loop().call_later(pause, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self._waiting and not self.closed and not self._has_let_go:
            self._maybe_grow_pool()  # by itself the pool does so only when another request begins to wait


def make_pool(
    url: str | None,
    size: int,
    timeout: float,
    *,
    keep: int = MIN_CONNECTIONS,
    behind_pooler: bool = False,
    demand: Demand | None = None,
    hosts: Hosts | None = None,
) -> Pool:
    """Return a pool of connections for requests, not yet open. ``timeout`` in seconds; ``demand`` hears who needs one.

    ``keep``: connections that stay open without a request.

    A transaction pooler gives each transaction to another backend. So behind one nothing is set for a session, and no
    statement is prepared: a prepared statement is unknown to the next backend, unless the pooler keeps track of them.
    """
    pool = Pool(
        url or "",
        demand or Demand(),
        kwargs={
            "application_name": APPLICATION,
            "hosts": hosts or Hosts(url),
            **({"prepare_threshold": None} if behind_pooler else {}),
            **PARAMETERS,
        },
        min_size=keep,
        max_size=size,
        max_idle=MAX_IDLE_S,
        timeout=timeout,
        reconnect_timeout=0,
    )
    pool.behind_pooler = behind_pooler
    return pool


def make_standby_pool(url: str, size: int, timeout: float, demand: Demand | None = None) -> Pool:
    """Return a pool of connections to standbys, as ``make_pool`` does."""
    pool = make_pool(url, size, timeout, demand=demand, hosts=Hosts.as_given())
    pool.identity_query = "expect_copy"
    return pool


@asynccontextmanager
async def lend(pool: Pool, *, upkeep: bool = False, within: float | None = None) -> AsyncIterator[Connection]:
    """Lend a connection that works and leads to the log that the LISTEN connection reads.

    ``within``: how many seconds to wait for a connection, if not for as long as requests do.
    A server at rest comes back first, except for ``upkeep``: that raises BusUnavailable. Behind a transaction pooler
    the block is one transaction. It begins with the settings and the check, which go out together with the first
    statement.
    """
    with pool.demand.upkeep() if upkeep else pool.demand.hold():
        if not upkeep:
            await pool.demand.until_here(pool.timeout)
        conn = await _take(pool, pool.timeout if within is None else min(within, pool.timeout))
        since = time.monotonic()
        try:
            with deadline(conn, RESPONSE_DEADLINE_S):
                if pool.behind_pooler:
                    async with conn.pipeline(), conn.transaction():
                        await set_up(conn, local=True)
                        await conn.execute(query("expect_log"), (pool.log_identity,))
                        yield conn
                else:
                    yield conn
        except NoResponse:
            await pool.drain()
            raise
        except psycopg.errors.ReadOnlySqlTransaction:
            await conn.close()  # it was the primary, and is no longer; the next connection may lead elsewhere
            raise
        finally:
            await pool.give_back(conn)
            pool.lent_seconds += time.monotonic() - since


@asynccontextmanager
async def connection(pool: Pool, *, upkeep: bool = False, within: float | None = None) -> AsyncIterator[Connection]:
    """Lend a connection as ``lend`` does; raises BusUnavailable if the database is unavailable."""
    try:
        async with lend(pool, upkeep=upkeep, within=within) as conn:
            yield conn
    except psycopg.Error as error:
        if is_unavailable(error):
            raise BusUnavailable(summary(error)) from error
        raise


async def _take(pool: Pool, timeout: float) -> PooledConnection:
    """Take a connection out of the pool that is alive and leads where it must; wait up to ``timeout`` seconds for it.

    The pool has a check of its own, but pauses for longer and longer after each connection that it finds dead: after a
    restart of the database all of them are.
    """
    until = time.monotonic() + timeout
    for _ in range(pool.max_size + 1):
        conn = await pool.getconn(until - time.monotonic())
        try:
            with deadline(conn, CHECK_DEADLINE_S):
                if await _is_alive(conn) and await _leads_to_log(pool, conn):
                    return conn
            await conn.close()
        except NoResponse:
            await conn.close()
            await pool.drain()  # otherwise each of the others takes as long
        except BaseException as error:
            if isinstance(error, psycopg.Error) and is_unavailable(error):
                await conn.close()  # the next one may lead elsewhere
            await pool.give_back(conn)
            raise
        await pool.give_back(conn)
    raise psycopg.OperationalError("the database has closed every connection")


async def _is_alive(conn: PooledConnection) -> bool:
    """Find out, usually without a round trip, whether a pooled connection still works.

    An idle connection that has something to read was closed by the server, or was sent a notice. Asking tells which.
    """
    poller = select.poll()  # not select(): with thousands of streams, file numbers exceed 1024
    try:
        poller.register(conn.fileno(), select.POLLIN)
        if poller.poll(0):
            with deadline(conn, CHECK_DEADLINE_S):
                await conn.execute(b"")
    except NoResponse:
        raise
    except psycopg.Error:
        return False
    return not conn.closed


async def _leads_to_log(pool: Pool, conn: PooledConnection) -> bool:
    """Return whether a connection leads to the log that the LISTEN connection reads.

    Two ways to the database can lead to different servers, as after a failover behind a pooler. A standby that lags
    would serve a replay with a hole in it. A connection is asked once where it leads, and is of no use if the LISTEN
    connection has moved since. Raises psycopg's errors if a new connection leads elsewhere.
    """
    if pool.behind_pooler:
        return True  # lend() asks in each transaction
    if conn.log_identity is None:
        row = await (await conn.execute(query(pool.identity_query), (pool.log_identity,))).fetchone()
        assert row is not None
        conn.log_identity = row[0]
    return pool.log_identity in (None, conn.log_identity)
