"""keep(): a retention of its own for a channel, deleted step by step when the log is purged."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

pytestmark = pytest.mark.oldest


def fill(db: psycopg.Connection, channel: str, count: int, age: str = "0") -> None:
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload, created_at)"
        " SELECT %s, to_jsonb(g), clock_timestamp() - %s::interval FROM generate_series(1, %s) g",
        (channel, age, count),
    )


def ids(db: psycopg.Connection, channel: str) -> list[int]:
    return [row[0] for row in db.execute("SELECT id FROM sse_pg.events WHERE channel = %s ORDER BY id", (channel,))]


def keep(db: psycopg.Connection, channel: str | None, period: str | None) -> None:
    db.execute("SELECT sse_pg.keep(%s, %s)", (channel, period))


def purge(db: psycopg.Connection) -> tuple[int, str]:
    row = db.execute("SELECT deleted, state FROM sse_pg.purge(NULL, NULL)").fetchone()
    assert row is not None
    return row[0], row[1]


def expired(db: psycopg.Connection) -> dict[str, int]:
    return dict(db.execute("SELECT channel, up_to FROM sse_pg.expired_channels").fetchall())


def test_old_events_of_the_channel_go_and_no_others(db: psycopg.Connection) -> None:
    fill(db, "a", 2, "2 hours")
    fill(db, "b", 2, "2 hours")
    fill(db, "a", 2, "10 minutes")
    assert purge(db) == (0, "done")
    keep(db, "a", "1 hour")
    assert ids(db, "a") == [1, 2, 5, 6], "keep() itself deletes nothing"
    assert purge(db) == (2, "done")
    assert (ids(db, "a"), ids(db, "b")) == ([5, 6], [3, 4])
    assert expired(db) == {"a": 2}
    assert purge(db) == (0, "done")
    keep(db, "a", "1 minute")
    assert purge(db) == (2, "done")
    assert expired(db) == {"a": 6}


def test_in_steps(db: psycopg.Connection) -> None:
    fill(db, "a", 1700, "2 hours")
    fill(db, "b", 700, "2 hours")
    keep(db, "a", "1 hour")
    keep(db, "b", "1 hour")
    steps = []
    while not steps or steps[-1][1] == "more":
        steps.append(purge(db))
    assert sum(deleted for deleted, _ in steps) == 2400
    assert max(deleted for deleted, _ in steps) == 1000
    assert expired(db) == {"a": 1700, "b": 2400}


def test_maintain_does_it_too(db: psycopg.Connection) -> None:
    fill(db, "a", 3, "2 hours")
    keep(db, "a", "1 hour")
    assert db.execute("SELECT deleted, state FROM sse_pg.maintain()").fetchone() == (3, "done")


def test_one_young_event_does_not_keep_the_older_ones(db: psycopg.Connection) -> None:
    fill(db, "a", 1, "-20 years")
    fill(db, "a", 5, "2 hours")
    keep(db, "a", "1 hour")
    assert purge(db) == (5, "done")
    assert ids(db, "a") == [1]


def test_null_takes_it_back_and_what_was_deleted_stays_known(db: psycopg.Connection) -> None:
    fill(db, "a", 2, "2 hours")
    keep(db, "a", "1 hour")
    purge(db)
    keep(db, "a", None)
    fill(db, "a", 1, "2 hours")
    assert purge(db) == (0, "done")
    assert expired(db) == {"a": 2}
    assert db.execute("SELECT * FROM sse_pg.retention").fetchall() == []
    db.execute("UPDATE sse_pg.log SET purged_to = 2")
    purge(db)
    assert expired(db) == {}, "the whole log is purged up to there"


def test_the_view(db: psycopg.Connection) -> None:
    fill(db, "a", 3, "2 hours")
    keep(db, "a", "90 minutes")
    keep(db, "b", "1 day")
    view = "SELECT pattern, period, expired_to, oldest IS NOT NULL, late > interval '29 minutes' FROM sse_pg.retention"
    assert db.execute(view + " ORDER BY pattern").fetchall() == [
        ("a", timedelta(minutes=90), 0, True, True),
        ("b", timedelta(days=1), 0, False, None),
    ]
    purge(db)
    assert db.execute("SELECT expired_to, oldest, late FROM sse_pg.retention WHERE pattern = 'a'").fetchone() == (
        3,
        None,
        None,
    )


def test_a_publisher_in_flight_holds_back_what_is_above_its_ids(db: psycopg.Connection, database_url: str) -> None:
    fill(db, "a", 1, "2 hours")
    with psycopg.connect(database_url) as other:
        other.execute("SELECT sse_pg.publish('a', 'm', '1')")
        fill(db, "a", 1, "2 hours")
        keep(db, "a", "1 hour")
        assert purge(db) == (1, "done")
        assert ids(db, "a") == [3]
    assert purge(db) == (1, "done")
    assert expired(db) == {"a": 3}


def test_a_server_that_is_up_is_not_overtaken(db: psycopg.Connection, database_url: str) -> None:
    fill(db, "a", 4, "2 hours")
    keep(db, "a", "1 hour")
    with psycopg.connect(database_url, autocommit=True) as server:
        (number,) = server.execute(
            "INSERT INTO sse_pg.servers (name, pid, version, migration, read_to, updated_at)"
            " VALUES ('s', 1, '1', 1, 2, now() - interval '1 day') RETURNING id"
        ).fetchone() or (0,)
        server.execute("SELECT pg_advisory_lock_shared(sse_pg.lock_class('server'), %s)", (number,))
        assert purge(db) == (2, "done")
        assert ids(db, "a") == [3, 4]
    while db.execute("SELECT count(*) FROM sse_pg.live_servers()").fetchone() != (0,):
        db.execute("SELECT pg_sleep(0.01)")
    assert purge(db) == (2, "done")


def test_a_publisher_does_not_wait(db: psycopg.Connection, database_url: str) -> None:
    fill(db, "a", 10, "2 hours")
    keep(db, "a", "1 hour")
    with psycopg.connect(database_url) as other:
        assert purge(other) == (10, "done")
        db.execute("SET lock_timeout = '1ms'")
        fill(db, "a", 1)
    assert len(ids(db, "a")) == 1


@pytest.mark.parametrize(
    ("channel", "period", "said"),
    [
        ("orders.**", "1 hour", "'orders.**' is a pattern; only the name of one channel is possible here"),
        (None, "1 hour", "the channel is NULL"),
        ("a", "0", "the period is 00:00:00, and must be longer than 0 and finite"),
        ("a", "-1 hour", "the period is -01:00:00, and must be longer than 0 and finite"),
    ],
)
def test_what_it_does_not_understand(db: psycopg.Connection, channel: str | None, period: str, said: str) -> None:
    with pytest.raises(psycopg.errors.DataError) as caught:
        keep(db, channel, period)
    assert caught.value.diag.message_primary == said


def test_it_says_when_the_log_is_purged_sooner(db: psycopg.Connection) -> None:
    said: list[str | None] = []
    db.add_notice_handler(lambda notice: said.append(notice.message_primary))
    fill(db, "a", 1)
    keep(db, "a", "1 year")
    assert said == []
    db.execute("UPDATE sse_pg.log SET purged_to = 1")
    keep(db, "a", "1 year")
    assert said == ["the whole log is purged sooner than after 1 year"]


def test_notes_of_deletions_go_after_a_day(db: psycopg.Connection) -> None:
    fill(db, "a", 1)
    db.execute("SELECT sse_pg.erase('a')")
    purge(db)
    assert db.execute("SELECT count(*) FROM sse_pg.deletions").fetchone() == (1,)
    db.execute("UPDATE sse_pg.deletions SET deleted_at = now() - interval '25 hours'")
    purge(db)
    assert db.execute("SELECT count(*) FROM sse_pg.deletions").fetchone() == (0,)


def test_a_consumer_is_told(db: psycopg.Connection) -> None:
    fill(db, "a", 2, "2 hours")
    fill(db, "b", 1)
    fill(db, "a", 1)
    db.execute("SELECT sse_pg.keep('a', '1 hour')")
    purge(db)
    read = "SELECT event_type, cursor, payload->>'before' FROM sse_pg.read(%s, %s)"
    assert db.execute(read, ("1", ["a", "b"])).fetchall()[:3] == [
        ("sse-pg.gap", "2", "2"),
        ("message", "3", None),
        ("message", "4", None),
    ]
    assert db.execute(read, ("1", ["b"])).fetchall()[0] == ("message", "3", None)
    assert db.execute(read, ("2", ["a"])).fetchall()[0] == ("message", "4", None)
