"""The pool of connections: it lends what works and leads to the right log, and gets everything back."""

from __future__ import annotations

import asyncio
import contextlib
import select

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg.db import pool as pool_module
from sse_pg.db.pool import PooledConnection, connection, lend, make_pool
from sse_pg.db.store import Store
from sse_pg.errors import BusUnavailable

SIZE = 4
END_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'sse-pg'"
)
ALL = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sse-pg'"


async def test_requests_that_are_cancelled_while_the_database_restarts_cost_no_connection(
    database_url: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = 0
    execute = PooledConnection.execute

    async def counting(self: PooledConnection, statement: bytes, *args: object, **kwargs: object) -> object:
        nonlocal checks
        checks += statement == b""
        return await execute(self, statement, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(PooledConnection, "execute", counting)
    async with make_pool(database_url, SIZE, 20.0) as pool:
        store = Store(pool)
        for _ in range(20):
            await asyncio.gather(*(store.ping() for _ in range(SIZE)))
            db.execute(END_ALL)  # what a restart does to idle connections
            requests = [asyncio.create_task(store.ping()) for _ in range(10)]
            for turns, request in enumerate(requests):
                for _ in range(turns):
                    await asyncio.sleep(0)
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
        assert checks > 0, "no request was in the check of a connection"
        # As many as the pool may have can be lent at once.
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(20):
            lent = [await stack.enter_async_context(lend(pool)) for _ in range(SIZE)]
            assert len(set(map(id, lent))) == SIZE
        await eventually(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"])
        assert pool.get_stats()["pool_size"] == SIZE


async def test_a_connection_that_is_being_set_up_when_a_rest_begins_does_not_stay(
    database_url: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    set_up = pool_module.set_up

    async def late(conn: PooledConnection, **options: bool) -> None:
        begun.set()
        await go_on.wait()
        await set_up(conn, **options)

    def count() -> int:
        return len(db.execute(ALL).fetchall())

    monkeypatch.setattr(pool_module, "set_up", late)
    async with make_pool(database_url, SIZE, 20.0) as pool:
        await begun.wait()
        await pool.let_go()
        assert count() > 0
        go_on.set()
        await eventually(lambda: count() == 0)
        await pool.come_back()
        await Store(pool).ping()
        assert count() > 0


async def test_the_check_of_a_connection_has_a_deadline(
    database_url: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_pg.db.pool.CHECK_DEADLINE_S", 0.2)
    execute = PooledConnection.execute

    async def slow(self: PooledConnection, statement: bytes, *args: object, **kwargs: object) -> object:
        return await execute(self, b"SELECT pg_sleep(60)" if statement == b"" else statement, *args, **kwargs)  # type: ignore[arg-type]

    async with make_pool(database_url, 1, 20.0) as pool:
        async with connection(pool) as first:
            await first.execute("LISTEN noise")
        # A notification waits on an idle connection; the server does not respond to what is asked then.
        db.execute("NOTIFY noise")
        poller = select.poll()
        poller.register(first.fileno(), select.POLLIN)
        await eventually(lambda: poller.poll(0))
        monkeypatch.setattr(PooledConnection, "execute", slow)
        async with asyncio.timeout(20), connection(pool) as second:
            assert second is not first


async def test_a_connection_to_another_database_is_refused(
    launch: Launcher, database_url: str, db: psycopg.Connection, template: str
) -> None:
    """LISTEN leads to one database and the requests to another, as after a failover that reaches one of two ways."""
    (name,) = db.execute("SELECT current_database()").fetchone() or ("",)
    other = f"{name}_other"
    db.execute(f"CREATE DATABASE {other} TEMPLATE {template}")  # type: ignore[arg-type]
    try:
        server = await launch(
            ready=False, listen_database_url=database_url, database_url=make_conninfo(database_url, dbname=other)
        )
        await eventually(lambda: server.bus.pool.log_identity is not None)
        async with Client(server.url) as client:
            for path in ("/readyz", "/api/events/history?channel=a"):
                status, body = await client.get(path)
                assert status == 503, body
                assert "published" not in body["detail"]
            await eventually(lambda: "another log" in server.bus.tail.last_error)
            status, body = await client.post("/api/events/publish", {"channel": "a", "payload": 1})
            assert (status, "nothing was published" in body["detail"]) == (503, True)
        await server.stop()
    finally:
        db.execute(f"DROP DATABASE {other} WITH (FORCE)")  # type: ignore[arg-type]


async def test_connections_move_with_the_connection_that_listens(database_url: str) -> None:
    async with make_pool(database_url, 2, 20.0) as pool:
        async with connection(pool) as conn:
            assert isinstance(conn, PooledConnection)
            here = conn.log_identity
        assert here
        pool.log_identity = "another"
        with pytest.raises(BusUnavailable, match="another log"):
            await Store(pool).ping()
        pool.log_identity = here
        await Store(pool).ping()
