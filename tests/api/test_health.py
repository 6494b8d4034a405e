"""Health checks and active connections."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
from psycopg import sql
from support.client import Client
from support.server import Launcher, Server
from support.waiting import TIMEOUT_S, eventually

from sse_pg.version import VERSION
from sse_pg.watched_task import end_all

ACTIVE = "/api/events/active-connections"


async def active(client: Client) -> dict[str, Any]:
    status, body, response = await client.request("GET", ACTIVE)
    assert status == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert body["activeConnections"] == sum(server["activeConnections"] for server in body["servers"])
    return body


async def until(client: Client, condition: Any) -> dict[str, Any]:
    """Ask until the answer is as it should be."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition(body := await active(client)):
            await asyncio.sleep(0.02)
    return body


def cut(db: psycopg.Connection) -> None:
    """End every LISTEN connection to this database."""
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'sse-pg tail'"
    )


def allow(db: psycopg.Connection, database_url: str, allowed: bool) -> None:
    """Let new connections in, or not; those that are open stay."""
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    statement = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
    db.execute(statement.format(sql.Identifier(str(name)), sql.SQL(str(allowed).lower())))


async def die(server: Server) -> None:
    """End a server's tasks, as SIGKILL does, without telling the database."""
    await end_all(server.bus.tasks)


# ------------------------------------------------------------ health


async def test_live_and_ready(client: Client) -> None:
    assert await client.get("/healthz") == (200, {"status": "ok"})
    assert await client.get("/readyz") == (200, {"status": "ready"})


async def test_not_ready_while_the_listen_connection_is_down(
    launch: Launcher, database_url: str, postgres: Any, db: psycopg.Connection
) -> None:
    server = await launch()
    async with Client(server.url) as client:
        await client.publish("a", 1)
        with psycopg.connect(postgres.url, dbname="postgres", autocommit=True) as admin:
            allow(admin, database_url, False)
            cut(db)
            await eventually(lambda: not server.bus.tail.listening.is_set())
            status, body, response = await client.request("GET", "/readyz")
            assert status == 503
            assert "LISTEN" in body["detail"]
            assert int(response.headers["Retry-After"]) > 0
            assert (await client.get("/healthz"))[0] == 200
            status, body = await client.get("/api/events/stream?channels=a")
            assert (status, "LISTEN" in body["detail"]) == (503, True)
            await client.publish("a", 2)  # the pool's connection is still there
            allow(admin, database_url, True)
        await eventually(server.bus.tail.listening.is_set)
        assert (await client.get("/readyz"))[0] == 200
        async with client.stream("a", lastEventId="0") as stream:
            assert [e.json() for e in await stream.events(2)] == [1, 2]


async def test_a_stream_outlives_the_listen_connection(
    launch: Launcher, database_url: str, postgres: Any, db: psycopg.Connection
) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        with psycopg.connect(postgres.url, dbname="postgres", autocommit=True) as admin:
            allow(admin, database_url, False)
            cut(db)
            await eventually(lambda: not server.bus.tail.listening.is_set())
            await client.publish("a", "meanwhile")
            allow(admin, database_url, True)
        assert (await stream.event()).json() == "meanwhile"
        await client.publish("a", "after")
        assert (await stream.event()).json() == "after"


async def test_strangers_do_not_see_where_the_database_is(launch: Launcher, caplog: pytest.LogCaptureFixture) -> None:
    server = await launch(ready=False, database_url="postgresql://who@127.0.0.1:1/none", pool_timeout=0.2)
    async with Client(server.url) as client:
        await eventually(lambda: server.bus.tail.meter.failures)
        said = [await client.get(path) for path in ("/readyz", ACTIVE, "/api/events/stream?channels=a")]
    assert [status for status, _ in said] == [503, 503, 503]
    assert not any(secret in str(body) for _, body in said for secret in ("127.0.0.1", "port 1", "who", "none"))
    assert said[0][1]["detail"].endswith(": nothing listens at the address of the database.")
    assert "127.0.0.1" in caplog.text


async def test_not_ready_without_a_database(launch: Launcher) -> None:
    server = await launch(ready=False, database_url="postgresql://127.0.0.1:1/none", pool_timeout=0.2)
    async with Client(server.url) as client:
        assert (await client.get("/healthz"))[0] == 200
        for path in ("/readyz", ACTIVE, "/api/events/stream?channels=a"):
            status, body, response = await client.request("GET", path)
            assert status == 503
            assert body["detail"]
            assert int(response.headers["Retry-After"]) > 0


