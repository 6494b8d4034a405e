"""``sse-pg erase`` as a process."""

from __future__ import annotations

from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support.pgbouncer import Pooler, needs_pgbouncer
from support.process import one_line, run


def fill(db: psycopg.Connection, channel: str, count: int) -> None:
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload)"
        " SELECT %s, jsonb_build_object('n', g) FROM generate_series(1, %s) g",
        (channel, count),
    )


def left(db: psycopg.Connection) -> int:
    (count,) = db.execute("SELECT count(*) FROM sse_pg.events").fetchone() or (0,)
    return int(count)


def test_it_erases_and_says_what_stays(database_url: str, db: psycopg.Connection) -> None:
    fill(db, "a", 20)
    fill(db, "b", 5)
    done = run("erase", "a", "--yes", DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "erased 20 events of channel a; servers forget them within a second"
    assert said[1].startswith("VACUUM has removed the dead rows")
    assert "Backups" in said[2]
    assert left(db) == 5
    db.execute("CREATE EXTENSION IF NOT EXISTS pgstattuple")
    assert db.execute("SELECT dead_tuple_count FROM pgstattuple('sse_pg.events_default')").fetchone() == (0,)


@needs_pgbouncer
def test_through_a_transaction_pooler(pooler: Pooler, db: psycopg.Connection) -> None:
    fill(db, "a", 20)
    done = run("erase", "a", "--yes", DATABASE_URL=pooler("transaction", min_pool_size="3", server_round_robin="1"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "erased 20 events" in done.stdout
    assert "VACUUM has removed the dead rows" in done.stdout
    assert left(db) == 0


def test_it_erases_what_is_meant(database_url: str, db: psycopg.Connection) -> None:
    fill(db, "a", 20)
    run("erase", "a", "--containing", '{"n": 3}', "--yes", DATABASE_URL=database_url)
    assert left(db) == 19
    run("erase", "a", "--before", "2020-01-01", "--yes", DATABASE_URL=database_url)
    assert left(db) == 19
    done = run("erase", "a", "--before", "tomorrow", "--yes", DATABASE_URL=database_url)
    assert "erased 19 events" in done.stdout
    done = run("erase", "a", "--yes", DATABASE_URL=database_url)
    assert (done.returncode, done.stdout) == (0, "channel a has no such events\n")


def test_without_a_terminal_it_needs_yes(database_url: str, db: psycopg.Connection) -> None:
    fill(db, "a", 2)
    done = run("erase", "a", DATABASE_URL=database_url)
    assert done.returncode == 2
    assert "this would erase 2 events of channel a for good; pass --yes to do it" in done.stderr
    assert left(db) == 2


def test_it_refuses_in_one_line(database_url: str, db: psycopg.Connection) -> None:
    fill(db, "a", 1)
    assert "channel" in one_line(run("erase", "a.*", "--yes", DATABASE_URL=database_url))
    assert "soon" in one_line(run("erase", "a", "--before", "soon", "--yes", DATABASE_URL=database_url))
    assert "json" in one_line(run("erase", "a", "--containing", "{", "--yes", DATABASE_URL=database_url))
    assert left(db) == 1


def test_a_role_that_may_erase_but_not_vacuum(database_url: str, db: psycopg.Connection) -> None:
    role = f"r{uuid4().hex[:12]}"
    db.execute(
        sql.SQL(
            "CREATE ROLE {0} LOGIN; GRANT USAGE ON SCHEMA sse_pg TO {0};"
            "GRANT SELECT ON ALL TABLES IN SCHEMA sse_pg TO {0};"
            "GRANT EXECUTE ON FUNCTION sse_pg.erase, sse_pg.partitions, sse_pg.digest, sse_pg.expect_log TO {0}"
        ).format(sql.Identifier(role))
    )
    try:
        fill(db, "a", 2)
        done = run("erase", "a", "--yes", DATABASE_URL=make_conninfo(database_url, user=role))
        assert done.returncode == 0, done.stderr
        assert "The dead rows are still in the table's files: " in done.stdout
        assert left(db) == 0
    finally:
        db.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))
