"""The locks that show publishers in flight, and what publishers() makes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from uuid import uuid4

import psycopg
import pytest

from sse_pg.core.cursor import Cursor
from sse_pg.core.ranges import NONE, Ranges

MAX_LOCKS = 19
"""The window of the first write and eight more, of two locks each, and the one that says that the last stays open."""
CLASSES = ("first_low", "first_high", "window_low", "window_high", "window_open")

Connect = Callable[[], psycopg.Connection]


@pytest.fixture
def connect(database_url: str) -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(psycopg.connect(database_url, autocommit=True))


def insert(conn: psycopg.Connection, count: int = 1) -> list[int]:
    rows = conn.execute(
        "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', '1' FROM generate_series(1, %s) RETURNING id", [count]
    ).fetchall()
    return [number for (number,) in rows]


def publishers(conn: psycopg.Connection) -> tuple[int, int | None, Ranges]:
    row = conn.execute("SELECT last, least_bound, window_first, window_last FROM sse_pg.publishers()").fetchone()
    assert row is not None
    last, bound, first, final = row
    return last, bound, Ranges(zip(first, final, strict=True))


def locks(conn: psycopg.Connection, pid: int | None = None) -> int:
    """Count the locks of publishers in this database."""
    row = conn.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        " AND classid = ANY (ARRAY(SELECT sse_pg.lock_class(unnest(%s::text[]))))"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND coalesce(pid = %s, true)",
        [list(CLASSES), pid],
    ).fetchone()
    assert row is not None
    return int(row[0])


def announced(conn: psycopg.Connection) -> str:
    row = conn.execute("SELECT coalesce(current_setting('sse_pg.announced', true), '')").fetchone()
    assert row is not None
    return str(row[0])


def test_nobody_is_in_flight(db: psycopg.Connection) -> None:
    assert publishers(db) == (0, None, NONE)
    insert(db, 3)
    assert publishers(db) == (3, None, NONE)
    assert locks(db) == 0


def test_a_publisher_shows_the_ids_it_can_hold(db: psycopg.Connection, connect: Connect) -> None:
    insert(db, 5)
    other = connect()
    with other.transaction():
        insert(other, 2)
        assert publishers(db) == (7, 5, Ranges([(6, 7)]))
        insert(db)
        assert publishers(db) == (8, 5, Ranges([(6, 7)])), "what others draw later is none of its own"
    assert publishers(db) == (8, None, NONE)


def test_it_shows_before_it_draws(db: psycopg.Connection, connect: Connect) -> None:
    """A row trigger stops the INSERT between the announcement and the id's commit."""
    db.execute(
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(7);"
        " RETURN NEW; END $$"
    )
    db.execute("CREATE TRIGGER stop BEFORE INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION stop()")
    observer, writer = connect(), connect()
    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"
    with ThreadPoolExecutor(1) as thread:
        db.execute("SELECT pg_advisory_lock(7)")
        try:
            inserted = thread.submit(insert, writer)
            while not observer.execute(waits).fetchone():
                assert not inserted.done()
            last, bound, windows = publishers(observer)
        finally:
            db.execute("SELECT pg_advisory_unlock(7)")
        assert inserted.result() == [1]
    assert bound == 0
    assert 1 in windows
    assert last + 10**9 in windows, "how far the statement goes is not known yet"
    assert publishers(observer) == (1, None, NONE)


def test_many_inserts_of_one_transaction_hold_few_locks(db: psycopg.Connection, connect: Connect) -> None:
    observer = connect()
    with db.transaction():
        for _ in range(10):
            insert(db)
        assert locks(observer) <= MAX_LOCKS
        db.execute(
            "DO $$ BEGIN FOR n IN 1..9990 LOOP"
            " INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1'); END LOOP; END $$"
        )
        assert locks(observer) <= MAX_LOCKS
        last, bound, windows = publishers(observer)
        assert (last, bound) == (10_000, 0)
        assert Ranges([(1, 10_000)]).within(windows)
    assert locks(observer) == 0


def test_an_id_between_two_statements_is_not_in_flight(db: psycopg.Connection, connect: Connect) -> None:
    other = connect()
    with other.transaction():
        insert(other)
        insert(db, 3)
        insert(other)
        assert publishers(db) == (5, 0, Ranges([(1, 1), (5, 5)]))