async def test_not_ready_with_a_listen_url_that_leads_nowhere(launch: Launcher) -> None:
    server = await launch(ready=False, listen_database_url="postgresql://127.0.0.1:1/none")
    async with Client(server.url) as client:
        await client.publish("a", 1)
        await eventually(lambda: "down" in server.bus.tail.last_error)
        status, body = await client.get("/readyz")
        assert (status, "LISTEN" in body["detail"]) == (503, True)


async def test_not_ready_while_draining(launch: Launcher) -> None:
    server = await launch()
    async with Client(server.url) as client:
        async with client.stream("a") as stream:
            await server.bus.end_streams(0)
            await stream.ended()
            status, body = await client.get("/readyz")
            assert (status, "stopping" in body["detail"]) == (503, True)
            status, _ = await client.get("/api/events/stream?channels=a")
            assert status == 503
        assert (await client.get("/healthz"))[0] == 200


# ------------------------------------------------------------ active connections


async def test_a_server_without_streams(client: Client) -> None:
    body = await active(client)
    (server,) = body["servers"]
    assert body["activeConnections"] == 0
    assert server["version"] == VERSION
    assert server["pid"] > 0
    assert server["name"]


async def test_this_server_s_own_count_is_of_this_moment(client: Client) -> None:
    async with AsyncExitStack() as stack:
        for count in (1, 2, 3):
            await stack.enter_async_context(client.stream("a"))
            assert (await active(client))["activeConnections"] == count
    await until(client, lambda body: body["activeConnections"] == 0)


async def test_a_refused_stream_does_not_count(client: Client) -> None:
    assert (await client.get("/api/events/stream"))[0] == 422
    assert (await client.get("/api/events/stream?channels=a&userId=u"))[0] == 403
    assert (await active(client))["activeConnections"] == 0


async def test_two_servers_count_together(launch: Launcher) -> None:
    servers = [await launch(server_name="one"), await launch(server_name="two")]
    async with Client(servers[0].url) as one, Client(servers[1].url) as two:
        async with one.stream("a"), two.stream("a"), two.stream("b"):
            for client in (one, two):
                body = await until(client, lambda body: body["activeConnections"] == 3)
                assert {s["name"]: s["activeConnections"] for s in body["servers"]} == {"one": 1, "two": 2}
        for client in (one, two):
            await until(client, lambda body: body["activeConnections"] == 0)
        await servers[1].stop()
        body = await active(one)
        assert [s["name"] for s in body["servers"]] == ["one"]


async def test_a_server_that_died_is_gone(launch: Launcher, db: psycopg.Connection) -> None:
    servers = [await launch(server_name="one"), await launch(server_name="two")]
    async with Client(servers[0].url) as one, Client(servers[1].url) as two, two.stream("a"):
        await until(one, lambda body: body["activeConnections"] == 1)
        await die(servers[1])
        body = await until(one, lambda body: len(body["servers"]) == 1)
        assert body["servers"][0]["name"] == "one"
        assert body["activeConnections"] == 0
        # Its row is still there: what tells is the lock, not the row.
        assert db.execute("SELECT count(*) FROM sse_pg.servers").fetchone() == (2,)


async def test_a_server_that_lost_its_connection_is_back_with_it(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(server_name="one")
    async with Client(server.url) as client, client.stream("a"):
        before = await active(client)
        cut(db)
        await eventually(lambda: not server.bus.tail.listening.is_set())
        await eventually(server.bus.tail.listening.is_set)
        assert await until(client, lambda body: body["servers"]) == before


async def test_more_streams_than_a_server_may_have(launch: Launcher) -> None:
    server = await launch(max_streams=2)
    async with Client(server.url) as client:
        async with client.stream("a"), client.stream("a"):
            status, body, response = await client.request("GET", "/api/events/stream?channels=a")
            assert status == 503
            assert "2" in body["detail"]
            assert int(response.headers["Retry-After"]) > 0
        await eventually(lambda: not server.bus.hub.streams)
        async with client.stream("a"):
            pass


@pytest.mark.parametrize("path", ["/healthz", "/readyz", ACTIVE])
async def test_answers_are_not_cached(client: Client, path: str) -> None:
    _, _, response = await client.request("GET", path)
    assert response.headers["Cache-Control"] == "no-store"
