"""A schema without the rows that it came with: TRUNCATE of every table, a copy of the schema alone."""

from __future__ import annotations

import psycopg
import pytest
from support.doctor import apply_fixes, found, one, report

from sse_pg.db.migrate import migrate
from sse_pg.errors import MigrationError


async def test_the_migrations_are_noted_again_by_the_statement_that_is_printed(
    db: psycopg.Connection, database_url: str
) -> None:
    before = db.execute("SELECT number, name FROM sse_pg.migrations ORDER BY number").fetchall()
    db.execute("TRUNCATE sse_pg.migrations")
    assert (await one("schema", database_url)).state == "error"
    with pytest.raises(MigrationError) as caught:
        migrate(database_url)
    text = str(caught.value)
    assert "\n" not in text
    db.execute(text.partition(": ")[2])  # type: ignore[arg-type]
    assert db.execute("SELECT number, name FROM sse_pg.migrations ORDER BY number").fetchall() == before
    assert migrate(database_url) == []
    db.execute("TRUNCATE sse_pg.migrations")
    apply_fixes(db, await found("schema", database_url))
    assert migrate(database_url) == []


async def test_the_doctor_names_a_log_without_its_row(db: psycopg.Connection, database_url: str) -> None:
    db.execute("TRUNCATE sse_pg.log")
    finding = await one("log", database_url)
    assert finding.state == "error"
    assert not [each for each in await report(database_url) if "could not be checked" in each.found]
    apply_fixes(db, [finding])
    assert (await one("log", database_url)).state == "ok"
