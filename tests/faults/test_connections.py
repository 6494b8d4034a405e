"""Connections to the database that are ended, cut, hung or all in use: streams go on, and answers are true."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from faults.helpers import Poster, as_in_table, connection, following, insert, proxied, running, table
from sse_pg.delivery import tail as tail_module

TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"


@pytest.mark.parametrize("which", ["the one that listens", "all"])
async def test_backends_are_terminated(launch: Launcher, database_url: str, db: psycopg.Connection, which: str) -> None:
    server = await launch()
    poster = Poster(server.url)
    async with following(server.url) as follower:
        async with running(poster.run()):
            for _ in range(5):
                count = len(poster.accepted)
                await eventually(lambda c=count: len(poster.accepted) > c + 20)
                await eventually(server.bus.tail.listening.is_set)
                only = " AND application_name = 'sse-pg tail'" if which != "all" else " AND pid <> pg_backend_pid()"
                (ended,) = db.execute(f"SELECT count(*) FROM ({TERMINATE}{only}) ended").fetchone() or (0,)
                assert ended >= (1 if which != "all" else 2)
            count = len(poster.accepted)
            await eventually(lambda c=count: len(poster.accepted) > c + 20)
        await as_in_table(follower, database_url)
        assert follower.connects == 1
        assert follower.payloads == sorted(follower.payloads)
    poster.check(await table(database_url))


async def test_connections_are_cut(launch: Launcher, database_url: str) -> None:
    async with proxied(database_url) as (proxy, url):
        server = await launch(database_url=url)
        poster = Poster(server.url)
        async with following(server.url) as follower:
            async with running(poster.run()):
                for _ in range(5):
                    count = len(poster.accepted)
                    await eventually(lambda c=count: len(poster.accepted) > c + 20)
                    proxy.cut()
                count = len(poster.accepted)
                await eventually(lambda c=count: len(poster.accepted) > c + 20)
            await as_in_table(follower, database_url)
            assert follower.connects == 1
        poster.check(await table(database_url))


async def test_connections_hang(launch: Launcher, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections stay open and pass nothing: the server notices, is not ready, and recovers."""
    monkeypatch.setattr(tail_module, "RESPONSE_DEADLINE_S", 0.5)
    monkeypatch.setattr("sse_pg.db.pool.RESPONSE_DEADLINE_S", 0.5)
    async with proxied(database_url) as (proxy, url):
        server = await launch(database_url=url, pool_timeout=0.5)
        poster = Poster(server.url)
        async with (
            Client(server.url) as client,
            following(server.url) as follower,
            connection(database_url) as elsewhere,
        ):
            async with running(poster.run()):
                await eventually(lambda: len(poster.accepted) > 20)
                proxy.hang()
                await eventually(lambda: not server.bus.tail.listening.is_set())
                status, _, response = await client.request("GET", "/readyz")
                assert status == 503
                assert response.headers["Retry-After"]
                await insert(elsewhere, -1)
                await eventually(lambda: len(poster.answers) >= 2)
                proxy.resume()
                count = len(poster.accepted)
                await eventually(lambda: len(poster.accepted) > count + 20)
            await as_in_table(follower, database_url)
            assert -1 in follower.payloads
            assert follower.connects == 1
            await eventually(lambda: server.bus.why_not_ready() is None)
            assert (await client.get("/readyz"))[0] == 200
        poster.check(await table(database_url))


async def test_a_server_stops_though_its_connections_hang(
    launch: Launcher, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "RESPONSE_DEADLINE_S", 0.5)
    monkeypatch.setattr("sse_pg.db.pool.RESPONSE_DEADLINE_S", 0.5)
    async with proxied(database_url) as (proxy, url):
        server = await launch(database_url=url, pool_timeout=0.5)
        async with Client(server.url) as client, client.stream("a") as stream:
            proxy.hang()
            publishing = asyncio.create_task(client.post("/api/events/publish", {"channel": "a", "payload": 1}))
            await eventually(lambda: server.bus.pool.get_stats()["pool_available"] == 0)
            async with asyncio.timeout(12):
                await server.stop()
                await stream.ended()
                status, body = await publishing
            assert (status, body["type"]) == (503, "urn:sse-pg:outcome-unknown")


