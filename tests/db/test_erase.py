"""erase(): what goes, what stays, and what a transaction that is not committed has done."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

pytestmark = pytest.mark.oldest

PUBLISH = "SELECT sse_pg.publish(%s, 'm', %s)"


def publish(db: psycopg.Connection, channel: str, *payloads: Any) -> None:
    for payload in payloads:
        db.execute(PUBLISH, (channel, Jsonb(payload)))


def erase(db: psycopg.Connection, *arguments: object) -> int:
    row = db.execute(f"SELECT sse_pg.erase({', '.join(['%s'] * len(arguments))})", arguments).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return int(row[0])


def left(db: psycopg.Connection) -> list[Any]:
    return [row[0] for row in db.execute("SELECT payload FROM sse_pg.events ORDER BY id")]


def notes(db: psycopg.Connection) -> list[tuple[Any, ...]]:
    return db.execute(
        "SELECT channel = sse_pg.digest('a'), first_id, last_id, expired FROM sse_pg.deletions ORDER BY first_id"
    ).fetchall()


def test_all_of_a_channel(db: psycopg.Connection) -> None:
    publish(db, "a", 1, 2)
    publish(db, "b", 3)
    publish(db, "a", 4)
    assert erase(db, "a") == 3
    assert left(db) == [3]
    assert notes(db) == [(True, 1, 4, False)]


def test_what_contains_something(db: psycopg.Connection) -> None:
    publish(
        db, "a", {"user": 1, "n": 1}, {"user": 2}, [{"user": 1}], {"user": {"user": 1}}, "user", {"user": 1, "n": 2}
    )
    assert erase(db, "a", "infinity", Jsonb({"user": 1})) == 2
    assert left(db) == [{"user": 2}, [{"user": 1}], {"user": {"user": 1}}, "user"]
    assert erase(db, "a", "infinity", Jsonb([{"user": 1}])) == 1


def test_null_inside_json_is_a_value(db: psycopg.Connection) -> None:
    publish(db, "a", None, 1)
    assert erase(db, "a", "infinity", Jsonb(None)) == 1
    assert left(db) == [1]


def test_before_a_moment(db: psycopg.Connection) -> None:
    publish(db, "a", "old", "new", "never")
    db.execute("UPDATE sse_pg.events SET created_at = '2020-01-01' WHERE id = 1")
    db.execute("UPDATE sse_pg.events SET created_at = 'infinity' WHERE id = 3")
    assert erase(db, "a", "2020-01-01 00:00:00.000001+00") == 1
    assert left(db) == ["new", "never"]
    assert erase(db, "a") == 2, "by default nothing is too new"


def test_nothing_to_erase_tells_nobody(db: psycopg.Connection) -> None:
    publish(db, "a", 1)
    db.execute("LISTEN sse_pg_control")
    assert erase(db, "b") == 0
    assert notes(db) == []
    assert erase(db, "a") == 1
    assert [heard.payload for heard in db.notifies(timeout=0)] == ["deleted"]


def test_a_rollback_brings_everything_back(db: psycopg.Connection) -> None:
    publish(db, "a", 1)
    db.execute("LISTEN sse_pg_control")
    with db.transaction(force_rollback=True):
        assert erase(db, "a") == 1
    assert left(db) == [1]
    assert notes(db) == []
    assert list(db.notifies(timeout=0)) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("orders.*",), "'orders.*' is a pattern; only the name of one channel is possible here"),
        ((None,), "the channel is NULL"),
        (("",), "a channel has 1 to 255 characters"),
        (("a b",), "a channel has no white space, control characters, commas or *"),
        (("a", None), '"before" is NULL'),
    ],
)
def test_what_it_does_not_understand(db: psycopg.Connection, arguments: tuple[object, ...], said: str) -> None:
    publish(db, "a", 1)
    with pytest.raises((psycopg.errors.DataError, psycopg.errors.CheckViolation)) as caught:
        erase(db, *arguments)
    assert caught.value.diag.message_primary == said
    assert left(db) == [1]


def test_a_repeated_publish_does_not_bring_it_back(db: psycopg.Connection) -> None:
    once = "SELECT sse_pg.publish('a', 'm', %s, 'key')"
    assert db.execute(once, (Jsonb("secret"),)).fetchone() == (1,)
    assert erase(db, "a") == 1
    assert db.execute("SELECT digest FROM sse_pg.idempotency_keys").fetchone() == (b"",), (
        "nothing can be guessed from it"
    )
    assert db.execute(once, (Jsonb("secret"),)).fetchone() == (1,)
    assert left(db) == []


def test_a_publisher_does_not_wait(db: psycopg.Connection, database_url: str) -> None:
    publish(db, "a", *range(10))
    with psycopg.connect(database_url) as other:
        assert erase(other, "a") == 10
        db.execute("SET lock_timeout = '1ms'")
        publish(db, "a", "next")
        db.execute("SELECT sse_pg.publish('a', 'm', '1', 'key')")
        assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (12,)
    assert left(db) == ["next", 1]


def test_nobody_may_who_was_not_allowed(db: psycopg.Connection) -> None:
    rights = "SELECT proname FROM pg_proc WHERE pronamespace = 'sse_pg'::regnamespace AND proname IN ('erase', 'keep')"
    rights += " AND EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) a WHERE a.grantee = 0)"
    assert db.execute(rights).fetchall() == []  # type: ignore[arg-type]


def test_across_partitions(db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.make_partitions(4, 1000)")
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload)"
        " SELECT CASE WHEN g % 100 = 0 THEN 'few' ELSE 'many' END, to_jsonb(g) FROM generate_series(1, 4500) g"
    )
    assert erase(db, "few") == 45
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (4455,)


def test_an_empty_end_of_a_partition_is_not_a_gap(db: psycopg.Connection) -> None:
    """Purging the partition says only up to where there was something to purge."""
    db.execute("SELECT sse_pg.make_partitions(3, 100)")
    publish(db, "a", *range(60))
    publish(db, "b", *range(80))
    publish(db, "c", *range(80))
    assert erase(db, "b") == 80
    db.execute("UPDATE sse_pg.events SET created_at = now() - interval '2 hours' WHERE id < 200")
    row = db.execute("SELECT partitions, purged_to, state FROM sse_pg.purge(NULL, '1 hour')").fetchone()
    assert row == (2, 199, "done")
    publish(db, "a", *range(200))
    assert erase(db, "a") == 200
    assert erase(db, "c") == 21
    db.execute("SELECT sse_pg.purge(1)")
    assert db.execute("SELECT purged_to FROM sse_pg.log").fetchone() == (199,), "nothing was there to be lost"
