"""publish() and publish_many(): order, and keys that make a repeated publish harmless."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest

Row = tuple[object, ...] | None


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def publish(conn: psycopg.Connection, key: str | None, payload: str = "1", channel: str = "a") -> int:
    row = conn.execute("SELECT sse_pg.publish(%s, 't', %s, %s)", [channel, payload, key]).fetchone()
    assert row is not None
    return int(row[0])


def until_it_waits(db: psycopg.Connection, pid: int, running: Future[int]) -> None:
    while db.execute("SELECT pg_blocking_pids(%s)", [pid]).fetchone() == ([],):
        assert not running.done(), "it does not wait for the other transaction"


def test_a_repeated_publish_returns_its_id(db: psycopg.Connection) -> None:
    first = publish(db, "k", '{"a": 1, "b": 2}')
    assert publish(db, "k", '{"b":2,"a":1}') == first
    assert publish(db, "other", '{"a": 1, "b": 2}') == first + 1
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (2,)


def test_without_a_key_each_is_new(db: psycopg.Connection) -> None:
    assert [publish(db, None) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    "other",
    ["('b', 't', '1', 'k')", "('a', 'u', '1', 'k')", "('a', 't', '2', 'k')", "('a', NULL, '1', 'k')"],
)
def test_a_key_of_another_event_is_refused(db: psycopg.Connection, other: str) -> None:
    publish(db, "k")
    with pytest.raises(psycopg.Error, match="'k' was used for another event") as caught:
        db.execute(f"SELECT sse_pg.publish{other}")  # type: ignore[arg-type]
    assert caught.value.sqlstate == "SP409"
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (1,)


def test_a_key_of_a_rolled_back_publish_is_free(db: psycopg.Connection) -> None:
    with db.transaction(force_rollback=True):
        publish(db, "k")
    assert publish(db, "k", "2") == 2


def test_twice_in_one_transaction(db: psycopg.Connection) -> None:
    with db.transaction():
        assert publish(db, "k") == publish(db, "k")


@pytest.mark.parametrize("commits", [True, False])
def test_two_transactions_at_once(
    db: psycopg.Connection, database_url: str, threads: ThreadPoolExecutor, commits: bool
) -> None:
    with psycopg.connect(database_url) as one, psycopg.connect(database_url, autocommit=True) as two:
        first = publish(one, "k")
        second = threads.submit(publish, two, "k")
        try:
            until_it_waits(db, two.info.backend_pid, second)
        finally:
            (one.commit if commits else one.rollback)()
        assert (second.result() == first) == commits
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (1,)


def test_two_transactions_at_once_with_different_events(
    db: psycopg.Connection, database_url: str, threads: ThreadPoolExecutor
) -> None:
    with psycopg.connect(database_url) as one, psycopg.connect(database_url, autocommit=True) as two:
        publish(one, "k", "1")
        second = threads.submit(publish, two, "k", "2")
        try:
            until_it_waits(db, two.info.backend_pid, second)
        finally:
            one.commit()
        with pytest.raises(psycopg.Error, match="was used for another event"):
            second.result()


def many(db: psycopg.Connection, keys: list[str | None] | None, payloads: list[str]) -> list[int]:
    count = len(payloads)
    rows = db.execute(
        "SELECT id, created_at FROM sse_pg.publish_many(%s, %s, %s, %s)", [["a"] * count, ["t"] * count, payloads, keys]
    ).fetchall()
    assert all(moment is not None for _, moment in rows)
    return [number for number, _ in rows]


def test_many_in_order(db: psycopg.Connection) -> None:
    assert many(db, None, [str(n) for n in range(500)]) == list(range(1, 501))
    rows = db.execute("SELECT payload::text FROM sse_pg.events ORDER BY id").fetchall()
    assert [text for (text,) in rows] == [str(n) for n in range(500)]


def test_many_with_keys(db: psycopg.Connection) -> None:
    first = many(db, ["x", None, "y"], ["1", "2", "3"])
    assert first == [1, 2, 3]
    again = many(db, ["y", None, "x", "x"], ["3", "2", "1", "1"])
    assert again == [3, 4, 1, 1]


def test_one_of_many_that_is_refused_refuses_all(db: psycopg.Connection) -> None:
    publish(db, "k", "1")
    with pytest.raises(psycopg.Error, match="another event"):
        many(db, [None, "k"], ["9", "2"])
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (1,)


def test_none_of_many(db: psycopg.Connection) -> None:
    assert many(db, None, []) == []
    assert many(db, [], []) == []


def test_the_repeated_publish_rings_only_once(db: psycopg.Connection) -> None:
    publish(db, "k")
    with db.transaction():
        publish(db, "k")
        row = db.execute("SELECT coalesce(current_setting('sse_pg.announced', true), '')").fetchone()
        assert row == ("",), "nothing is inserted, so nothing is announced"