NESTED = """
    CREATE FUNCTION again(n integer) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO sse_pg.events (channel, payload) VALUES ('b', '1'), ('b', '2');
        RETURN to_jsonb(n);
    END $$;
    CREATE FUNCTION twice() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.channel = 'c' THEN
            INSERT INTO sse_pg.events (channel, payload) VALUES ('d', '1');
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER twice BEFORE INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION twice();
"""


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', again(n) FROM generate_series(1, {rows}) n",
        "INSERT INTO sse_pg.events (channel, payload) SELECT 'c', '1' FROM generate_series(1, {rows}) n",
        "WITH one AS (INSERT INTO sse_pg.events (channel, payload) SELECT 'a', '1' FROM generate_series(1, {rows})"
        " RETURNING id) INSERT INTO sse_pg.events (channel, payload) SELECT 'c', to_jsonb(id) FROM one",
        "MERGE INTO sse_pg.events e USING generate_series(1, {rows}) n ON e.id = -n"
        " WHEN NOT MATCHED THEN INSERT (channel, payload) VALUES ('c', '1')",
        "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', '1' FROM generate_series(1, {rows})"
        " ON CONFLICT DO NOTHING",
    ],
)
def test_statements_within_statements(db: psycopg.Connection, connect: Connect, statement: str, rows: int) -> None:
    db.execute(NESTED)
    observer = connect()
    for before in range(5):
        with db.transaction(force_rollback=True):
            for _ in range(before):
                insert(db)
                insert(observer)
            db.execute(statement.format(rows=rows))  # type: ignore[arg-type]
            insert(observer)
            mine = db.execute(
                "SELECT e.id FROM sse_pg.events e WHERE e.xmin::text = pg_current_xact_id()::xid::text"
            ).fetchall()
            windows = publishers(observer)[2]
            assert len(mine) >= rows
            assert all(number in windows for (number,) in mine)
        assert publishers(observer)[2] == NONE


@pytest.mark.parametrize("before", range(7))
@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("inner", [0, 1, 2])
def test_a_nested_statement_does_not_close_the_window_of_the_outer_one(
    db: psycopg.Connection, connect: Connect, before: int, written: bool, inner: int
) -> None:
    """The outer statement calls a function that publishes before its first row, and stops before its next one."""
    db.execute(
        "CREATE TABLE other (x integer); CREATE FUNCTION nested(n integer) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN"
        f" IF n = 1 THEN INSERT INTO sse_pg.events (channel, payload)"  # type: ignore[arg-type]
        f" SELECT 'b', '1' FROM generate_series(1, {inner}); ELSE PERFORM pg_advisory_xact_lock(7); END IF;"
        " RETURN to_jsonb(n); END $$"
    )
    observer, writer = connect(), connect()
    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"
    outer = (
        "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', nested(n) FROM generate_series(1, 2) n RETURNING id"
    )
    ids: list[int] = []

    def run() -> None:
        with writer.transaction():
            if written:
                writer.execute("INSERT INTO other VALUES (1)")
            for _ in range(before):
                ids.extend(insert(writer))
                insert(observer)
            ids.extend(number for (number,) in writer.execute(outer))  # type: ignore[arg-type]

    with ThreadPoolExecutor(1) as thread:
        db.execute("SELECT pg_advisory_lock(7)")
        try:
            done = thread.submit(run)
            while not db.execute(waits).fetchone():
                assert not done.done()
            insert(db, 3)
            last, _, windows = publishers(db)
            first_row = last - 3  # the outer statement's; what it draws next is higher than `last`
            assert first_row in windows
            assert last in windows, "the outer statement is not over"
            assert last + 10**9 in windows
        finally:
            db.execute("SELECT pg_advisory_unlock(7)")
        done.result()
    assert publishers(db)[2] == NONE


def test_statements_without_a_row_take_few_locks(db: psycopg.Connection, connect: Connect) -> None:
    observer = connect()
    with db.transaction():
        for _ in range(40):
            insert(db, 0)
            insert(observer)
        assert locks(observer) <= MAX_LOCKS
        (number,) = insert(db)
        assert number in publishers(observer)[2]
    assert locks(observer) == 0


@pytest.mark.parametrize("said", ["open", "1:open", "8:0", "1:0", "7", ":"])
def test_a_setting_made_by_hand_is_not_believed(db: psycopg.Connection, connect: Connect, said: str) -> None:
    other = connect()
    other.execute("SELECT set_config('sse_pg.announced', %s, false)", [said])
    (number,) = insert(other)
    for _ in range(2):
        with other.transaction():
            for count in range(1, 11):
                ids = insert(other)
                insert(db)
                last, _, windows = publishers(db)
                assert ids[0] in windows
                assert last not in windows or count > 9
    assert number == 1
    assert announced(other) == said


def test_a_savepoint_takes_lock_and_setting_away(db: psycopg.Connection, connect: Connect) -> None:
    observer = connect()
    with db.transaction():
        with db.transaction(force_rollback=True):
            insert(db)
            insert(db)
            assert announced(db) != ""
            assert locks(observer) > 0
        assert announced(db) == ""
        assert locks(observer) == 0
        assert publishers(observer) == (2, None, NONE)
        insert(db)
        assert publishers(observer) == (3, 2, Ranges([(3, 3)]))
    assert announced(db) == ""


