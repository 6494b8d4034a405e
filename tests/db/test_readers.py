"""read() and consume(): what they give, to whom, beside publishers, rollbacks, purges and epochs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.waiting import wait_for

from sse_pg.core.cursor import MAX_ID, Cursor
from sse_pg.core.ranges import Ranges

Connection = psycopg.Connection[Any]
LEVELS = psycopg.IsolationLevel
RETRY = psycopg.errors.SerializationFailure
REFUSED = psycopg.errors.InvalidParameterValue


def publish(conn: Connection, channel: str = "a", count: int = 1) -> list[int]:
    rows = conn.execute(
        "INSERT INTO sse_pg.events (channel, payload)"
        " SELECT %s, to_jsonb(n) FROM generate_series(1, %s) n RETURNING id",
        [channel, count],
    ).fetchall()
    return [number for (number,) in rows]


def read(conn: Connection, after: str | None, channels: str = "{a}", most: int = 100) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT * FROM sse_pg.read(%s, %s, %s)", [after, channels, most]).fetchall()


def consume(conn: Connection, name: str = "mail", channels: str = "{a}", most: int = 100) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT * FROM sse_pg.consume(%s, %s, %s)", [name, channels, most]).fetchall()


def ids(rows: list[tuple[Any, ...]]) -> list[int | None]:
    return [row[0] for row in rows]


def gap(rows: list[tuple[Any, ...]]) -> dict[str, str]:
    """The payload of the first row, which is to be a gap."""
    number, channel, event_type, payload, headers, created_at, cursor = rows[0]
    assert (number, channel, event_type, headers) == (None, None, "sse-pg.gap", None)
    assert created_at is not None
    assert cursor == payload["before"]
    return dict(payload)


def consumers(conn: Connection) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT name, channels, cursor, lag FROM sse_pg.consumers").fetchall()


@contextmanager
def connected(url: str, level: psycopg.IsolationLevel | None = None) -> Iterator[Connection]:
    """A connection that is in a transaction after its first statement."""
    with psycopg.connect(url) as conn:
        conn.isolation_level = level
        yield conn
        conn.rollback()


@pytest.fixture
def partitions(db: Connection) -> Callable[[], None]:
    """Make partitions of ten ids, and purge all but the newest ones when called."""
    db.execute("SELECT sse_pg.make_partitions(2, 10)")

    def purge() -> None:
        db.execute("SELECT sse_pg.make_partitions(2, 10)")
        assert db.execute("SELECT state FROM sse_pg.purge(1)").fetchone() == ("done",)

    return purge


# The cursor


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**62), st.lists(st.tuples(st.integers(1, 10**5), st.integers(1, 3)), max_size=70))
def test_a_cursor_is_read_as_python_reads_it(db: Connection, high: int, parts: list[tuple[int, int]]) -> None:
    gaps, top = [], high
    for skip, length in parts:
        last = top - skip
        if last < length:
            break
        gaps.append((last - length + 1, last))
        top = last - length
    cursor = Cursor.parse(str(Cursor(high, Ranges(gaps))))
    row = db.execute(
        "SELECT sse_pg.cursor_text(c), upper(c) - 1, ARRAY(SELECT lower(g) FROM unnest('{[0,)}'::int8multirange - c) g)"
        "  FROM sse_pg.cursor_ids(%s) c",
        [str(cursor)],
    ).fetchone()
    assert row == (str(cursor), cursor.high, [*(first for first, _ in cursor.gaps), cursor.high + 1])


@pytest.mark.parametrize(
    "text",
    [None, "", " 1", "1 ", "1\n", "-1", "x", "1~", "1~1", "5~0", "5~1-0", "5~1-5", "5~1,", "5~1,1-9",
     "12345678901234567890", "9~1~2", "١", "9" * 129, str(MAX_ID + 1)],
)  # fmt: skip
def test_what_is_no_cursor_is_refused(db: Connection, text: str | None) -> None:
    if text is not None:
        with pytest.raises(ValueError, match=r"cursor|id|gaps"):
            Cursor.parse(text)
    with pytest.raises(REFUSED, match="not a cursor"):
        read(db, text)


@pytest.mark.parametrize(
    ("channels", "most"), [("{}", 1), (None, 1), ("{a,NULL}", 1), ("{a b}", 1), ("{a.*}", 1), ("{a}", 0), ("{a}", None)]
)
def test_what_a_reader_may_ask_for(db: Connection, channels: str, most: int) -> None:
    for ask in (lambda: read(db, "0", channels, most), lambda: consume(db, "n", channels, most)):
        with pytest.raises((psycopg.errors.DataError, psycopg.errors.CheckViolation)):
            ask()
    assert consumers(db) == []


# Reading


def test_a_row_is_the_event(db: Connection) -> None:
    db.execute("SELECT sse_pg.publish('a', 'PLACED', %s, headers => %s)", ['{"n": [1, null]}', '{"traceparent": "x"}'])
    stored = db.execute("SELECT id, channel, event_type, payload, headers, created_at FROM sse_pg.events").fetchone()
    assert read(db, "0") == [(*stored, "1")]
    assert consume(db) == [(*stored, "1")]
    columns = db.execute("SELECT * FROM sse_pg.read('0', '{a}')").description
    assert columns is not None
    names = ["id", "channel", "event_type", "payload", "headers", "created_at", "cursor"]
    assert [column.name for column in columns] == names


@pytest.mark.parametrize("payload", ["1", "null", '"x"', "[]", "{}", '[{"a": 1.50}]', json.dumps("ä" * 300_000)])
def test_a_payload_is_unchanged(db: Connection, payload: str) -> None:
    db.execute("SELECT sse_pg.publish('a', 't', %s)", [payload])
    row = db.execute(
        "SELECT r.payload::text = e.payload::text FROM sse_pg.read('0', '{a}') r JOIN sse_pg.events e USING (id)"
    ).fetchone()
    assert row == (True,)


def test_pages_of_several_channels_ascend(db: Connection) -> None:
    for number in range(40):
        publish(db, "abc"[number % 3])
    found, cursor = [], "0"
    while rows := read(db, cursor, "{c,a,a}", 7):
        assert len(rows) <= 7
        found += ids(rows)
        cursor = rows[-1][-1]
    assert found == [number for number in range(1, 41) if number % 3 != 2]
    assert [row[-1] for row in read(db, "30", "{b}")] == ["32", "35", "38"]


def test_a_page_ends_by_bytes_too(db: Connection) -> None:
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload)"
        " SELECT 'a', to_jsonb(repeat('x', 1000000)) FROM generate_series(1, 12)"
    )
    rows = read(db, "0")
    assert 1 < len(rows) < 12
    assert ids(read(db, rows[-1][-1])) == list(range(len(rows) + 1, 13))


def test_an_event_that_commits_later_comes_later_and_once(db: Connection, database_url: str) -> None:
    with connected(database_url) as slow, connected(database_url) as other:
        assert publish(slow, count=2) == [1, 2]
        publish(db)
        publish(other, "b")
        publish(db, "b")
        assert [(row[0], row[-1]) for row in read(db, "0")] == [(3, "3~1-2")]
        assert ids(consume(db)) == [3]
        assert consumers(db) == [("mail", ["a"], "5~1,1-2", 0)]
        assert read(db, "3~1-2") == []
        assert consume(db) == []
        slow.commit()
        assert [(row[0], row[-1]) for row in read(db, "3~1-2")] == [(1, "3~1"), (2, "3")]
        assert [(row[0], row[-1]) for row in consume(db)] == [(1, "5~1,1"), (2, "5~1")]
        other.rollback()
    publish(db)
    assert [(row[0], row[-1]) for row in consume(db)] == [(6, "6")]


def test_a_number_that_claims_too_much(db: Connection, database_url: str) -> None:
    """As in a stream: somebody stored the id of an event while a lower one was in flight."""
    with connected(database_url) as slow:
        publish(slow)
        publish(db, count=2)
        assert read(db, "3") == []
        publish(db)
        assert [(row[0], row[-1]) for row in read(db, "3")] == [(4, "4~3")]
        slow.commit()
    assert ids(read(db, "3")) == [4]
    assert ids(read(db, "4~3")) == [1]


def test_other_channels_leave_no_gaps_beside_an_open_publisher(db: Connection, database_url: str) -> None:
    """Its last window is open, so every id that others draw lies in it."""
    with connected(database_url) as slow:
        for _ in range(12):
            publish(slow, "b")
        for _ in range(60):
            publish(db, "b")
            publish(db, "a")
        rows = read(db, "0")
        assert rows[-1][-1] == "132~120-12"
        assert len(rows) == 60
        assert read(db, rows[-1][-1]) == []
        assert consume(db)[-1][-1] == rows[-1][-1]
        publish(slow, "a")
        slow.commit()
    assert ids(read(db, rows[-1][-1])) == [133]


@pytest.mark.parametrize("level", [LEVELS.REPEATABLE_READ, LEVELS.SERIALIZABLE])
def test_one_snapshot(db: Connection, database_url: str, level: psycopg.IsolationLevel) -> None:
    with connected(database_url) as slow, connected(database_url, level) as reader:
        publish(slow)
        publish(db)
        assert [(row[0], row[-1]) for row in read(reader, "0")] == [(2, "2~1")]
        slow.commit()
        publish(db)
        assert [(row[0], row[-1]) for row in read(reader, "0")] == [(2, "2~1")]
        assert read(reader, "2~1") == []
        assert ids(consume(reader)) == [2]
        reader.commit()
        assert ids(read(reader, "2~1")) == [1, 3]
        assert ids(consume(reader)) == [1, 3]
        reader.commit()
    assert ids(consume(db)) == []


def test_one_snapshot_begins_where_a_tail_was(db: Connection, database_url: str) -> None:
    with db.transaction(force_rollback=True):
        publish(db, count=3)
    publish(db, count=2)
    with connected(database_url, LEVELS.REPEATABLE_READ) as reader:
        assert [row[-1] for row in read(reader, "0")] == ["4~1-3", "5~2-3"]
        db.execute("UPDATE sse_pg.log SET settled_to = 4, open_first = '{2}', open_last = '{2}'")
        reader.commit()
        assert [row[-1] for row in read(reader, "0")] == ["4~2", "5~3"]


def test_events_of_the_own_transaction(db: Connection, database_url: str) -> None:
    with connected(database_url) as reader:
        publish(reader)
        assert ids(consume(reader)) == [1]
        publish(reader)
        assert ids(consume(reader)) == [2]
        reader.rollback()
    publish(db)
    assert ids(consume(db)) == [3]


def test_the_cursor_opens_what_position_says(db: Connection, database_url: str) -> None:
    with connected(database_url) as slow:
        publish(slow)
        publish(db)
        ((here,),) = db.execute("SELECT sse_pg.position()").fetchall()
        assert here == read(db, "0")[-1][-1] == "2~1"
        slow.commit()
    assert ids(read(db, here)) == [1]


# Consumers


def test_a_rollback_gives_the_events_again(db: Connection, database_url: str) -> None:
    publish(db, count=3)
    with connected(database_url) as taker:
        assert ids(consume(taker, most=2)) == [1, 2]
        with taker.transaction(force_rollback=True):
            assert ids(consume(taker)) == [3]
        assert ids(consume(taker)) == [3]
        taker.rollback()
        assert consumers(db) == []
        assert ids(consume(taker)) == [1, 2, 3]
        taker.commit()
    assert consume(db) == []
    assert consumers(db) == [("mail", ["a"], "3", 0)]


def test_names_have_cursors_of_their_own(db: Connection) -> None:
    publish(db, count=2)
    assert ids(consume(db, "mail")) == [1, 2]
    publish(db)
    assert ids(consume(db, "search")) == [1, 2, 3]
    assert ids(consume(db, "mail")) == [3]
    assert db.execute("SELECT sse_pg.drop_consumer('mail'), sse_pg.drop_consumer('mail')").fetchone() == (True, False)
    assert ids(consume(db, "mail")) == [1, 2, 3]


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", None])
def test_what_is_no_name(db: Connection, name: str | None) -> None:
    with pytest.raises(psycopg.errors.IntegrityError):
        consume(db, name)  # type: ignore[arg-type]


def test_the_channels_of_a_name_stay(db: Connection) -> None:
    assert consume(db, channels="{b,a}") == []
    publish(db)
    assert ids(consume(db, channels="{a,b,a}")) == [1]
    with pytest.raises(REFUSED, match=r"'mail' has the channels \{a,b\}"):
        consume(db, channels="{a}")


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_a_second_taker_waits(db: Connection, database_url: str, outcome: str) -> None:
    publish(db, count=2)
    consume(db, most=1)
    with connected(database_url) as first, psycopg.connect(database_url) as second:
        assert ids(consume(first)) == [2]
        publish(db)
        second.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            consume(second)
        second.rollback()
        assert ids(consume(second, "another")) == [1, 2, 3]
        second.commit()
        pid = second.info.backend_pid
        with psycopg.connect(database_url, autocommit=True) as ender:
            second.execute("SET lock_timeout = 0")
            found: list[list[int | None]] = []
            thread = threading.Thread(target=lambda: found.append(ids(consume(second))))
            thread.start()
            wait_for(
                lambda: ender.execute(
                    "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", [pid]
                ).fetchall(),
                "the second taker",
            )
            getattr(first, outcome)()
            thread.join(30)
        assert found == [[3] if outcome == "commit" else [2, 3]]
        second.commit()
    assert consume(db) == []


def test_a_second_taker_with_one_snapshot_fails(db: Connection, database_url: str) -> None:
    publish(db, count=2)
    with connected(database_url, LEVELS.REPEATABLE_READ) as first, connected(database_url) as other:
        first.execute("SELECT 1")
        assert ids(consume(other, most=1)) == [1]
        other.commit()
        with pytest.raises(RETRY):
            consume(first)
        first.rollback()
        assert ids(consume(first, most=1)) == [2]
        first.commit()
        publish(db)
        first.execute("SELECT 1")
        consume(other)
        other.commit()
        with pytest.raises(RETRY):
            consume(first)


def test_polling_writes_nothing(db: Connection) -> None:
    consume(db)
    publish(db, "b", 3)
    version = "SELECT xmin::text, xmax::text FROM sse_pg.consumer_cursors"
    before = db.execute(version).fetchone()
    assert consume(db) == []
    assert db.execute(version).fetchone() == before
    db.execute("UPDATE sse_pg.consumer_cursors SET updated_at = updated_at - interval '11 seconds'")
    assert consume(db) == []
    assert consumers(db) == [("mail", ["a"], "3", 0)]
    before = db.execute(version).fetchone()
    db.execute("UPDATE sse_pg.consumer_cursors SET updated_at = updated_at - interval '11 seconds'")
    assert consume(db) == []
    assert db.execute("SELECT updated_at < now() - interval '10 seconds' FROM sse_pg.consumers").fetchone() == (True,)


def test_lag_counts_events(db: Connection, database_url: str) -> None:
    with connected(database_url) as slow:
        publish(slow)
        publish(db, "a", 5)
        publish(db, "b", 2)
        publish(db, "c", 9)
        consume(db, "mail", "{a,b}", 3)
        assert consumers(db) == [("mail", ["a", "b"], "4~3", 4)]
        slow.commit()
    assert consumers(db) == [("mail", ["a", "b"], "4~3", 5)]
    states = "SELECT lag, oldest_id, ids_behind, oldest_at = (SELECT created_at FROM sse_pg.events WHERE id = 1)"
    assert db.execute(states + " FROM sse_pg.consumer_states()").fetchone() == (5, 1, 17, True)
    consume(db, "mail", "{a,b}")
    assert db.execute("SELECT lag, oldest_id, ids_behind FROM sse_pg.consumer_states()").fetchone() == (0, None, 0)


# Purges and other logs


def test_a_purge_is_a_gap(db: Connection, partitions: Callable[[], None]) -> None:
    publish(db, "a", 25)
    consume(db, most=5)
    consume(db, "late", "{b}")
    partitions()
    rows = consume(db)
    assert gap(rows) == {"reason": "expired", "after": "5", "before": "19"}
    assert ids(rows) == [None, 20, 21, 22, 23, 24, 25]
    assert consume(db) == []
    rows = read(db, "7~1", most=1)
    assert gap(rows) == {"reason": "expired", "after": "7~1", "before": "19"}
    assert ids(rows) == [None, 20]
    assert ids(read(db, "19", most=1)) == [20]
    assert ids(consume(db, "new", most=1)) == [20]


def test_a_purge_names_the_consumers_that_lack_its_events(db: Connection, database_url: str) -> None:
    db.execute("SELECT sse_pg.make_partitions(2, 10)")
    publish(db, "a", 5)
    consume(db, "mail")
    consume(db, "quiet", "{b}")
    consume(db, "done", "{a,c}")
    publish(db, "a", 20)
    consume(db, "done", "{a,c}")
    db.execute("SELECT sse_pg.make_partitions(2, 10)")
    notices: list[str] = []
    db.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    assert db.execute("SELECT behind, purged_to FROM sse_pg.purge(1)").fetchone() == (["mail"], 19)
    assert notices == ["events were purged that these consumers lack: mail"]
    assert ids(consume(db, "mail", most=1)) == [None, 20]
    publish(db, "b")
    assert ids(consume(db, "quiet", "{b}")) == [26]
    assert consume(db, "done", "{a,c}") == []
    publish(db, "b", 20)
    db.execute("SELECT sse_pg.make_partitions(2, 10)")
    with connected(database_url) as taker:
        assert len(consume(taker, "quiet", "{b}")) == 20
        assert db.execute("SELECT behind, purged_to FROM sse_pg.maintain(1)").fetchone() == (["mail", "quiet"], 39)
        taker.commit()
    assert consume(db, "quiet", "{b}") == []
    assert consume(db, "done", "{a,c}") == []
    assert notices[1:] == ["events were purged that these consumers lack: mail, quiet"]


def test_a_channel_with_a_retention_of_its_own(db: Connection) -> None:
    """The gap names the channel, and comes between the events below the newest one that was deleted and those above."""
    for channel in "abab":
        publish(db, channel)
    for name in ("mail", "search"):
        consume(db, name, "{a,b}", 1)
    consume(db, "other", "{b}", 1)
    db.execute("SELECT sse_pg.keep('a', '1 hour')")
    db.execute("UPDATE sse_pg.events SET created_at = now() - interval '2 hours'")
    publish(db, "a")
    assert db.execute("SELECT deleted, behind FROM sse_pg.purge()").fetchone() == (2, ["mail", "search"])
    rows = consume(db, "mail", "{a,b}")
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        (2, "b", "message", "2"), (None, "a", "sse-pg.gap", "3"), (4, "b", "message", "4"), (5, "a", "message", "5"),
    ]  # fmt: skip
    assert rows[1][3] == {"reason": "expired", "after": "2", "before": "3"}
    assert consume(db, "mail", "{a,b}") == []
    pages = [consume(db, "search", "{a,b}", 1) for _ in range(5)]
    assert [ids(page) for page in pages] == [[2], [None, 4], [5], [], []]
    assert ids(consume(db, "other", "{b}")) == [4]
    assert ids(read(db, "2", "{a}")) == [None, 5]
    assert ids(read(db, "3", "{a}")) == [5]
    assert ids(consume(db, "new", "{a}")) == [5]
    db.execute("SELECT sse_pg.erase('b')")
    assert ids(read(db, "0", "{b}")) == []


def test_a_gap_without_events_after_it(db: Connection, partitions: Callable[[], None]) -> None:
    publish(db, "a", 15)
    consume(db, most=5)
    publish(db, "b", 15)
    partitions()
    assert [(row[2], row[-1]) for row in consume(db)] == [("sse-pg.gap", "29")]
    assert consume(db) == []
    assert [(row[2], row[-1]) for row in read(db, "3")] == [("sse-pg.gap", "29")]


def test_a_consumer_in_a_long_transaction_does_not_hold_up_a_purge(
    db: Connection, database_url: str, partitions: Callable[[], None]
) -> None:
    large = json.dumps("x" * 100_000)
    db.execute("SELECT sse_pg.publish('a', 't', %s) FROM generate_series(1, 25)", [large])
    with connected(database_url) as taker:
        rows = consume(taker)
        assert len(rows) == 25
        assert len(read(taker, "0")) == 25
        assert consume(taker) == []
        partitions()
        assert db.execute("SELECT min(id) FROM sse_pg.events").fetchone() == (20,)
        taker.commit()
    assert rows[0][3] == json.loads(large)


def test_what_was_taken_outlives_its_partition(
    db: Connection, database_url: str, partitions: Callable[[], None]
) -> None:
    """A row whose payload is stored outside of it is fetched by a FETCH after the purge."""
    db.execute("SELECT setval('sse_pg.events_id_seq', 5)")
    db.execute("ALTER TABLE sse_pg.events ALTER payload SET STORAGE EXTERNAL")
    db.execute("SELECT sse_pg.publish('a', 't', to_jsonb(repeat('x', 100000))) FROM generate_series(1, 20)")
    with connected(database_url) as taker, taker.cursor("rows") as cursor:
        cursor.execute("SELECT id, payload FROM sse_pg.consume('mail', '{a}')")
        assert [row[0] for row in cursor.fetchmany(2)] == [6, 7]
        partitions()
        assert [row[0] for row in cursor.fetchall()] == list(range(8, 26))


def test_one_snapshot_from_before_a_purge(db: Connection, database_url: str, partitions: Callable[[], None]) -> None:
    publish(db, "a", 25)
    consume(db, most=5)
    with connected(database_url, LEVELS.REPEATABLE_READ) as reader:
        reader.execute("SELECT 1")
        partitions()
        for ask in (lambda: read(reader, "5"), lambda: consume(reader), lambda: read(reader, "25")):
            with pytest.raises(RETRY, match="purged"):
                ask()
            reader.rollback()
            if ask() and reader.execute("SELECT 1"):
                reader.rollback()
            db.execute("SELECT sse_pg.publish('a', 't', '1') FROM generate_series(1, 10)")
            reader.execute("SELECT 1")
            partitions()


def test_a_log_without_its_row(db: Connection) -> None:
    publish(db)
    db.execute("DELETE FROM sse_pg.log")
    with pytest.raises(psycopg.Error, match="log is empty") as raised:
        read(db, "0")
    assert raised.value.sqlstate == "SP503"


def test_a_cursor_of_a_lost_log(db: Connection) -> None:
    publish(db, count=6)
    db.execute("UPDATE sse_pg.log SET settled_to = 4")
    db.execute("SELECT sse_pg.begin_epoch()")
    (first,) = publish(db)
    rows = read(db, "6~1")
    assert gap(rows) == {"reason": "unknown", "after": "6~1", "before": "4"}
    assert ids(rows) == [None, 5, 6, first]
    assert ids(read(db, "4")) == [5, 6, first]
    assert read(db, str(first)) == []
    rows = read(db, str(first + 1))
    assert gap(rows) == {"reason": "unknown", "after": str(first + 1), "before": str(first)}
    assert len(rows) == 1


def test_a_consumer_hears_of_an_epoch_once(db: Connection) -> None:
    """Its cursor is part of the log that was restored or promoted, so nothing comes again."""
    publish(db, count=6)
    assert ids(consume(db, most=5)) == [1, 2, 3, 4, 5]
    db.execute("SELECT sse_pg.begin_epoch()")
    rows = consume(db)
    assert gap(rows) == {"reason": "unknown", "after": "5", "before": "5"}
    assert ids(rows) == [None, 6]
    (number,) = publish(db)
    assert ids(consume(db)) == [number]
    db.execute("SELECT sse_pg.begin_epoch()")
    assert ids(consume(db)) == [None]
    assert consume(db) == []
    assert [row[-1] for row in consume(db, "new", most=2)] == ["1", "2"]


def test_a_log_that_was_emptied(db: Connection) -> None:
    publish(db, count=6)
    consume(db)
    db.execute("TRUNCATE sse_pg.events RESTART IDENTITY")
    publish(db, count=2)
    rows = consume(db)
    assert gap(rows) == {"reason": "unknown", "after": "6", "before": "0"}
    assert ids(rows) == [None, 1, 2]


def test_a_cursor_with_too_many_gaps_is_refused(db: Connection, database_url: str) -> None:
    db.execute("INSERT INTO sse_pg.events (channel, payload) SELECT 'a', '1' FROM generate_series(1, 4004)")
    db.execute("DELETE FROM sse_pg.events WHERE id % 2 = 1")
    with connected(database_url, LEVELS.REPEATABLE_READ) as reader:
        with pytest.raises(psycopg.Error, match="more than 2000 gaps") as raised:
            consume(reader, most=20_000)
        assert raised.value.sqlstate == "SP503"
        reader.rollback()
        assert len(consume(reader, most=10)) == 10
        reader.commit()
    assert len(consume(db, most=20_000)) == 1_992
    assert consumers(db) == [("mail", ["a"], "4004", 0)]


def test_a_transaction_that_may_only_read(db: Connection) -> None:
    publish(db)
    with db.transaction():
        db.execute("SET TRANSACTION READ ONLY")
        assert ids(read(db, "0")) == [1]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            consume(db)


def test_a_page_reads_little_of_a_long_log(db: Connection) -> None:
    """Many partitions, one channel with nearly all events, and one with few."""
    db.execute("SELECT sse_pg.make_partitions(7, 5000)")
    db.execute("INSERT INTO sse_pg.events (channel, payload) SELECT 'busy', '1' FROM generate_series(1, 30000)")
    publish(db, "few", 3)
    db.execute("VACUUM ANALYZE sse_pg.events")
    for after, channel, most in (("0", "few", 100), ("0", "busy", 10), ("15000", "{busy,few}", 10)):
        db.execute("SELECT pg_stat_force_next_flush()")
        db.execute("SELECT pg_stat_reset()")
        read(db, after, channel if "{" in channel else f"{{{channel}}}", most)
        db.execute("SELECT pg_stat_force_next_flush()")
        row = db.execute(
            "SELECT sum(idx_tup_fetch + seq_tup_read) FROM pg_stat_user_tables WHERE relname LIKE 'events%'"
        ).fetchone()
        assert row is not None
        assert row[0] < 200, (after, channel, row)


def test_a_statement_in_flight_that_inserted_no_row_is_in_nobody_s_way(db: Connection, database_url: str) -> None:
    publish(db)
    with psycopg.connect(database_url) as other:
        assert publish(other, count=0) == []
        publish(db)
        assert ids(read(db, "0")) == [1, 2]
        assert ids(consume(db)) == [1, 2]
