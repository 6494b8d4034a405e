"""The two ways to the schema, and applying it from many places at once."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support.process import CHECKOUT
from support.programs import pg_dump

from sse_pg.db import queries
from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres
from sse_pg.errors import MigrationError


def dumped(url: str, *options: str) -> list[str]:
    with psycopg.connect(url) as conn:
        program = pg_dump(conn.info.server_version // 10000)
    done = subprocess.run(
        [program, "--schema=sse_pg", *options, url], capture_output=True, check=True, encoding="utf-8"
    )
    return [line for line in done.stdout.splitlines() if line and not line.startswith(("--", "\\"))]


@pytest.fixture
def role(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A role without any right."""
    name = f"r{uuid4().hex[:12]}"
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as conn:
        owned = conn.execute("SELECT datname FROM pg_database WHERE datallowconn AND datname LIKE 'empty%'").fetchall()
        for (database,) in owned:
            with psycopg.connect(make_conninfo(postgres.url, dbname=database), autocommit=True) as there:
                there.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_schema_and_migrations_are_the_same(database_url: str, empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as conn:
        conn.execute((CHECKOUT / "sql" / "schema.sql").read_bytes())
    by_schema, by_migrations = dumped(empty_database_url, "-s"), dumped(database_url, "-s")
    assert len(by_schema) > 200
    assert by_schema == by_migrations


_KEY = re.compile("'[0-9a-f]{64}'")
"""The key of the digests, which each database draws."""


def test_schema_and_migrations_begin_with_the_same_rows(database_url: str, empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as conn:
        conn.execute((CHECKOUT / "sql" / "schema.sql").read_bytes())
    options = ("-a", "--inserts", "--exclude-table=sse_pg.migrations")
    rows = [[_KEY.sub("a key", line) for line in dumped(url, *options)] for url in (empty_database_url, database_url)]
    assert rows[0] == rows[1]


def test_another_encoding_is_refused(postgres: EmbeddedPostgres) -> None:
    name = f"latin{uuid4().hex[:8]}"
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as conn:
        conn.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'").format(sql.Identifier(name))
        )
        try:
            with pytest.raises(MigrationError, match="LATIN1"):
                migrate(make_conninfo(postgres.url, dbname=name))
        finally:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_no_database_is_said_in_one_line() -> None:
    with pytest.raises(MigrationError, match="cannot be reached"):
        migrate("postgresql://127.0.0.1:1/nowhere")


def test_a_role_with_create_on_the_database_is_enough(empty_database_url: str, role: str) -> None:
    with psycopg.connect(empty_database_url) as conn:
        conn.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(conn.info.dbname), sql.Identifier(role))
        )
    url = make_conninfo(empty_database_url, user=role)
    assert migrate(url)
    with psycopg.connect(url, autocommit=True) as conn:
        assert conn.execute("SELECT current_setting('is_superuser')").fetchone() == ("off",)
        conn.execute("SELECT sse_pg.publish('a', 't', '1')")
        conn.execute("INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('a', 't', '2')")
        assert conn.execute("SELECT sse_pg.position()").fetchone() == ("2",)
        assert conn.execute("SELECT last, least_bound FROM sse_pg.publishers()").fetchone() == (2, None)
        with conn.transaction():
            conn.execute("SELECT sse_pg.publish('a', 't', '3')")
            assert conn.execute("SELECT last, least_bound FROM sse_pg.publishers()").fetchone() == (3, 2)


def test_a_role_without_create_is_told(empty_database_url: str, role: str) -> None:
    with pytest.raises(MigrationError, match="needs CREATE on the database"):
        migrate(make_conninfo(empty_database_url, user=role))


def test_each_statement_is_valid(database_url: str) -> None:
    """PostgreSQL takes each statement in sql/queries, with NULL for what it is given."""
    for query in queries.statements().values():
        text = re.sub(r"%\(\w+\)[sb]|%s", "NULL", re.sub("--.*", "", query.decode()))
        if not text.strip().startswith(("LISTEN", "UNLISTEN", "BEGIN")):
            with psycopg.connect(database_url) as conn:
                conn.execute(f"EXPLAIN {text}")  # type: ignore[arg-type]


