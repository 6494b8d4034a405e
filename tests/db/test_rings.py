"""When an INSERT rings, and when it does not need to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

INSERT = "INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1')"
ASLEEP, AWAKE = 1, 2
END = "the end of this test"

Rings = Callable[[], int]


@pytest.fixture
def rings(database_url: str) -> Iterator[Rings]:
    """Count the notifications since the last call; an own one marks the end, so nothing waits for silence."""
    with (
        psycopg.connect(database_url, autocommit=True) as listener,
        psycopg.connect(database_url, autocommit=True) as marker,
    ):
        listener.execute("LISTEN sse_pg")

        def count() -> int:
            marker.execute("SELECT pg_notify('sse_pg', %s)", [END])
            heard = []
            for notification in listener.notifies(timeout=20):
                if notification.payload == END:
                    assert set(heard) <= {""}, "the bell carries nothing"
                    return len(heard)
                heard.append(notification.payload)
            raise AssertionError("the marker did not come")

        yield count


def show(db: psycopg.Connection, state: int) -> None:
    """Do as a tail does."""
    db.execute("SELECT pg_advisory_lock_shared(sse_pg.lock_class('tail'), %s)", [state])


def hide(db: psycopg.Connection, state: int) -> None:
    db.execute("SELECT pg_advisory_unlock_shared(sse_pg.lock_class('tail'), %s)", [state])


@pytest.fixture
def tail(database_url: str) -> Iterator[psycopg.Connection]:
    """A session that can hold what a tail holds."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        yield conn


def test_rings_where_no_server_runs(db: psycopg.Connection, rings: Rings) -> None:
    db.execute(INSERT)
    assert rings() == 1
    db.execute("SELECT sse_pg.publish('a', 't', '1')")
    assert rings() == 1


@pytest.mark.parametrize(
    ("states", "expected"), [([ASLEEP], 1), ([AWAKE], 0), ([ASLEEP, AWAKE], 1), ([AWAKE, AWAKE], 0), ([], 1)]
)
def test_rings_unless_all_are_awake(
    db: psycopg.Connection, tail: psycopg.Connection, rings: Rings, states: list[int], expected: int
) -> None:
    for state in states:
        show(tail, state)
    db.execute(INSERT)
    assert rings() == expected


def test_follows_the_tail(db: psycopg.Connection, tail: psycopg.Connection, rings: Rings) -> None:
    heard = []
    for change in (lambda: show(tail, AWAKE), lambda: show(tail, ASLEEP), lambda: hide(tail, AWAKE)):
        change()
        db.execute(INSERT)
        heard.append(rings())
    assert heard == [0, 1, 1]


def test_a_tail_that_dies_is_not_awake(db: psycopg.Connection, database_url: str, rings: Rings) -> None:
    with psycopg.connect(database_url, autocommit=True) as tail:
        show(tail, AWAKE)
        db.execute(INSERT)
        assert rings() == 0
        db.execute("SELECT pg_terminate_backend(%s, 20000)", [tail.info.backend_pid])
    db.execute(INSERT)
    assert rings() == 1


def test_always(db: psycopg.Connection, tail: psycopg.Connection, rings: Rings) -> None:
    show(tail, AWAKE)
    db.execute("SET sse_pg.bell = 'always'")
    db.execute(INSERT)
    assert rings() == 1


@pytest.mark.parametrize(("states", "expected"), [([ASLEEP], 1), ([AWAKE], 0), ([ASLEEP, AWAKE], 1), ([], 0)])
def test_for_servers_alone(
    db: psycopg.Connection, tail: psycopg.Connection, rings: Rings, states: list[int], expected: int
) -> None:
    """Nobody rings while no server runs, also not for a psql that LISTENs."""
    for state in states:
        show(tail, state)
    db.execute("SET sse_pg.bell = 'servers'")
    db.execute(INSERT)
    assert rings() == expected
    held = "SELECT count(*) FROM pg_locks WHERE classid = sse_pg.lock_class('tail') AND pid = %s"
    assert db.execute(held, [db.info.backend_pid]).fetchone() == (0,)


def test_off(db: psycopg.Connection, tail: psycopg.Connection, rings: Rings) -> None:
    show(tail, ASLEEP)
    with db.transaction():
        db.execute("SET LOCAL sse_pg.bell = 'off'")
        db.execute(INSERT)
    assert rings() == 0
    db.execute(INSERT)
    assert rings() == 1


def test_a_database_setting_counts(db: psycopg.Connection, database_url: str, rings: Rings) -> None:
    db.execute(sql.SQL("ALTER DATABASE {} SET sse_pg.bell = 'off'").format(sql.Identifier(db.info.dbname)))
    with psycopg.connect(database_url, autocommit=True) as later:
        later.execute(INSERT)
    assert rings() == 0


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1'), ('a', '2'), ('b', '3')",
        "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(n) FROM generate_series(1, 1000) n",
        "SELECT sse_pg.publish_many(array_fill('a'::text, '{50}'), array_fill('t'::text, '{50}'),"
        " array_fill('1'::text, '{50}'))",
        "WITH one AS (INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1') RETURNING id)"
        " INSERT INTO sse_pg.events (channel, payload) SELECT 'b', to_jsonb(id) FROM one",
    ],
)
def test_a_statement_rings_once(db: psycopg.Connection, rings: Rings, statement: str) -> None:
    db.execute(statement)  # type: ignore[arg-type]
    assert rings() == 1


