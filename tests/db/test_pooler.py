"""Behind a real PgBouncer in transaction mode, with a way past it for the connection that listens."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.client import Client
from support.pgbouncer import needs_pgbouncer, poolers
from support.server import Launcher
from support.waiting import eventually


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[str]:
    """The way to this test's database through a PgBouncer that takes its backends in turn."""
    with poolers(database_url) as start:
        yield start("transaction", min_pool_size="3", server_round_robin="1")


@needs_pgbouncer
async def test_requests_through_a_transaction_pooler(database_url: str, pooled_url: str, launch: Launcher) -> None:
    """Each kind of request more often than the count at which psycopg would prepare its statement."""
    server = await launch(database_url=pooled_url, listen_database_url=database_url)
    async with Client(server.url) as client:
        for number in range(20):
            assert await client.publish("orders", number) == number + 1
            status, history = await client.get(f"/api/events/history?channel=orders&after={number}")
            assert (status, [event["payload"] for event in history["events"]]) == (200, [number])
        async with client.stream("orders", lastEventId="0") as stream:
            assert [event.json() for event in await stream.events(20)] == list(range(20))


@needs_pgbouncer
async def test_a_pooler_that_leads_to_another_database_is_refused(
    database_url: str, db: psycopg.Connection, template: str
) -> None:
    """LISTEN leads to one database and the requests to another, as after a failover that reaches one of two ways."""
    (name,) = db.execute("SELECT current_database()").fetchone() or ("",)
    other = f"{name}_other"
    db.execute(f"CREATE DATABASE {other} TEMPLATE {template}")  # type: ignore[arg-type]
    launch = Launcher(database_url)
    try:
        with poolers(make_conninfo(database_url, dbname=other)) as start:
            server = await launch(ready=False, database_url=start("transaction"), listen_database_url=database_url)
            await eventually(lambda: "another log" in server.bus.tail.last_error)
            async with Client(server.url) as client:
                for path in ("/readyz", "/api/events/history?channel=a"):
                    status, body = await client.get(path)
                    assert (status, "another log" in body["detail"]) == (503, True), body
                status, body = await client.post("/api/events/publish", {"channel": "a", "payload": 1})
                assert (status, "nothing was published" in body["detail"]) == (503, True), body
            await launch.close()
    finally:
        db.execute(f"DROP DATABASE {other} WITH (FORCE)")  # type: ignore[arg-type]