@pytest.mark.parametrize("before", [1, 2, 5, 8, 9, 10])
def test_a_savepoint_leaves_what_was_there_before(db: psycopg.Connection, connect: Connect, before: int) -> None:
    observer = connect()
    with db.transaction():
        ids = []
        for _ in range(before):
            ids += insert(db)
            insert(observer)
        shown, held = announced(db), locks(observer)
        with db.transaction(force_rollback=True):
            for _ in range(5):
                insert(db)
        assert (announced(db), locks(observer)) == (shown, held)
        ids += insert(db)
        with db.transaction():
            ids += insert(db)
        windows = publishers(observer)[2]
        assert all(number in windows for number in ids)


def test_an_insert_that_fails_in_a_savepoint(db: psycopg.Connection, connect: Connect) -> None:
    observer = connect()
    with db.transaction():
        with pytest.raises(psycopg.errors.CheckViolation), db.transaction():
            db.execute("INSERT INTO sse_pg.events (channel, payload) VALUES ('', '1')")
        assert locks(observer) == 0
        ids = insert(db)
        assert ids[0] in publishers(observer)[2]


def test_rollback(db: psycopg.Connection, connect: Connect) -> None:
    observer = connect()
    with db.transaction(force_rollback=True):
        insert(db)
    assert publishers(observer) == (1, None, NONE)
    assert announced(db) == ""


def test_a_session_that_dies_is_not_in_flight(db: psycopg.Connection, database_url: str) -> None:
    other = psycopg.connect(database_url)
    insert(other)
    assert publishers(db)[1] == 0
    db.execute("SELECT pg_terminate_backend(%s, 20000)", [other.info.backend_pid])
    assert publishers(db) == (1, None, NONE)
    other.close()


def test_a_prepared_transaction_is_in_flight_until_its_commit(db: psycopg.Connection, connect: Connect) -> None:
    other, name = connect(), uuid4().hex
    other.execute("BEGIN")
    other.execute("SET LOCAL sse_pg.bell = 'off'")
    (number,) = insert(other)
    other.execute(f"PREPARE TRANSACTION '{name}'")  # type: ignore[arg-type]
    try:
        assert announced(other) == ""
        assert publishers(db) == (1, 0, Ranges([(number, number)]))
        insert(other)
        assert publishers(db) == (2, 0, Ranges([(1, 1)])), "the session goes on by itself"
        assert db.execute("SELECT sse_pg.position()").fetchone() == ("2~1",)
    finally:
        db.execute(f"COMMIT PREPARED '{name}'")  # type: ignore[arg-type]
    assert publishers(db) == (2, None, NONE)
    assert db.execute("SELECT sse_pg.position()").fetchone() == ("2",)


def test_other_databases_and_other_locks_do_not_count(
    db: psycopg.Connection, connect: Connect, empty_database_url: str
) -> None:
    other = connect()
    other.execute("SELECT pg_advisory_lock(7), pg_advisory_lock(sse_pg.lock_class('tail'), 0)")
    with psycopg.connect(empty_database_url) as elsewhere:
        (number,) = db.execute("SELECT sse_pg.lock_class('window_low')").fetchone() or (0,)
        elsewhere.execute("SELECT pg_advisory_xact_lock_shared(%s, 0)", [number])
        assert publishers(db) == (0, None, NONE)


BOUNDARIES = [2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1, 2**32, 2**32 + 1, 3 * 2**31, 2**53, 2**62]


@pytest.mark.parametrize("start", BOUNDARIES)
def test_ids_beyond_the_keys_of_locks(db: psycopg.Connection, connect: Connect, start: int) -> None:
    db.execute("SELECT setval('sse_pg.events_id_seq', %s)", [start])
    other = connect()
    with other.transaction():
        assert insert(other, 2) == [start + 1, start + 2]
        insert(db, 5)
        insert(other)
        assert publishers(db) == (start + 8, start, Ranges([(start + 1, start + 2), (start + 8, start + 8)]))
    assert publishers(db) == (start + 8, None, NONE)


def test_a_publisher_that_is_two_thousand_million_ids_old(db: psycopg.Connection, connect: Connect) -> None:
    other = connect()
    with other.transaction():
        insert(other)
        db.execute("SELECT setval('sse_pg.events_id_seq', %s)", [2**31])
        assert publishers(db) == (2**31, 0, Ranges([(1, 1)]))


# ------------------------------------------------------------------ random schedules


@dataclass(eq=False)
class Publisher:
    """One connection: the ids of its open transaction, and how many of them each savepoint began with."""

    conn: psycopg.Connection
    open: bool = False
    ids: list[int] = field(default_factory=list)
    savepoints: list[int] = field(default_factory=list)


