"""finish(): who may write the event that ends a channel, and what it is."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from sse_pg.core import names

ROLES = Path(__file__).parents[2] / "sql" / "roles.sql"
END = names.END
INSERT = f"INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('a', '{END}', '{{}}')"
WAYS = {
    "insert": INSERT,
    "publish": f"SELECT sse_pg.publish('a', '{END}', '{{}}')",
    "publish json": f"SELECT sse_pg.publish('a', '{END}', json '{{}}')",
    "with a key": f"SELECT sse_pg.publish('a', '{END}', '{{}}', 'key')",
    "publish_many": f"SELECT sse_pg.publish_many('{{b,a}}', '{{t,{END}}}', ARRAY['1', '2'])",
    "with keys": f"SELECT sse_pg.publish_many('{{b,a}}', '{{t,{END}}}', ARRAY['1', '2'], '{{k,l}}')",
}


def refused(conn: psycopg.Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught, conn.transaction():
        conn.execute(statement)  # type: ignore[arg-type]
    assert caught.value.diag.message_primary == names.event_type_fault(END)


def test_finish_publishes_the_end(db: psycopg.Connection) -> None:
    assert db.execute("SELECT sse_pg.publish('a', '1'), sse_pg.finish('a')").fetchone() == (1, 2)
    assert db.execute("SELECT channel, event_type, payload FROM sse_pg.events WHERE id = 2").fetchall() == [
        ("a", END, {"channel": "a"})
    ]
    with pytest.raises(psycopg.errors.CheckViolation, match="a channel has no white space"):
        db.execute("SELECT sse_pg.finish('a b')")


@pytest.mark.parametrize("statement", WAYS.values(), ids=WAYS)
def test_nothing_else_does(db: psycopg.Connection, statement: str) -> None:
    """Not even the owner, in a transaction that has published, or that has finished a channel."""
    refused(db, statement)
    with db.transaction():
        db.execute("SELECT sse_pg.publish('a', '1')")
        db.execute("SELECT sse_pg.finish('a')")
        refused(db, statement)
        for _ in range(12):  # beyond the windows that a transaction shows
            db.execute("SELECT sse_pg.publish('a', '1')")
        refused(db, statement)
        db.execute("SELECT sse_pg.finish('a')")
    with (
        pytest.raises(psycopg.errors.CheckViolation),
        db.cursor().copy("COPY sse_pg.events (channel, event_type, payload) FROM STDIN") as copy,
    ):
        copy.write_row(("a", END, "{}"))


def test_a_publisher_cannot_forge_the_sign(db: psycopg.Connection, database_url: str) -> None:
    """publish() runs with the rights of the owner. So does finish(), and its sign is no use afterwards."""
    db.execute(ROLES.read_text())  # type: ignore[arg-type]
    role = f"publisher_of_{db.info.dbname}"
    db.execute(f"CREATE ROLE {role} IN ROLE sse_pg_publisher")  # type: ignore[arg-type]
    db.execute(f"GRANT INSERT (channel, event_type, payload) ON sse_pg.events TO {role}")  # type: ignore[arg-type]
    try:
        db.execute(f"SET ROLE {role}")  # type: ignore[arg-type]
        for sign in ("", "on", "sse-pg.end"):
            db.execute("SELECT set_config('sse_pg.finishing', %s, false)", [sign])
            for statement in WAYS.values():
                refused(db, statement)
        assert db.execute("SELECT sse_pg.finish('a')").fetchone()
        for statement in WAYS.values():
            refused(db, statement)
    finally:
        db.execute("RESET ROLE")
        db.execute(f"DROP OWNED BY {role}")  # type: ignore[arg-type]
        db.execute(f"DROP ROLE {role}")  # type: ignore[arg-type]


def test_a_finish_that_fails_leaves_no_sign(db: psycopg.Connection) -> None:
    with db.transaction():
        with pytest.raises(psycopg.errors.CheckViolation), db.transaction():
            db.execute("SELECT sse_pg.finish('a b')")
        refused(db, WAYS["publish"])
        assert db.execute("SELECT sse_pg.finish('a')").fetchone()
    with db.transaction():
        db.execute("SELECT sse_pg.finish('a')")
        assert db.execute("SELECT current_setting('sse_pg.finishing')").fetchone() == ("",)


def test_who_copies_a_log_copies_its_ends(db: psycopg.Connection) -> None:
    """The data of pg_dump goes into the partitions themselves; logical replication applies rows as a replica."""
    with db.cursor().copy("COPY sse_pg.events_default (id, channel, event_type, payload) FROM STDIN") as copy:
        copy.write_row((1, "a", END, "{}"))
    with db.transaction():
        db.execute("SET LOCAL session_replication_role = replica")
        with db.cursor().copy("COPY sse_pg.events (id, channel, event_type, payload) FROM STDIN") as copy:
            copy.write_row((2, "a", END, "{}"))
    db.execute("UPDATE sse_pg.events SET payload = '[]' WHERE id = 2")
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (2,)


def test_last_events(db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.make_partitions(2, 2)")
    db.execute("SELECT sse_pg.publish(c, '1') FROM unnest('{a,b,a,b,c}'::text[]) c")
    db.execute("SELECT sse_pg.finish('a')")
    found = db.execute("SELECT * FROM sse_pg.last_events('{a,b,d}') ORDER BY 1").fetchall()
    assert found == [("a", 6, END), ("b", 4, "message")]
