"""Subscriptions: the functions, and who is told of a change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import psycopg
import pytest

from sse_pg.auth.digests import Digests

Told = Callable[[], list[str]]
END = "the end of this test"
ALL = "all"


@pytest.fixture
def told(database_url: str) -> Iterator[Told]:
    """Return whose subscriptions the servers were told of since the last call; an own notification marks the end."""
    with (
        psycopg.connect(database_url, autocommit=True) as listener,
        psycopg.connect(database_url, autocommit=True) as marker,
    ):
        listener.execute("LISTEN sse_pg_control")

        def take() -> list[str]:
            marker.execute("SELECT pg_notify('sse_pg_control', %s)", [END])
            heard: list[str] = []
            known = [row[0] for row in marker.execute("SELECT user_id FROM sse_pg.subscriptions").fetchall()]
            names = {
                f"subscriptions {marker.execute('SELECT sse_pg.digest(%s)', [name]).fetchone()[0]}": name or ALL  # type: ignore[index]
                for name in ("", "u", "v", *(f"u{n}" for n in range(1, 101)), *known)
            }
            for notification in listener.notifies(timeout=20):
                if notification.payload == END:
                    return sorted(names[payload] for payload in heard)
                heard.append(notification.payload)
            raise AssertionError("the marker did not come")

        yield take


def insert(db: psycopg.Connection, users: int) -> None:
    db.execute("INSERT INTO sse_pg.subscriptions SELECT 'u' || n, 'a' FROM generate_series(1, %s) n", [users])


def test_subscribe_and_unsubscribe(db: psycopg.Connection, told: Told) -> None:
    assert db.execute("SELECT sse_pg.subscribe('u', 'a')").fetchone() == (True,)
    assert told() == ["u"]
    assert db.execute("SELECT sse_pg.subscribe('u', 'a')").fetchone() == (False,)
    assert told() == []
    assert db.execute("SELECT user_id, channel FROM sse_pg.subscriptions").fetchall() == [("u", "a")]
    assert db.execute("SELECT sse_pg.unsubscribe('u', 'b')").fetchone() == (False,)
    assert told() == []
    assert db.execute("SELECT sse_pg.unsubscribe('u', 'a')").fetchone() == (True,)
    assert told() == ["u"]
    assert db.execute("SELECT count(*) FROM sse_pg.subscriptions").fetchone() == (0,)


def test_a_replica_session_tells_as_well(db: psycopg.Connection, told: Told) -> None:
    db.execute("SET session_replication_role = replica")
    db.execute("SELECT sse_pg.subscribe('u', 'a')")
    assert told() == ["u"]


def test_of_one_user_only(db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.subscribe('u', 'a'), sse_pg.subscribe('v', 'a'), sse_pg.subscribe('u', 'b')")
    db.execute("SELECT sse_pg.unsubscribe('u', 'a')")
    rows = db.execute("SELECT user_id, channel FROM sse_pg.subscriptions ORDER BY 1, 2").fetchall()
    assert rows == [("u", "b"), ("v", "a")]


def test_each_user_once_a_statement(db: psycopg.Connection, told: Told) -> None:
    db.execute("INSERT INTO sse_pg.subscriptions VALUES ('u', 'a'), ('u', 'b'), ('v w', 'a'), ('日本', 'a')")
    assert told() == sorted(["u", "v w", "日本"])


def test_a_user_id_of_the_greatest_size(db: psycopg.Connection, told: Told) -> None:
    user = "\U0001f600" * 255
    db.execute("SELECT sse_pg.subscribe(%s, 'a')", [user])
    assert told() == [user]


def test_one_by_one_up_to_a_hundred(db: psycopg.Connection, told: Told) -> None:
    insert(db, 100)
    assert told() == sorted(f"u{n}" for n in range(1, 101))
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
    assert told() == ["u", "v"]
    db.execute("UPDATE sse_pg.subscriptions SET channel = 'b'")
    assert told() == ["v"]


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
    assert told() == ["u1"]


def test_the_notifications_name_nobody(db: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute("LISTEN sse_pg_control")
        db.execute("SELECT sse_pg.subscribe('somebody', 'secrets')")
        db.execute("SELECT sse_pg.revoke('somebody', 'secrets'), sse_pg.revoke()")
        heard = [each.payload for each in listener.notifies(timeout=20, stop_after=3)]
    assert [each.split()[0] for each in heard] == ["subscriptions", "revoke", "revoke"]
    assert not re.search("somebody|secrets", " ".join(heard))


def test_the_key_is_of_this_database_and_not_for_readers(db: psycopg.Connection) -> None:
    (key,) = db.execute("SELECT control_key FROM sse_pg.log").fetchone() or ("",)
    assert len(key) == 64
    digests = Digests()
    digests.use(key)
    for name in ("", "u", "日本", "\U0001f600" * 255):
        assert db.execute("SELECT sse_pg.digest(%s)", [name]).fetchone() == (digests.of(name),)
    assert digests.use(key) is False
    assert digests.use("another") is True
    assert db.execute("SELECT sse_pg.digest('u')").fetchone() != (digests.of("u"),)


def test_a_user_has_ten_thousand_subscriptions_at_most(db: psycopg.Connection) -> None:
    add = "INSERT INTO sse_pg.subscriptions SELECT 'u', 'c' || n FROM generate_series(%s::int, %s::int) n"
    db.execute(add, [1, 10_000])
    for statement in (
        "SELECT sse_pg.subscribe('u', 'more')",
        "INSERT INTO sse_pg.subscriptions VALUES ('v', 'a'), ('u', 'more')",
        "INSERT INTO sse_pg.subscriptions VALUES ('w', 'more');"
        "UPDATE sse_pg.subscriptions SET user_id = 'u' WHERE user_id = 'w'",
    ):
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="the limit of 10000 subscriptions"):
            db.execute(statement)  # type: ignore[arg-type]
    db.execute("SELECT sse_pg.subscribe('v', 'a'), sse_pg.subscribe('u', 'c1')")
    assert db.execute("SELECT count(*) FROM sse_pg.subscriptions").fetchone() == (10_001,)