async def test_the_pool_is_exhausted(launch: Launcher, database_url: str) -> None:
    """Requests get 503 with Retry-After, and other events are still delivered; afterwards all is as before."""
    server = await launch(pool_size=1, pool_timeout=0.3)
    async with (
        Client(server.url) as client,
        client.stream("a") as stream,
        connection(database_url, autocommit=False) as locking,
        connection(database_url) as elsewhere,
    ):
        await locking.execute("SELECT sse_pg.subscribe('u', 'a')")
        body = {"userId": "u", "channel": "a"}
        subscribing = asyncio.create_task(client.post("/api/events/channels/subscribe", body))
        await eventually(lambda: server.bus.pool.get_stats()["pool_available"] == 0)
        await _waits_for_a_lock(elsewhere)
        for number in range(3):
            status, problem, response = await client.request(
                "POST", "/api/events/publish", json={"channel": "a", "payload": "refused"}
            )
            assert status == 503, problem
            assert problem["type"] == "about:blank"
            assert int(response.headers["Retry-After"]) > 0
            await insert(elsewhere, number)
            assert (await stream.event()).json() == number
        assert not subscribing.done()
        await locking.commit()
        assert (await subscribing)[0] == 200
        await client.publish("a", "after")
        assert (await stream.event()).json() == "after"
    assert "refused" not in await table(database_url)


async def test_a_user_stream_is_delivered_to_while_the_pool_is_exhausted(launch: Launcher, database_url: str) -> None:
    """The subscriptions have changed but cannot be read: the channels that it already follows still come."""
    server = await launch(pool_size=1, pool_timeout=0.3)
    async with (
        Client(server.url) as client,
        connection(database_url, autocommit=False) as locking,
        connection(database_url) as elsewhere,
    ):
        await elsewhere.execute("SELECT sse_pg.subscribe('v', 'a')")
        async with client.stream(userId="v") as stream, client.stream("a") as plain:
            await locking.execute("SELECT sse_pg.subscribe('u', 'a')")
            body = {"userId": "u", "channel": "a"}
            subscribing = asyncio.create_task(client.post("/api/events/channels/subscribe", body))
            await _waits_for_a_lock(elsewhere)
            await elsewhere.execute("SELECT sse_pg.subscribe('v', 'b')")
            await insert(elsewhere, 1)
            for each in (stream, plain):
                assert (await each.event()).json() == 1
            await insert(elsewhere, 2, channel="b")
            assert (await stream.event()).json() == 2
            assert not subscribing.done()
            await locking.commit()
            await subscribing


async def test_a_key_that_another_transaction_holds(launch: Launcher, database_url: str) -> None:
    """A publish waits for the other publisher of its key, and the publishes of others do not wait with it."""
    server = await launch()
    async with (
        Client(server.url) as client,
        connection(database_url, autocommit=False) as holding,
        connection(database_url) as elsewhere,
    ):
        await holding.execute("SELECT sse_pg.publish('a', 'message', '1', 'key')")
        body = {"channel": "a", "payload": 1, "idempotencyKey": "key"}
        waiting = asyncio.create_task(client.post("/api/events/publish", body))
        await _waits_for_a_lock(elsewhere)
        async with asyncio.timeout(10):
            await client.publish("a", 2)
        await holding.commit()
        status, answer = await waiting
        assert status in (201, 503), answer
        status, answer = await client.post("/api/events/publish", body)
        assert status == 201
    assert sorted(await table(database_url)) == [1, 2]


async def _waits_for_a_lock(conn: psycopg.AsyncConnection[tuple[int]]) -> None:
    """Wait until some backend of this database waits for a transaction."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(20):
        while await (await conn.execute(waiting)).fetchone() is None:
            await asyncio.sleep(0.01)


async def test_the_first_publish_after_all_connections_were_lost(launch: Launcher, database_url: str) -> None:
    """However many dead connections the pool has: the first request finds one that works."""
    server = await launch(pool_size=8, pool_timeout=0.9)
    async with Client(server.url) as client, connection(database_url) as elsewhere:
        async with AsyncExitStack() as stack:
            for _ in range(8):
                await stack.enter_async_context(server.bus.pool.connection())
        await eventually(lambda: server.bus.pool.get_stats()["pool_available"] == 8)
        await elsewhere.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'sse-pg'"
        )
        await client.publish("a", 1)
        status, _ = await client.get("/api/events/history", params={"channel": "a"})
        assert status == 200
