"""sse_pg.id_at(): what is younger than a moment is found by id, without reading the log."""

from __future__ import annotations

import psycopg
import pytest

pytestmark = pytest.mark.oldest

OLD = """
INSERT INTO sse_pg.events (id, channel, payload, created_at) OVERRIDING SYSTEM VALUE
SELECT n, 'a', '1', now() - make_interval(mins => 1000 - n) FROM generate_series(1, 999) n
"""
LAST_HOUR = "SELECT sse_pg.id_at(now() - interval '60 minutes')"


def value(db: psycopg.Connection, statement: str) -> int:
    row = db.execute(statement).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return int(row[0])


def fill(db: psycopg.Connection) -> None:
    """An event a minute, the last a minute ago."""
    with db.transaction():  # so that now() is the same in both
        db.execute("SELECT setval('sse_pg.events_id_seq', 999)")
        db.execute(OLD)


def test_an_empty_log(db: psycopg.Connection) -> None:
    assert value(db, LAST_HOUR) == 0


def test_it_is_the_last_id_before_the_moment(db: psycopg.Connection) -> None:
    fill(db)
    with db.transaction():
        wanted = value(db, "SELECT max(id) FROM sse_pg.events WHERE created_at < now() - interval '60 minutes'")
        assert value(db, LAST_HOUR) == wanted
        assert 930 < wanted < 950
    assert value(db, "SELECT sse_pg.id_at('-infinity')") == 0
    assert value(db, "SELECT sse_pg.id_at('infinity')") == 999


@pytest.mark.parametrize("gone", ["id % 7 > 0", "id < 900", "id > 950", "id BETWEEN 900 AND 960", "true"])
def test_ids_that_are_missing(db: psycopg.Connection, gone: str) -> None:
    fill(db)
    db.execute(f"DELETE FROM sse_pg.events WHERE {gone}")  # type: ignore[arg-type]
    with db.transaction():
        wanted = value(
            db, "SELECT coalesce(max(id), 0) FROM sse_pg.events WHERE created_at < now() - interval '60 minutes'"
        )
        assert value(db, LAST_HOUR) == wanted


def test_across_partitions_and_epochs(db: psycopg.Connection) -> None:
    fill(db)
    db.execute("SELECT sse_pg.begin_epoch()")
    db.execute("SELECT sse_pg.make_partitions(2, 100)")
    last = value(db, "SELECT sse_pg.publish('a', '1')")
    assert last > 1_000_000_000
    assert value(db, "SELECT sse_pg.id_at(now() - interval '30 seconds')") == 999
    assert value(db, "SELECT sse_pg.id_at(now() + interval '1 hour')") == last


def test_it_reads_a_few_rows_of_many(db: psycopg.Connection) -> None:
    db.execute("INSERT INTO sse_pg.events (channel, payload) SELECT 'a', '1' FROM generate_series(1, 20000)")
    db.execute("ANALYZE sse_pg.events")
    read = (
        "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables"
        " WHERE relid = 'sse_pg.events_default'::regclass"
    )
    with db.transaction():
        before = value(db, read)
        value(db, LAST_HOUR)
        assert value(db, read) - before < 200
