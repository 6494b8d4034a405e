"""What is sent on sse_pg_control reaches a reader that polls: each message once, whenever its transaction commits."""

from __future__ import annotations

import psycopg
import pytest

from sse_pg.auth.control import MAX_NOTIFICATION_CHARS

Snapshot = str | None


def since(conn: psycopg.Connection, snapshot: Snapshot, most: int = 100) -> tuple[Snapshot, list[str]]:
    """Read what was sent since a snapshot; return the next snapshot, and the messages sorted."""
    row = conn.execute(
        "SELECT snapshot::text, messages FROM sse_pg.notifications_since(%s::pg_snapshot, %s)", [snapshot, most]
    ).fetchone()
    assert row is not None
    return row[0], sorted(row[1])


def digest(conn: psycopg.Connection, name: str) -> str:
    row = conn.execute("SELECT sse_pg.digest(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def test_a_reader_that_begins_gets_nothing(db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.revoke()")
    snapshot, messages = since(db, None)
    assert messages == []
    assert since(db, snapshot)[1] == []


def test_everything_that_is_notified_is_there(db: psycopg.Connection) -> None:
    everybody, ada, orders = (digest(db, name) for name in ("", "ada", "orders"))
    for statement, message in (
        ("SELECT sse_pg.subscribe('ada', 'orders')", f"subscriptions {ada}"),
        ("SELECT sse_pg.unsubscribe('ada', 'orders')", f"subscriptions {ada}"),
        ("TRUNCATE sse_pg.subscriptions", f"subscriptions {everybody}"),
        ("SELECT sse_pg.revoke('ada')", f"revoke {ada} {everybody}"),
        ("SELECT sse_pg.revoke(NULL, 'orders')", f"revoke {everybody} {orders}"),
        ("SELECT sse_pg.publish('orders', 't', '1')", None),
        ("SELECT sse_pg.erase('orders')", "deleted"),
        ("SELECT sse_pg.begin_epoch()", "epoch"),
    ):
        snapshot, _ = since(db, None)
        db.execute(statement)  # type: ignore[arg-type]
        assert since(db, snapshot)[1] == ([] if message is None else [message]), statement


def test_a_disconnect_has_a_number_and_a_signature(db: psycopg.Connection) -> None:
    snapshot, _ = since(db, None)
    for _ in range(2):
        db.execute("SELECT sse_pg.disconnect('ada')")
    messages = since(db, snapshot)[1]
    assert len(set(messages)) == 2
    for message in messages:
        what, user, number, signature = message.split(" ")
        assert (what, user) == ("disconnect", digest(db, "ada"))
        assert signature == digest(db, f"\n{what} {user} {number}")
        assert len(message) <= MAX_NOTIFICATION_CHARS
    for nobody in (None, ""):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            db.execute("SELECT sse_pg.disconnect(%s)", [nobody])


def test_what_changes_nothing_sends_nothing(db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.subscribe('ada', 'orders')")
    snapshot, _ = since(db, None)
    db.execute("SELECT sse_pg.subscribe('ada', 'orders')")
    db.execute("DELETE FROM sse_pg.subscriptions WHERE user_id = 'bob'")
    assert since(db, snapshot)[1] == []


def test_a_transaction_that_began_long_ago_is_seen_when_it_commits_and_once(
    db: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url) as early, psycopg.connect(database_url) as lost:
        early.execute("SELECT sse_pg.revoke('early')")
        lost.execute("SELECT sse_pg.revoke('lost')")
        snapshot, messages = since(db, None)
        db.execute("SELECT sse_pg.revoke('late')")
        everybody = digest(db, "")
        snapshot, messages = since(db, snapshot)
        assert messages == [f"revoke {digest(db, 'late')} {everybody}"]
        snapshot, messages = since(db, snapshot)
        assert messages == [], "a transaction that is open does not bring back what came after it"
        early.commit()
        lost.rollback()
        snapshot, messages = since(db, snapshot)
        assert messages == [f"revoke {digest(db, 'early')} {everybody}"]
        assert since(db, snapshot)[1] == []


def test_a_savepoint_belongs_to_its_transaction(db: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("CREATE TEMP TABLE first_write ()")
        snapshot, _ = since(db, None)
        with other.transaction():
            other.execute("SELECT sse_pg.revoke('inner')")
        other.commit()
        assert since(db, snapshot)[1] == [f"revoke {digest(db, 'inner')} {digest(db, '')}"]


def test_more_messages_than_asked_for(db: psycopg.Connection) -> None:
    snapshot, _ = since(db, None)
    db.execute("SELECT sse_pg.revoke(n::text) FROM generate_series(1, 50) n")
    db.execute("SELECT sse_pg.revoke('again') FROM generate_series(1, 50)")
    assert len(since(db, snapshot, 51)[1]) == 51, "the same message counts once"
    assert len(since(db, snapshot, 20)[1]) == 21, "one more says that there are more"


def test_rows_of_another_cluster_are_not_returned_again_and_again(db: psycopg.Connection) -> None:
    db.execute("INSERT INTO sse_pg.notifications (transaction, message) VALUES ('9000000000000000000', 'epoch')")
    snapshot, _ = since(db, None)
    assert since(db, snapshot)[1] == []


def test_a_purge_deletes_old_rows(db: psycopg.Connection) -> None:
    db.execute("SELECT sse_pg.revoke()")
    db.execute("UPDATE sse_pg.notifications SET sent_at = now() - interval '61 minutes'")
    db.execute("SELECT sse_pg.revoke()")
    db.execute("SELECT sse_pg.purge()")
    assert db.execute("SELECT count(*) FROM sse_pg.notifications").fetchone() == (1,)


def test_only_a_server_may_read_them(db: psycopg.Connection) -> None:
    db.execute("CREATE ROLE notifications_test_anyone")
    try:
        db.execute("GRANT USAGE ON SCHEMA sse_pg TO notifications_test_anyone")
        db.execute("SET ROLE notifications_test_anyone")
        for statement in (
            "SELECT sse_pg.notifications_since(NULL, 1)",
            "SELECT FROM sse_pg.notifications",
            "SELECT sse_pg.notify_servers('{epoch}')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(statement)  # type: ignore[arg-type]
    finally:
        db.execute("RESET ROLE")
        db.execute("DROP OWNED BY notifications_test_anyone")
        db.execute("DROP ROLE notifications_test_anyone")
