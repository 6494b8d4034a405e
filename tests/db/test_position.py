"""position() against the cursor of Python, and against what a transaction sees."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sse_pg.core.cursor import MAX_TEXT_BYTES, Cursor
from sse_pg.core.ranges import Ranges

SIZES = st.integers(1, 3) | st.integers(1, 10**5)


def insert(conn: psycopg.Connection, count: int = 1) -> list[int]:
    rows = conn.execute(
        "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', '1' FROM generate_series(1, %s) RETURNING id", [count]
    ).fetchall()
    return [number for (number,) in rows]


def position(conn: psycopg.Connection) -> str:
    row = conn.execute("SELECT sse_pg.position()").fetchone()
    assert row is not None
    return str(row[0])


def test_of_an_empty_log(db: psycopg.Connection) -> None:
    assert position(db) == "0"
    insert(db, 4)
    assert position(db) == "4"


def test_ids_that_were_rolled_back_are_no_gaps(db: psycopg.Connection) -> None:
    insert(db)
    with db.transaction(force_rollback=True):
        insert(db, 3)
    assert position(db) == "4"
    insert(db)
    assert position(db) == "5"


def test_read_committed_beside_open_transactions(db: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url) as one, psycopg.connect(database_url) as two:
        insert(db)
        assert insert(one, 2) == [2, 3]
        assert position(db) == "1"
        assert insert(two) == [4]
        insert(db)
        assert position(db) == "5~1-3"
        two.commit()
        assert position(db) == "5~2-2"
        one.rollback()
        assert position(db) == "5"


def test_the_own_events_of_a_transaction_are_seen_by_it(db: psycopg.Connection) -> None:
    with db.transaction():
        insert(db, 2)
        assert position(db) == "2"


def test_repeatable_read_is_the_snapshot_of_the_transaction(db: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url) as other, psycopg.connect(database_url) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        insert(db)
        insert(other)
        insert(db)
        assert reader.execute("SELECT array_agg(id ORDER BY id) FROM sse_pg.events").fetchone() == ([1, 3],)
        other.commit()
        insert(db, 5)
        assert position(reader) == "3~1"
        reader.commit()
        assert position(reader) == "8"


def test_serializable_too(db: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url) as reader:
        reader.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        insert(db)
        reader.execute("SELECT 1")
        insert(db)
        assert position(reader) == "1"


def test_repeatable_read_begins_where_a_tail_was(db: psycopg.Connection, database_url: str) -> None:
    """Below what was noted nothing is looked at; what was open there may have come."""
    with db.transaction(force_rollback=True):
        insert(db, 3)
    insert(db, 3)
    with psycopg.connect(database_url) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert position(reader) == "6~3-3"
        reader.commit()
        db.execute("UPDATE sse_pg.log SET settled_to = 6, open_first = '{2}', open_last = '{3}'")
        insert(db)
        assert position(reader) == "7~4-2"
        reader.commit()
        db.execute("UPDATE sse_pg.log SET settled_to = 20, open_first = '{}', open_last = '{}'")
        assert position(reader) == "20"


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.integers(1, 2**61), st.lists(st.tuples(SIZES, st.integers(1, 3)), min_size=1, max_size=90))
@example(1000, [(1, 1)] * 62)  # 128 bytes
@example(10_000, [(1, 1)] * 62)
@example(1, [(1, 1)] * 64)
@example(10**6, [(1, 1)] * 90)
@example(5, [(10**5, 1)] * 30)
def test_printed_as_python_prints(db: psycopg.Connection, start: int, parts: list[tuple[int, int]]) -> None:
    """Ids with gaps between, of one transaction's own making: it sees them and nobody has settled them."""
    gaps, ids, at = [], [], start
    for length, visible in parts:
        gaps.append((at + 1, at + length))
        ids += range(at + length + 1, at + length + 1 + visible)
        at += length + visible
    with db.transaction(force_rollback=True):
        db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        db.execute("UPDATE sse_pg.log SET settled_to = %s", [start])
        db.execute(
            "INSERT INTO sse_pg.events (id, channel, payload) OVERRIDING SYSTEM VALUE"
            " SELECT n, 'a', '1' FROM unnest(%s::bigint[]) n",
            [ids],
        )
        text = position(db)
    assert text == str(Cursor(at, Ranges(gaps)))
    assert len(text) <= MAX_TEXT_BYTES
    assert str(Cursor.parse(text)) == text


def test_a_lowered_text_repeats_and_loses_nothing(db: psycopg.Connection) -> None:
    with db.transaction(force_rollback=True):
        db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        db.execute(
            "INSERT INTO sse_pg.events (id, channel, payload) OVERRIDING SYSTEM VALUE"
            " SELECT 2 * n, 'a', '1' FROM generate_series(1, 5000) n"
        )
        cursor = Cursor.parse(position(db))
    assert not any(cursor.offered(number) for number in range(1, 10_000, 2))
    assert cursor.high > 90


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_read_only_transactions_may_ask(db: psycopg.Connection, level: str) -> None:
    insert(db)
    with db.transaction():
        db.execute(f"SET TRANSACTION ISOLATION LEVEL {level} READ ONLY")  # type: ignore[arg-type]
        assert position(db) == "1"
