"""A schema without the rows that it came with: TRUNCATE of every table, a copy of the schema alone."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support.client import Client
from support.doctor import apply_fixes, one, report
from support.process import CHECKOUT, one_line, process, run
from support.programs import pg_dump

from sse_pg.db import queries
from sse_pg.db.migrate import migrate
from sse_pg.errors import MigrationError

TABLES = (
    "SELECT oid::regclass::text FROM pg_class"
    " WHERE relnamespace = 'sse_pg'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
)


@pytest.fixture
def truncated(db: psycopg.Connection, database_url: str) -> str:
    """The database after events were published, and every table of the schema was truncated."""
    db.execute("SELECT sse_pg.publish('a', 'T', to_jsonb(n)) FROM generate_series(1, 8) n")
    db.execute("SELECT sse_pg.subscribe('u', 'a')")
    names = [sql.SQL(name) for (name,) in db.execute(TABLES).fetchall()]  # type: ignore[arg-type]
    assert len(names) > 10
    db.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(names)))
    return database_url


@pytest.fixture
def schema_only(db: psycopg.Connection, database_url: str, empty_database_url: str) -> str:
    """Another database with the schema, made by pg_dump --schema-only."""
    db.execute("SELECT sse_pg.publish('a', 'T', '1')")
    dump = subprocess.run(
        [pg_dump(db.info.server_version // 10000), "--schema-only", "--no-owner", database_url],
        capture_output=True,
        check=True,
        encoding="utf-8",
    ).stdout
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("\n".join(line for line in dump.splitlines() if not line.startswith("\\")).encode())
    return empty_database_url


def test_the_schema_says_its_version(database_url: str) -> None:
    """A migration that forgets it would be applied twice after a truncation."""
    with psycopg.connect(database_url) as conn:
        newest = queries.migrations()[-1].number
        assert conn.execute("SELECT sse_pg.schema_version()").fetchone() == (newest,)


@pytest.mark.parametrize("which", ["truncated", "schema_only"])
async def test_serve_makes_the_rows_again(which: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(which)
    with psycopg.connect(url, autocommit=True) as conn:
        first = conn.execute("SELECT coalesce(sse_pg.last_id(), 0) + 1").fetchone() or (0,)
        with pytest.raises(psycopg.Error, match="log is empty") as caught:
            conn.execute("SELECT * FROM sse_pg.read('0', '{a}')")
        assert "sse-pg migrate" in (caught.value.diag.message_hint or "")
        with process("serve", "--port", "0", DATABASE_URL=url) as server:
            async with Client(server.url()) as client, client.stream("a") as stream:
                assert await client.publish("a", "http") == first[0]
                conn.execute("SELECT sse_pg.publish('a', 'T', '\"sql\"')")
                assert [event.json() for event in await stream.events(2)] == ["http", "sql"]
        assert conn.execute("SELECT number, name FROM sse_pg.migrations ORDER BY number").fetchall() == [
            (step.number, step.name) for step in queries.migrations()
        ]
    assert not [finding for finding in await report(url) if finding.state == "error"]


async def test_a_client_of_before_the_truncation_is_sent_a_gap(truncated: str, launch: Callable[..., object]) -> None:
    migrate(truncated)
    server = await launch()  # type: ignore[misc]
    async with Client(server.url) as client, client.stream("a", last_event_id="5") as stream:
        assert (await stream.event()).json()["reason"] == "expired"


def test_migrate_says_what_it_has_made_again(truncated: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert migrate(truncated) == []
    assert "sse_pg.migrations is empty" in caplog.text
    caplog.clear()
    assert migrate(truncated) == []
    assert not caplog.records
    with psycopg.connect(truncated) as conn:
        assert conn.execute("SELECT purged_to FROM sse_pg.log").fetchone() == (8,)


def test_begin_epoch_by_hand_makes_the_row_too(truncated: str) -> None:
    with psycopg.connect(truncated, autocommit=True) as conn:
        assert conn.execute("SELECT sse_pg.begin_epoch() > 1000000000").fetchone() == (True,)
        assert conn.execute("SELECT purged_to, identity <> '' FROM sse_pg.log").fetchone() == (8, True)


async def test_who_is_not_the_owner_is_told_who_has_to_run_it(truncated: str, db: psycopg.Connection) -> None:
    db.execute((CHECKOUT / "sql" / "roles.sql").read_bytes())
    db.execute("CREATE ROLE bus_emptied LOGIN IN ROLE sse_pg_server")
    try:
        url = make_conninfo(truncated, user="bus_emptied")
        assert "run sse-pg migrate as the owner" in one_line(run("migrate", DATABASE_URL=url))
        finding = await one("schema", url)
        assert (finding.state, "sse-pg migrate" in finding.fix) == ("error", True)
    finally:
        db.execute("DROP ROLE bus_emptied")


def test_a_newer_schema_without_a_record_is_refused(truncated: str, db: psycopg.Connection) -> None:
    db.execute("CREATE OR REPLACE FUNCTION sse_pg.schema_version() RETURNS integer LANGUAGE sql IMMUTABLE RETURN 9999")
    with pytest.raises(MigrationError, match=r"version 9999.*upgrade"):
        migrate(truncated)
    assert db.execute("SELECT FROM sse_pg.migrations").rowcount == 0


async def test_the_doctor_names_a_log_without_its_row(db: psycopg.Connection, database_url: str) -> None:
    db.execute("TRUNCATE sse_pg.log")
    finding = await one("log", database_url)
    assert finding.state == "error"
    assert not [each for each in await report(database_url) if "could not be checked" in each.found]
    apply_fixes(db, [finding])
    assert (await one("log", database_url)).state == "ok"
