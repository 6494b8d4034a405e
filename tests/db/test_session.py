"""Settings that a connection inherits from the database, the role or the environment change nothing."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import psycopg
import pytest
from support.client import Client
from support.doctor import report
from support.locks import advisory_locks
from support.pgbouncer import Pooler, needs_pgbouncer
from support.server import Launcher, Server
from support.waiting import eventually

from sse_pg.db.connection import connect_listener
from sse_pg.db.migrate import migrate
from sse_pg.db.pool import connection, make_pool
from sse_pg.errors import MigrationError

EURO = {"price": "5 €"}


def alter(db: psycopg.Connection, name: str, value: str) -> None:
    """Set a parameter for every new session of the database."""
    (database,) = db.execute("SELECT current_database()").fetchone() or ("",)
    db.execute(f"ALTER DATABASE {database} SET {name} = {value}")  # type: ignore[arg-type]


SETTINGS = [
    ("client_encoding", "'SQL_ASCII'"),
    ("client_encoding", "'LATIN1'"),
    ("client_encoding", "'EUC_JP'"),
    ("standard_conforming_strings", "off"),
    ("DateStyle", "'German'"),
    ("IntervalStyle", "'sql_standard'"),
    ("TimeZone", "'Asia/Kolkata'"),
    ("bytea_output", "'escape'"),
    ("search_path", "public, pg_catalog"),
    ("default_transaction_isolation", "'serializable'"),
    ("lock_timeout", "'1ms'"),
    ("quote_all_identifiers", "on"),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=[f"{name}={value}" for name, value in SETTINGS])
async def test_settings_of_the_database(launch: Launcher, db: psycopg.Connection, name: str, value: str) -> None:
    alter(db, name, value)
    await everything_works(launch)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
async def test_the_encoding_of_the_environment(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    await everything_works(launch)


async def test_options_of_the_environment(launch: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c standard_conforming_strings=off -c datestyle=german -c lock_timeout=1")
    await everything_works(launch)


async def everything_works(launch: Callable[[], Awaitable[Server]]) -> None:
    """Publish, replay, page, subscribe, maintain, examine."""
    server = await launch()
    async with Client(server.url) as client:
        async with client.stream("a") as stream:
            number = await client.publish("a", EURO)
            event = await stream.event()
            assert (event.id, event.json()) == (str(number), EURO)
        async with client.stream("a", last_event_id="0") as stream:
            assert (await stream.event()).json() == EURO
        status, history = await client.get("/api/events/history?channel=a")
        assert (status, [event["payload"] for event in history["events"]]) == (200, [EURO])
        assert history["events"][0]["createdAt"].startswith("20")
        status, _ = await client.post("/api/events/publish", {"channel": "a", "payload": EURO, "idempotencyKey": "€"})
        assert status == 201
        assert (await client.get("/readyz"))[0] == 200
    await eventually(lambda: server.bus.maintenance.made > 0)
    rows = await server.bus.store._rows("partition_room")
    assert rows[0][1] > 0, "partitions() finds those that were made"
    findings = await report(server.bus.settings.database_url or "")
    bad = [finding for finding in findings if finding.state != "ok" and finding.name not in ("durability", "files")]
    assert bad == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("standard_conforming_strings", "off"),
        ("client_encoding", "'LATIN1'"),
        ("plpgsql.extra_errors", "'all'"),
        ("statement_timeout", "'60ms'"),
        ("default_transaction_isolation", "'serializable'"),
        ("search_path", "nowhere"),
    ],
)
def test_migrate_with_settings_of_the_database(empty_database_url: str, name: str, value: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        alter(db, name, value)
        assert migrate(empty_database_url)
        assert db.execute("SELECT sse_pg.subscribe('user', 'a')").fetchone() == (True,)
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute("SELECT sse_pg.subscribe(E'\\x01', 'a')")


def test_a_database_that_is_read_only_says_which_setting_it_is(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        alter(db, "default_transaction_read_only", "on")
        with pytest.raises(MigrationError, match="default_transaction_read_only is on"):
            migrate(empty_database_url)


@pytest.mark.parametrize(("encoding", "text"), [("LATIN1", b"\xfc"), ("SQL_ASCII", b"\xc3\xbc"), ("UTF8", b"\xc3\xbc")])
async def test_a_publisher_with_another_encoding(
    launch: Launcher, database_url: str, encoding: str, text: bytes
) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream("ü") as stream:
        with psycopg.connect(database_url, autocommit=True, client_encoding=encoding) as conn:
            conn.execute(b"SELECT sse_pg.publish('" + text + b"', 'T', '\"" + text + b"\"')")
            if encoding != "LATIN1":
                with pytest.raises(psycopg.errors.CharacterNotInRepertoire):
                    conn.execute(b"SELECT sse_pg.publish('a', 'T', '\"\xfc\"')")
        assert (await stream.event()).json() == "ü"


def test_partitions_are_found_by_a_session_without_standard_strings(db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.make_partitions(1, 1000)")
    db.execute("SET standard_conforming_strings = off")
    assert db.execute("SELECT count(*) > 0 FROM sse_pg.partitions()").fetchone() == (True,)


@needs_pgbouncer
@pytest.mark.parametrize(
    ("name", "value"),
    [("client_encoding", "'LATIN1'"), ("standard_conforming_strings", "off"), ("search_path", "public, pg_catalog")],
)
async def test_behind_a_transaction_pooler(
    database_url: str, pooler: Pooler, launch: Launcher, db: psycopg.Connection, name: str, value: str
) -> None:
    alter(db, name, value)
    url = pooler("transaction", min_pool_size="3", server_round_robin="1")
    server = await launch(database_url=url, listen_database_url=database_url)
    async with Client(server.url) as client:
        async with client.stream("a") as stream:
            for _ in range(6):
                await client.publish("a", EURO)
            assert [event.json() for event in await stream.events(6)] == [EURO] * 6
        async with client.stream("a", last_event_id="0") as stream:
            assert [event.json() for event in await stream.events(6)] == [EURO] * 6
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as conn:
        # Nothing of ours stays behind on the backends that others are given.
        assert {conn.execute("SHOW row_security").fetchone() for _ in range(9)} == {("on",)}


@needs_pgbouncer
async def test_a_transaction_pooler_under_listen_is_refused_before_anything_is_set(
    pooler: Pooler, launch: Launcher, db: psycopg.Connection
) -> None:
    url = pooler("transaction", min_pool_size="2")
    server = await launch(ready=False, database_url=url)
    await eventually(lambda: "transaction pooler" in server.bus.tail.last_error)
    async with Client(server.url) as client:
        status, body = await client.get("/readyz")
    assert (status, "SSE_PG_LISTEN_DATABASE_URL" in body["detail"]) == (503, True)
    assert db.execute("SELECT count(*) FROM sse_pg.servers").fetchone() == (0,)
    assert advisory_locks(db) == 0
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as conn:
        assert conn.execute("SHOW row_security").fetchone() == ("on",)


@needs_pgbouncer
async def test_a_session_pooler_under_listen_is_fine(pooler: Pooler, launch: Launcher) -> None:
    url = pooler("session")
    await everything_works(lambda: launch(database_url=url))


async def test_time_limits_of_the_database(database_url: str, db: psycopg.Connection) -> None:
    alter(db, "statement_timeout", "'5s'")
    alter(db, "idle_session_timeout", "'5s'")
    async with make_pool(database_url, 1, 20.0) as pool, connection(pool) as conn:
        for name, value in (("statement_timeout", "28s"), ("idle_session_timeout", "0")):
            cursor = await conn.execute(f"SHOW {name}")  # type: ignore[arg-type]
            assert await cursor.fetchone() == (value,)


async def test_the_listener_asks_for_nothing_it_does_not_get(database_url: str) -> None:
    assert "PGCLIENTENCODING" not in os.environ
    conn = await connect_listener(database_url)
    try:
        assert conn.info.encoding == "utf-8"
    finally:
        await conn.close()