def test_a_dump_with_events_can_be_restored(database_url: str, empty_database_url: str) -> None:
    """As pg_dump | psql does it: the search_path is empty, the CHECKs are tested for each row."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        assert conn.execute("SELECT sse_pg.make_partitions(2, 10)").fetchone() != (None,)
        conn.execute(
            "INSERT INTO sse_pg.events (channel, payload) SELECT 'ä', to_jsonb(g) FROM generate_series(1, 50) g"
        )
        conn.execute("SELECT sse_pg.subscribe('u', 'ä')")
        before = conn.execute("SELECT id, channel, event_type, payload, created_at FROM sse_pg.events").fetchall()
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("\n".join(dumped(database_url, "--inserts")).encode())
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        after = conn.execute("SELECT id, channel, event_type, payload, created_at FROM sse_pg.events").fetchall()
        assert sorted(after) == sorted(before)
        assert len(after) == 50
        assert conn.execute("SELECT sse_pg.publish('a', 't', '1')").fetchone() == (51,)
        with pytest.raises(psycopg.errors.CheckViolation, match="a channel has no white space"):
            conn.execute("SELECT sse_pg.publish('a b', 't', '1')")


def test_the_payload_limit_can_be_raised(database_url: str) -> None:
    """As docs/decisions.md says; partitions, made before and later, follow the table."""
    large = '"' + "x" * 2_000_000 + '"'
    text = (CHECKOUT / "docs" / "decisions.md").read_text(encoding="utf-8")
    (statement,) = re.findall(r"`(ALTER TABLE sse_pg\.events DROP CONSTRAINT events_payload[^`]*)`", text)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("SELECT sse_pg.make_partitions(1, 1)")
        with pytest.raises(psycopg.errors.CheckViolation, match="the payload of an event has at most"):
            conn.execute("SELECT sse_pg.publish('a', 't', %s)", [large])
        conn.execute(statement.encode())
        for _ in range(3):
            conn.execute("SELECT sse_pg.make_partitions(1, 1)")
            conn.execute("SELECT sse_pg.publish('a', 't', %s)", [large])
        parts = conn.execute("SELECT DISTINCT tableoid::regclass::text FROM sse_pg.events").fetchall()
        assert len(parts) > 1
        with pytest.raises(psycopg.errors.CheckViolation, match="the payload of an event has at most"):
            conn.execute("SELECT sse_pg.publish('a', 't', %s)", ['"' + "x" * 4194304 + '"'])


def test_an_unknown_lock_class_is_an_error(db: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidTextRepresentation, match="no lock class publisher"):
        db.execute("SELECT pg_advisory_xact_lock_shared(sse_pg.lock_class('publisher'), 1)")


def test_a_lock_class_is_its_number_when_the_statement_runs(db: psycopg.Connection) -> None:
    """Publishing calls the function several times, so it must cost nothing."""
    plan = db.execute("EXPLAIN VERBOSE SELECT pg_try_advisory_lock(sse_pg.lock_class('tail'), 1)").fetchall()
    assert any("pg_try_advisory_lock(1936941618, 1)" in line for (line,) in plan), plan


def test_no_index_depends_on_the_operating_system(database_url: str, db: psycopg.Connection) -> None:
    """An upgrade of glibc or ICU changes what it sorts by, and an index from before then misses rows that are there."""
    db.execute("SELECT sse_pg.make_partitions(1, 1)")
    found = db.execute(
        "SELECT i.indexrelid::regclass::text, k.place, c.collname"
        "  FROM pg_index i CROSS JOIN LATERAL unnest(i.indcollation) WITH ORDINALITY AS k(oid, place)"
        "  JOIN pg_class r ON r.oid = i.indexrelid JOIN pg_collation c ON c.oid = k.oid"
        " WHERE r.relnamespace = 'sse_pg'::regnamespace"
    ).fetchall()
    assert len(found) > 5
    assert [row for row in found if row[2] != "C"] == []
