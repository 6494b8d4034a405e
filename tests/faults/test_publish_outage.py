"""Publishing while the database does not respond: what was not sent fails together, and nothing is kept for nobody."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import TIMEOUT_S, eventually

from faults.helpers import proxied, table
from sse_pg.db.draft import Draft
from sse_pg.db.pool import Pool, connection, lend, make_pool
from sse_pg.db.publisher import Publisher
from sse_pg.errors import BusUnavailable, OutcomeUnknown

PUBLISH = "/api/events/publish"


async def test_what_waits_behind_a_hung_connection_fails_and_what_was_sent_does_not(
    launch: Launcher, database_url: str
) -> None:
    async with proxied(database_url) as (proxy, url):
        server = await launch(database_url=url, listen_database_url=None, pool_timeout=0.5)
        async with Client(server.url) as client:
            await client.publish("a", "before")
            proxy.hang()
            sent = asyncio.create_task(client.post(PUBLISH, {"channel": "a", "payload": "sent"}))
            worker = server.bus.publisher._plain
            await eventually(lambda: worker.worker is not None and not worker.waiting and not worker.is_connecting)
            async with asyncio.timeout(TIMEOUT_S):
                answers = await asyncio.gather(
                    *(client.request("POST", PUBLISH, json={"channel": "a", "payload": n}) for n in range(30))
                )
            for status, body, response in answers:
                assert (status, body["type"]) == (503, "about:blank"), body
                assert "nothing was published" in body["detail"]
                assert int(response.headers["Retry-After"]) > 0
            assert not sent.done()
            assert server.bus.publisher.waiting == 0
            proxy.resume()
            assert (await sent)[0] == 201
    assert await table(database_url) == ["before", "sent"]


async def test_requests_that_need_the_access_rule_fail_together(launch: Launcher, database_url: str) -> None:
    """Each of them asking in its turn would take thirty time-outs."""
    async with proxied(database_url) as (proxy, url):
        server = await launch(database_url=url, listen_database_url=None, pool_timeout=1.0, authorize_cache=0.0)
        async with Client(server.url) as client:
            await client.publish("a", "before")
            proxy.refusing = True
            proxy.cut()
            publish = {"json": {"channel": "a", "payload": 1}}
            async with asyncio.timeout(TIMEOUT_S):
                answers = await asyncio.gather(*(client.request("POST", PUBLISH, **publish) for _ in range(30)))
            assert {status for status, _, _ in answers} == {503}
    assert await table(database_url) == ["before"]


async def test_a_request_waits_for_the_database_without_another_one_that_asks(database_url: str) -> None:
    async with proxied(database_url) as (proxy, url), make_pool(url, 2, 60.0) as pool:
        async with connection(pool):
            pass
        proxy.refusing = True
        proxy.cut()
        publisher = Publisher(pool)
        published = asyncio.create_task(publisher.publish([Draft("a", "message", "1")]))
        await eventually(lambda: pool.get_stats().get("connections_errors", 0) >= 10)
        proxy.refusing = False
        async with asyncio.timeout(TIMEOUT_S):
            ((number, _),) = await published
            await publisher.close()
    assert number == 1


async def test_after_a_hang_no_old_connection_is_used(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse_pg.db.pool.RESPONSE_DEADLINE_S", 0.5)
    async with proxied(database_url) as (proxy, url), make_pool(url, 3, 20.0) as pool:
        before = await _backends(pool)
        publisher = Publisher(pool)
        proxy.hang()
        with pytest.raises(OutcomeUnknown):
            await publisher.publish([Draft("a", "message", "1")])
        proxy.resume()
        async with asyncio.timeout(TIMEOUT_S):
            assert not before & await _backends(pool)


async def _backends(pool: Pool) -> set[int]:
    """Return the processes behind all connections that a pool of three can have."""
    async with AsyncExitStack() as stack:
        lent = [await stack.enter_async_context(lend(pool)) for _ in range(3)]
        return {conn.info.backend_pid for conn in lent}


async def test_each_request_gets_an_error_of_its_own(database_url: str, db: psycopg.Connection) -> None:
    async with make_pool("postgresql://127.0.0.1:1/none", 1, 0.2) as pool:
        await _fail_together(Publisher(pool), BusUnavailable, 5)
    async with make_pool(database_url, 2, 20.0) as pool:
        with psycopg.connect(database_url) as lock:
            lock.execute("LOCK TABLE sse_pg.events IN SHARE MODE")
            failing = asyncio.create_task(_fail_together(Publisher(pool), OutcomeUnknown, 5))
            blocked = "SELECT pid FROM pg_locks WHERE NOT granted"
            await eventually(lambda: db.execute(blocked).fetchall())
            db.execute(f"SELECT pg_terminate_backend(pid) FROM ({blocked}) b")
            await failing


async def _fail_together(publisher: Publisher, kind: type[Exception], count: int) -> None:
    outcomes = await asyncio.gather(
        *(publisher.publish([Draft("a", "message", str(n))]) for n in range(count)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {kind}
    assert len({id(outcome) for outcome in outcomes}) == count
    await publisher.close()