class Schedule:
    """Several connections, one step after the other, and an observer who knows the truth."""

    def __init__(self, connect: Connect, seed: int) -> None:
        self.choose = random.Random(seed)
        self.observer = connect()
        self.reader = connect()
        self.publishers = [Publisher(connect()) for _ in range(5)]
        self.committed: set[int] = set()
        self.snapshot: set[int] | None = None

    def step(self) -> None:
        one = self.choose.choice(self.publishers)
        what = self.choose.choices(
            ["insert", "commit", "rollback", "savepoint", "back", "release", "skip"], [9, 3, 1, 2, 2, 1, 1]
        )[0]
        if what == "skip":
            self.observer.execute("SELECT nextval('sse_pg.events_id_seq')")
        elif what == "insert":
            if not one.open:
                one.conn.execute("BEGIN")
                one.open = True
            one.ids += insert(one.conn, self.choose.choice([0, 1, 1, 1, 2, 5]))
        elif one.open:
            self.end_or_nest(one, what)

    def end_or_nest(self, one: Publisher, what: str) -> None:
        conn = one.conn
        if what == "savepoint":
            conn.execute("SAVEPOINT s")
            one.savepoints.append(len(one.ids))
        elif what == "back" and one.savepoints:
            conn.execute("ROLLBACK TO s")
            conn.execute("RELEASE s")
            del one.ids[one.savepoints.pop() :]
        elif what == "release" and one.savepoints:
            conn.execute("RELEASE s")
            one.savepoints.pop()
        elif what in ("commit", "rollback"):
            conn.execute("COMMIT" if what == "commit" else "ROLLBACK")
            if what == "commit":
                self.committed.update(one.ids)
            one.open, one.ids, one.savepoints = False, [], []

    @property
    def running(self) -> set[int]:
        return {number for one in self.publishers for number in one.ids}

    def check(self) -> None:
        last, bound, windows = publishers(self.observer)
        running = self.running
        assert all(number in windows for number in running), "an id in flight lies in no window"
        assert bound is None or all(bound < number for number in running)
        assert last >= max([0, *running, *self.committed])
        row = self.observer.execute("SELECT sse_pg.position()").fetchone()
        assert row is not None
        self.exact(str(row[0]), self.committed, running)

    def exact(self, text: str, visible: set[int], may_come: set[int]) -> None:
        """A stream that continues at this position gets what was not visible, and, unless lowered, nothing else."""
        cursor = Cursor.parse(text)
        assert not {number for number in may_come if cursor.offered(number)}, "offered before it was visible"
        repeated = {number for number in visible if not cursor.offered(number)}
        assert not repeated or (len(text) > 100 and all(number > cursor.high for number in repeated))

    def look(self) -> None:
        """Begin, or end, a transaction in REPEATABLE READ, and ask it for its position late."""
        if self.snapshot is None:
            self.reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            rows = self.reader.execute("SELECT id FROM sse_pg.events").fetchall()
            self.snapshot = {number for (number,) in rows}
            assert self.snapshot == self.committed
            return
        row = self.reader.execute("SELECT sse_pg.position()").fetchone()
        assert row is not None
        later = (self.committed | self.running) - self.snapshot
        self.exact(str(row[0]), self.snapshot, later)
        self.reader.execute("COMMIT")
        self.snapshot = None

    def note_settled(self) -> None:
        """Note what is known, as a tail does: after a read of everything."""
        high, first, last = self.observer.execute("SELECT * FROM sse_pg.visible_position()").fetchone()  # type: ignore[misc]
        self.observer.execute(
            "UPDATE sse_pg.log SET settled_to = %s, open_first = %s, open_last = %s WHERE settled_to < %s",
            [high, first, last, high],
        )


@pytest.mark.parametrize("seed", range(8))
def test_windows_and_positions_in_random_schedules(connect: Connect, seed: int) -> None:
    schedule = Schedule(connect, seed)
    if seed % 2:
        schedule.observer.execute("SELECT setval('sse_pg.events_id_seq', %s)", [2**32 - 40])
    for number in range(150):
        schedule.step()
        schedule.check()
        if number % 11 == seed:
            schedule.look()
        if number % 17 == seed:
            schedule.note_settled()


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1')", "SELECT sse_pg.publish('a', 't', '1')"],
)
def test_a_replica_session_is_seen_as_well(db: psycopg.Connection, connect: Connect, statement: str) -> None:
    """As a logical apply worker is one, in which a trigger that is ENABLE ALWAYS publishes."""
    worker = connect()
    worker.execute("SET session_replication_role = replica")
    with worker.transaction():
        worker.execute(statement)  # type: ignore[arg-type]
        assert publishers(db) == (1, 0, Ranges([(1, 1)]))
        assert db.execute("SELECT sse_pg.position()").fetchone() == ("0",)
    assert publishers(db) == (1, None, NONE)
