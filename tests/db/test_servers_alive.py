"""live_servers(): a row counts as long as its lock is held, or for a time if its server polls."""

from __future__ import annotations

import psycopg

from sse_pg.db.queries import query


def register(conn: psycopg.Connection, name: str) -> int:
    row = conn.execute(query("server_insert"), [name, 42, "1.0", 1]).fetchone()
    assert row is not None
    conn.execute(query("server_lock"), [row[0]])
    return int(row[0])


def alive(conn: psycopg.Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT name FROM sse_pg.live_servers()").fetchall()]


def test_a_server_lives_as_long_as_its_connection(db: psycopg.Connection, database_url: str) -> None:
    assert alive(db) == []
    one, two = (psycopg.connect(database_url, autocommit=True) for _ in range(2))
    register(one, "one")
    register(two, "two")
    assert alive(db) == ["one", "two"]
    for conn, left in ((one, ["two"]), (two, [])):
        db.execute("SELECT pg_terminate_backend(%s, 20000)", [conn.info.backend_pid])
        conn.close()
        assert alive(db) == left


def test_a_row_without_a_lock_is_dead(db: psycopg.Connection) -> None:
    db.execute(query("server_insert"), ["gone", 42, "1.0", 1])
    assert alive(db) == []


def test_a_lock_in_another_database_is_another_server(
    db: psycopg.Connection, database_url: str, empty_database_url: str
) -> None:
    row = db.execute(query("server_insert"), ["gone", 42, "1.0", 1]).fetchone()
    assert row is not None
    with psycopg.connect(empty_database_url, autocommit=True) as elsewhere:
        (number,) = db.execute("SELECT sse_pg.lock_class('server')").fetchone() or (0,)
        elsewhere.execute("SELECT pg_advisory_lock_shared(%s, %s)", [number, row[0]])
        assert alive(db) == []


def test_a_server_that_polls_lives_for_a_time_after_each_update(db: psycopg.Connection) -> None:
    (number,) = db.execute(query("server_insert_polling"), ["polls", 42, "1.0", 1]).fetchone() or (0,)
    assert alive(db) == ["polls"]
    db.execute("UPDATE sse_pg.servers SET alive_until = clock_timestamp()")
    assert alive(db) == []
    assert db.execute(query("server_update"), [7, 11, 9, number]).fetchone() == (number,)
    assert alive(db) == ["polls"]
    (row,) = db.execute(query("servers_state")).fetchall()
    assert (row[1], row[6:]) == ("polls", (11, False, False, True))
    assert db.execute(
        "SELECT alive_until - clock_timestamp() BETWEEN interval '1 s' AND interval '10 s' FROM sse_pg.servers"
    ).fetchone() == (True,)


def test_an_update_makes_no_server_with_a_lock_one_that_polls(db: psycopg.Connection) -> None:
    number = register(db, "one")
    db.execute(query("server_update"), [7, 11, 9, number])
    assert db.execute("SELECT alive_until FROM sse_pg.servers").fetchone() == (None,)


def test_the_sweep_takes_the_dead_and_leaves_the_fresh(db: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as one:
        register(one, "alive")
        db.execute(query("server_insert"), ["dead", 42, "1.0", 1])
        db.execute("UPDATE sse_pg.servers SET updated_at = now() - interval '1 hour'")
        db.execute(query("server_insert"), ["fresh", 42, "1.0", 1])
        db.execute(query("servers_sweep"))
        rows = db.execute("SELECT name FROM sse_pg.servers ORDER BY name").fetchall()
        assert rows == [("alive",), ("fresh",)]


def test_the_count_is_kept(db: psycopg.Connection) -> None:
    number = register(db, "one")
    db.execute(query("server_update"), [7, 11, 9, number])
    row = db.execute(query("servers_live")).fetchone()
    assert row is not None
    assert (row[0], row[1], row[-1]) == (number, "one", 7)
    db.execute(query("server_delete"), [number])
    assert alive(db) == []