def test_a_copy_rings_once(db: psycopg.Connection, rings: Rings) -> None:
    with db.cursor().copy("COPY sse_pg.events (channel, event_type, payload) FROM STDIN") as copy:
        for number in range(10_000):
            copy.write_row((f"c{number % 7}", "t", str(number)))
    assert rings() == 1
    assert db.execute("SELECT count(*), min(id), max(id) FROM sse_pg.events").fetchone() == (10_000, 1, 10_000)


def test_a_trigger_of_the_users_own_table_publishes(db: psycopg.Connection, rings: Rings) -> None:
    db.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    db.execute(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM sse_pg.publish('orders', TG_OP, to_jsonb(NEW)); RETURN NEW; END $$"
    )
    db.execute("CREATE TRIGGER tell AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION tell()")
    db.execute("INSERT INTO orders VALUES (1), (2)")
    assert rings() == 1
    assert db.execute("SELECT event_type, payload->>'id' FROM sse_pg.events ORDER BY id").fetchall() == [
        ("INSERT", "1"),
        ("INSERT", "2"),
    ]


def test_a_transaction_rings_once_at_its_commit(db: psycopg.Connection, rings: Rings) -> None:
    with db.transaction():
        for _ in range(5):
            db.execute(INSERT)
        assert rings() == 0
    assert rings() == 1


def test_a_rollback_is_silent(db: psycopg.Connection, rings: Rings) -> None:
    with db.transaction(force_rollback=True):
        db.execute(INSERT)
    assert rings() == 0


def test_rings_after_a_savepoint_took_the_first_bell_away(db: psycopg.Connection, rings: Rings) -> None:
    with db.transaction():
        with db.transaction(force_rollback=True):
            db.execute(INSERT)
        db.execute(INSERT)
    assert rings() == 1


def test_a_refused_insert_is_silent(db: psycopg.Connection, rings: Rings) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute("INSERT INTO sse_pg.events (channel, payload) VALUES ('', '1')")
    assert rings() == 0


@pytest.mark.parametrize("states", [[], [ASLEEP], [AWAKE]])
def test_asking_leaves_no_lock(db: psycopg.Connection, tail: psycopg.Connection, states: list[int]) -> None:
    for state in states:
        show(tail, state)
    with db.transaction():
        db.execute(INSERT)
        held = "SELECT count(*) FROM pg_locks WHERE classid = sse_pg.lock_class('tail') AND pid = %s"
        assert db.execute(held, [db.info.backend_pid]).fetchone() == (0,)
        assert db.execute(held, [tail.info.backend_pid]).fetchone() == (len(states),)


@pytest.mark.parametrize(
    ("before", "within"), [("off", "local"), ("on", "on"), ("local", "local"), ("remote_write", "remote_write")]
)
def test_the_commit_of_a_publisher_is_flushed(db: psycopg.Connection, before: str, within: str) -> None:
    db.execute(sql.SQL("SET synchronous_commit = {}").format(sql.Literal(before)))
    with db.transaction():
        assert db.execute("SHOW synchronous_commit").fetchone() == (before,)
        db.execute(INSERT)
        assert db.execute("SHOW synchronous_commit").fetchone() == (within,)
    assert db.execute("SHOW synchronous_commit").fetchone() == (before,)
    with db.transaction(), db.transaction(force_rollback=True):
        db.execute(INSERT)
    assert db.execute("SHOW synchronous_commit").fetchone() == (before,)


PREPARABLE = [
    INSERT,
    "SELECT sse_pg.publish('a', 't', '1')",
    "SELECT sse_pg.publish('a', 't', '1', 'key')",
    "SELECT sse_pg.publish_many('{a,b}', '{t,t}', '{1,2}')",
]
NOTIFYING = [
    "SELECT sse_pg.subscribe('u', 'b')",
    "SELECT sse_pg.unsubscribe('u', 'a')",
    "SELECT sse_pg.revoke('u')",
    "TRUNCATE sse_pg.subscriptions",
]


@pytest.mark.parametrize("states", [[], [ASLEEP], [AWAKE], [ASLEEP, AWAKE]])
def test_one_setting_makes_two_phase_commit_work(
    db: psycopg.Connection, tail: psycopg.Connection, rings: Rings, states: list[int]
) -> None:
    """Whatever the tails show. What has to notify is refused, whatever they show."""
    for state in states:
        show(tail, state)
    db.execute("SELECT sse_pg.subscribe('u', 'a')")
    name = f"prepared_{db.info.dbname}"
    for statement in PREPARABLE + NOTIFYING:
        db.execute("BEGIN; SET LOCAL sse_pg.bell = 'off'")
        db.execute(statement)  # type: ignore[arg-type]
        if statement in NOTIFYING:
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
                db.execute(f"PREPARE TRANSACTION '{name}'")  # type: ignore[arg-type]
        else:
            db.execute(f"PREPARE TRANSACTION '{name}'")  # type: ignore[arg-type]
            db.execute(f"COMMIT PREPARED '{name}'")  # type: ignore[arg-type]
    assert rings() == 0
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (5,)
    assert db.execute("SELECT channel FROM sse_pg.subscriptions").fetchall() == [("a",)]
