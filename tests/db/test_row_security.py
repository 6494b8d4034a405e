"""Row level security on the tables of the bus hides no event: the server says so and refuses."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.client import Client
from support.doctor import apply_fixes, found
from support.process import CHECKOUT
from support.server import Launcher
from support.waiting import eventually

PUBLISH = "/api/events/publish"


@pytest.fixture
def server_url(database_url: str, db: psycopg.Connection) -> Iterator[str]:
    """The database as a login with the rights of sse_pg_server has it."""
    db.execute((CHECKOUT / "sql" / "roles.sql").read_bytes())
    db.execute("CREATE ROLE bus_login LOGIN IN ROLE sse_pg_server")
    yield make_conninfo(database_url, user="bus_login")
    db.execute("DROP ROLE bus_login")


async def test_a_policy_is_an_error_that_readiness_and_doctor_name(
    server_url: str, launch: Launcher, db: psycopg.Connection
) -> None:
    db.execute("SELECT sse_pg.publish('a', 't', '1')")
    db.execute("ALTER TABLE sse_pg.events ENABLE ROW LEVEL SECURITY")
    server = await launch(ready=False, database_url=server_url)
    await eventually(lambda: "row-level security" in server.bus.tail.last_error)
    async with Client(server.url) as client:
        status, body = await client.get("/readyz")
        assert (status, "row-level security" in body["detail"]) == (503, True)
        status, body = await client.get("/api/events/history?channel=a")
        assert (status, "row-level security" in body["detail"]) == (503, True)
        status, _, _ = await client.request("GET", "/api/events/stream?channels=a&lastEventId=0")
        assert status == 503
        apply_fixes(db, await found("policies", server_url))
        await eventually(server.bus.tail.listening.is_set)
        async with client.stream("a", last_event_id="0") as stream:
            assert (await stream.event()).json() == 1
    assert [finding.state for finding in await found("policies", server_url)] == ["ok"]


async def test_a_policy_that_comes_while_a_stream_is_open_moves_no_position(
    server_url: str, launch: Launcher, db: psycopg.Connection
) -> None:
    server = await launch(database_url=server_url)
    async with Client(server.url) as client, client.stream("a") as stream:
        db.execute("ALTER TABLE sse_pg.events ENABLE ROW LEVEL SECURITY")
        db.execute("SELECT sse_pg.publish('a', 't', '\"hidden\"')")
        await eventually(lambda: "row-level security" in server.bus.tail.last_error)
        assert server.bus.hub.position.high == 0
        assert (await client.get("/readyz"))[0] == 503
        db.execute("ALTER TABLE sse_pg.events DISABLE ROW LEVEL SECURITY")
        assert (await stream.event()).json() == "hidden"


async def test_a_forced_policy_refuses_a_publish_and_says_why(
    launch: Launcher, database_url: str, server_url: str, db: psycopg.Connection
) -> None:
    server = await launch(database_url=server_url)
    db.execute("CREATE ROLE bus_owner")
    (name,) = db.execute("SELECT current_database()").fetchone() or ("",)
    try:
        db.execute(f"GRANT CREATE ON DATABASE {name} TO bus_owner")  # type: ignore[arg-type]
        db.execute("ALTER SCHEMA sse_pg OWNER TO bus_owner")
        db.execute("ALTER TABLE sse_pg.events OWNER TO bus_owner")
        db.execute("ALTER FUNCTION sse_pg.publish_many OWNER TO bus_owner")
        db.execute("ALTER TABLE sse_pg.events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        async with Client(server.url) as client:
            status, body = await client.post(PUBLISH, {"channel": "a", "payload": 1})
            assert (status, "row-level security" in body["detail"]) == (503, True)
        assert [finding.state for finding in await found("policies", database_url)] == ["error"]
    finally:
        await server.stop()
        db.execute("REASSIGN OWNED BY bus_owner TO postgres")
        db.execute("DROP OWNED BY bus_owner")
        db.execute("DROP ROLE bus_owner")
