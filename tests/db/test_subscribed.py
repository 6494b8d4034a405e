"""Subscriptions: the functions, and who is told of a change."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

Told = Callable[[], list[str]]
END = "the end of this test"
ALL = "subscriptions"


@pytest.fixture
def told(database_url: str) -> Iterator[Told]:
    """Return what the servers were told since the last call; an own notification marks the end."""
    with (
        psycopg.connect(database_url, autocommit=True) as listener,
        psycopg.connect(database_url, autocommit=True) as marker,
    ):
        listener.execute("LISTEN sse_pg_control")

        def take() -> list[str]:
            marker.execute("SELECT pg_notify('sse_pg_control', %s)", [END])
            heard = []
            for notification in listener.notifies(timeout=20):
                if notification.payload == END:
                    return sorted(heard)
                heard.append(notification.payload)
            raise AssertionError("the marker did not come")

        yield take


def insert(db: psycopg.Connection, users: int) -> None:
    db.execute("INSERT INTO sse_pg.subscriptions SELECT 'u' || n, 'a' FROM generate_series(1, %s) n", [users])


def test_subscribe_and_unsubscribe(db: psycopg.Connection, told: Told) -> None:
    assert db.execute("SELECT sse_pg.subscribe('u', 'a')").fetchone() == (True,)
    assert told() == ["subscriptions u"]
    assert db.execute("SELECT sse_pg.subscribe('u', 'a')").fetchone() == (False,)
    assert told() == []
    assert db.execute("SELECT user_id, channel FROM sse_pg.subscriptions").fetchall() == [("u", "a")]
    assert db.execute("SELECT sse_pg.unsubscribe('u', 'b')").fetchone() == (False,)
    assert told() == []
    assert db.execute("SELECT sse_pg.unsubscribe('u', 'a')").fetchone() == (True,)
    assert told() == ["subscriptions u"]
    assert db.execute("SELECT count(*) FROM sse_pg.subscriptions").fetchone() == (0,)


def test_a_replica_session_tells_as_well(db: psycopg.Connection, told: Told) -> None:
    db.execute("SET session_replication_role = replica")
    db.execute("SELECT sse_pg.subscribe('u', 'a')")
    assert told() == ["subscriptions u"]


def test_of_one_user_only(db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.subscribe('u', 'a'), sse_pg.subscribe('v', 'a'), sse_pg.subscribe('u', 'b')")
    db.execute("SELECT sse_pg.unsubscribe('u', 'a')")
    rows = db.execute("SELECT user_id, channel FROM sse_pg.subscriptions ORDER BY 1, 2").fetchall()
    assert rows == [("u", "b"), ("v", "a")]


def test_each_user_once_a_statement(db: psycopg.Connection, told: Told) -> None:
    db.execute("INSERT INTO sse_pg.subscriptions VALUES ('u', 'a'), ('u', 'b'), ('v w', 'a'), ('日本', 'a')")
    assert told() == sorted(["subscriptions u", "subscriptions v w", "subscriptions 日本"])


def test_a_user_id_of_the_greatest_size(db: psycopg.Connection, told: Told) -> None:
    user = "\U0001f600" * 255
    db.execute("SELECT sse_pg.subscribe(%s, 'a')", [user])
    assert told() == [f"subscriptions {user}"]


def test_by_name_up_to_a_hundred(db: psycopg.Connection, told: Told) -> None:
    insert(db, 100)
    assert told() == sorted(f"subscriptions u{n}" for n in range(1, 101))
    db.execute("DELETE FROM sse_pg.subscriptions")
    assert len(told()) == 100


def test_beyond_a_hundred_all_are_told_at_once(db: psycopg.Connection, told: Told) -> None:
    insert(db, 101)
    assert told() == [ALL]
    db.execute("UPDATE sse_pg.subscriptions SET channel = 'b'")
    assert told() == [ALL]
    db.execute("DELETE FROM sse_pg.subscriptions")
    assert told() == [ALL]


def test_a_change_tells_who_had_it_and_who_has_it(db: psycopg.Connection, told: Told) -> None:
    db.execute("SELECT sse_pg.subscribe('u', 'a')")
    told()
    db.execute("UPDATE sse_pg.subscriptions SET user_id = 'v'")
    assert told() == ["subscriptions u", "subscriptions v"]
    db.execute("UPDATE sse_pg.subscriptions SET channel = 'b'")
    assert told() == ["subscriptions v"]


def test_truncate_tells_all(db: psycopg.Connection, told: Told) -> None:
    insert(db, 3)
    told()
    db.execute("TRUNCATE sse_pg.subscriptions")
    assert told() == [ALL]


def test_nothing_changed_nobody_is_told(db: psycopg.Connection, told: Told) -> None:
    db.execute("DELETE FROM sse_pg.subscriptions")
    db.execute("UPDATE sse_pg.subscriptions SET channel = 'b'")
    with db.transaction(force_rollback=True):
        insert(db, 3)
    assert told() == []


def test_told_even_where_the_bell_is_left_out(db: psycopg.Connection, told: Told) -> None:
    db.execute("SELECT pg_advisory_lock_shared(sse_pg.lock_class('tail'), 2)")
    db.execute("SET sse_pg.bell = 'off'")
    insert(db, 1)
    assert told() == ["subscriptions u1"]
