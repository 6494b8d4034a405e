"""With whose rights the changes of a table are published, what survives a dump, and calls at the same time."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support.cluster import binaries
from support.doctor import one
from support.waiting import wait_for

from sse_pg.embedded import EmbeddedPostgres

DENIED = psycopg.errors.InsufficientPrivilege
Login = Callable[..., psycopg.Connection]


@pytest.fixture
def login(postgres: EmbeddedPostgres, database_url: str, db: psycopg.Connection) -> Iterator[Login]:
    """Make a role with the rights that are named; return a connection of it."""
    made: list[psycopg.Connection] = []

    def make(*rights: str) -> psycopg.Connection:
        name = f"r{uuid4().hex[:12]}"
        db.execute(f"CREATE ROLE {name} LOGIN")  # type: ignore[arg-type]
        for right in rights:
            db.execute(f"GRANT {right} TO {name}")  # type: ignore[arg-type]
        made.append(psycopg.connect(make_conninfo(database_url, user=name), autocommit=True))
        return made[-1]

    yield make
    for conn in made:
        name = sql.Identifier(conn.info.user)
        conn.close()
        db.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(name))
        db.execute(sql.SQL("DROP ROLE {}").format(name))


OWNER = (
    "USAGE ON SCHEMA sse_pg",
    "EXECUTE ON FUNCTION sse_pg.publish_changes, sse_pg.stop_publishing",
    "CREATE ON SCHEMA public",
)
INSERT = "INSERT (channel, event_type, payload) ON sse_pg.events"
PUBLISH = "SELECT sse_pg.publish_changes('orders', 'orders')"


@pytest.fixture
def owner(login: Login) -> psycopg.Connection:
    """A role that may publish what it owns, with a table."""
    conn = login(*OWNER, INSERT)
    conn.execute("CREATE TABLE orders (id integer PRIMARY KEY, state text DEFAULT 'new')")
    return conn


def test_whoever_writes_needs_no_right_of_the_bus(
    db: psycopg.Connection, owner: psycopg.Connection, login: Login
) -> None:
    owner.execute("SELECT sse_pg.publish_changes('orders', 'orders.{state}', condition => 'new.id > 0')")
    writer = login()
    owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON orders TO {writer.info.user}")  # type: ignore[arg-type]
    for statement in (
        "INSERT INTO orders VALUES (1)",
        "UPDATE orders SET state = 'old'",
        "DELETE FROM orders",
        "TRUNCATE orders",
    ):
        writer.execute(statement)
    events = db.execute("SELECT event_type FROM sse_pg.events ORDER BY id").fetchall()
    assert [kind for (kind,) in events] == ["INSERT", "DELETE", "INSERT", "DELETE"]
    for statement in ("SELECT sse_pg.publish('a', 't', '1')", "SELECT sse_pg.stop_publishing('orders')", PUBLISH):
        with pytest.raises(DENIED):
            writer.execute(statement)  # type: ignore[arg-type]


def test_the_hint_says_what_the_owner_lacks(db: psycopg.Connection, login: Login) -> None:
    owner = login(*OWNER)
    owner.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    with pytest.raises(DENIED, match="may not publish") as refused:
        owner.execute(PUBLISH)
    assert refused.value.diag.message_hint
    for statement in refused.value.diag.message_hint.split("; "):
        db.execute(statement)  # type: ignore[arg-type]
    owner.execute(PUBLISH)
    owner.execute("INSERT INTO orders VALUES (1)")


def test_only_the_owner_decides(db: psycopg.Connection, owner: psycopg.Connection, login: Login) -> None:
    other = login(*OWNER, INSERT)
    owner.execute(f"GRANT ALL ON orders TO {other.info.user}")  # type: ignore[arg-type]
    for statement in (PUBLISH, "SELECT sse_pg.publish_changes('orders', 'mine', condition => 'true')"):
        with pytest.raises(DENIED, match=r"only the owner of public\.orders"):
            other.execute(statement)  # type: ignore[arg-type]
    owner.execute(PUBLISH)
    with pytest.raises(DENIED):
        other.execute("SELECT sse_pg.stop_publishing('orders')")
    member = login(*OWNER, owner.info.user)
    member.execute("SELECT sse_pg.publish_changes('orders', 'other')")
    assert db.execute("SELECT channel, owner, problem FROM sse_pg.published_tables").fetchall() == [
        ("other", owner.info.user, None)
    ]
    member.execute("INSERT INTO orders VALUES (1)")
    assert member.execute("SELECT sse_pg.stop_publishing('orders')").fetchone() == (True,)


def test_expressions_have_the_rights_of_the_owner(
    db: psycopg.Connection, owner: psycopg.Connection, login: Login
) -> None:
    """Not those of the bus, nor of a superuser who asks for it, nor of whoever writes to the table."""
    db.execute("CREATE TABLE seen (role name)")
    db.execute("GRANT INSERT ON seen TO PUBLIC")
    owner.execute(
        "CREATE FUNCTION note() RETURNS boolean LANGUAGE sql"
        " AS 'INSERT INTO public.seen VALUES (current_user) RETURNING true'"
    )
    db.execute("SELECT sse_pg.publish_changes('orders', 'orders', condition => 'public.note()')")
    assert db.execute("SELECT count(*) FROM seen").fetchone() == (0,), "it is not evaluated to look at it"
    db.execute("INSERT INTO orders VALUES (1)")
    writer = login()
    owner.execute(f"GRANT ALL ON orders TO {writer.info.user}")  # type: ignore[arg-type]
    writer.execute("UPDATE orders SET state = 'x'")
    assert db.execute("SELECT DISTINCT role FROM seen").fetchall() == [(owner.info.user,)]
    db.execute("CREATE TABLE secrets (id integer)")
    owner.execute("SELECT sse_pg.publish_changes('orders', 'orders', condition => 'new.id > 0')")
    with pytest.raises(DENIED, match="secrets"):
        owner.execute(
            "SELECT sse_pg.publish_changes('orders', 'orders', condition => 'EXISTS (SELECT FROM public.secrets)')"
        )


def test_the_function_of_a_table_is_for_no_other_table(owner: psycopg.Connection, login: Login) -> None:
    """Or anybody could write to its channels."""
    owner.execute(PUBLISH)
    other = login(*OWNER)
    other.execute("CREATE TABLE mine (id integer PRIMARY KEY, state text)")
    (function,) = owner.execute(
        "SELECT tgfoid::regproc::text FROM pg_trigger WHERE tgname = 'sse_pg_insert'"
    ).fetchone()  # type: ignore[misc]
    with pytest.raises(DENIED):
        other.execute(
            f"CREATE TRIGGER t AFTER INSERT ON mine REFERENCING NEW TABLE AS sse_pg_new"  # type: ignore[arg-type]
            f" FOR EACH STATEMENT EXECUTE FUNCTION {function}('x')"
        )


def test_a_session_cannot_change_what_the_names_mean(
    db: psycopg.Connection, owner: psycopg.Connection, login: Login
) -> None:
    owner.execute(
        "SELECT sse_pg.publish_changes('orders', 'orders.{state}', condition => $$lower(new.state) <> '\\'$$)"
    )
    writer = login()
    owner.execute(f"GRANT ALL ON orders TO {writer.info.user}")  # type: ignore[arg-type]
    writer.execute("CREATE TEMP TABLE sse_pg_new (id integer, state text)")
    writer.execute("CREATE TEMP TABLE pg_attribute (x integer)")
    writer.execute("CREATE FUNCTION pg_temp.lower(text) RETURNS text LANGUAGE sql AS $$SELECT 'x'$$")
    writer.execute("SET search_path = pg_temp, public, pg_catalog")
    if db.info.server_version < 190000:
        writer.execute("SET standard_conforming_strings = off")
    writer.execute("SET plpgsql.variable_conflict = error")
    writer.execute("INSERT INTO public.orders VALUES (1, 'a'), (2, chr(92))")
    assert db.execute("SELECT channel FROM sse_pg.events").fetchall() == [("orders.a",)]


def test_row_level_security_hides_nothing(db: psycopg.Connection, owner: psycopg.Connection) -> None:
    owner.execute(PUBLISH)
    owner.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    owner.execute("CREATE POLICY p ON orders USING (id > 1) WITH CHECK (true)")
    owner.execute("INSERT INTO orders VALUES (1), (2)")
    db.execute("UPDATE orders SET state = 'x'")
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (4,)


async def test_the_owner_changes(
    db: psycopg.Connection, owner: psycopg.Connection, login: Login, database_url: str
) -> None:
    owner.execute(PUBLISH)
    assert (await one("published", database_url)).found == "tables whose changes are published: public.orders"
    heir = login(*OWNER, INSERT)
    db.execute(f"ALTER TABLE orders OWNER TO {heir.info.user}")  # type: ignore[arg-type]
    finding = await one("published", database_url)
    assert (finding.state, owner.info.user in finding.found) == ("warning", True), finding
    heir.execute(PUBLISH)
    heir.execute("INSERT INTO orders VALUES (1)")
    assert (await one("published", database_url)).state == "ok"
    assert db.execute("SELECT owner, problem FROM sse_pg.published_tables").fetchall() == [(heir.info.user, None)]
    db.execute(f"REVOKE {INSERT.replace(' ON ', ' ON TABLE ')} FROM {heir.info.user}")  # type: ignore[arg-type]
    finding = await one("published", database_url)
    assert "may not publish, so writing to the table fails" in finding.found
    with pytest.raises(DENIED):
        heir.execute("DELETE FROM orders")
    assert heir.execute("SELECT sse_pg.stop_publishing('orders')").fetchone() == (True,)
    heir.execute("DELETE FROM orders")


def test_it_survives_a_dump(db: psycopg.Connection, database_url: str, empty_database_url: str) -> None:
    for statement in (
        'CREATE TABLE orders (id integer PRIMARY KEY, "It\'s" text)',
        "CREATE TABLE days (id integer, day integer, PRIMARY KEY (id, day)) PARTITION BY LIST (day)",
        "CREATE TABLE day1 PARTITION OF days FOR VALUES IN (1)",
        "SELECT sse_pg.publish_changes('orders', 'o.{It''s}', condition => $$new.\"It's\" <> 'ä'$$, columns => '{id}')",
        "SELECT sse_pg.publish_changes('days', 'days')",
        "INSERT INTO orders VALUES (1, 'a')",
        'ALTER TABLE orders RENAME "It\'s" TO note',
    ):
        db.execute(statement)  # type: ignore[arg-type]
    before = db.execute("SELECT * FROM sse_pg.published_tables ORDER BY source::text").fetchall()
    dumped = subprocess.run(
        [binaries().bin / "pg_dump", database_url], capture_output=True, check=True, encoding="utf-8"
    )
    statements = [line for line in dumped.stdout.splitlines() if not line.startswith("\\")]
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        copied: list[str] = []
        # COPY ... FROM stdin is for psql: the few rows are left out, but for the schema.
        inside = False
        for line in statements:
            inside = (inside or line.startswith("COPY ")) and line != ""
            if not inside:
                copied.append(line)
        conn.execute("\n".join(copied).encode())
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        assert conn.execute("SELECT * FROM sse_pg.published_tables ORDER BY source::text").fetchall() == before
        conn.execute("INSERT INTO orders VALUES (2, 'b'), (3, 'ä')")
        conn.execute("INSERT INTO day1 VALUES (1, 1)")
        assert conn.execute("SELECT channel, payload -> 'new' FROM sse_pg.events ORDER BY id").fetchall() == [
            ("o.b", {"id": 2}),
            ("days", {"id": 1, "day": 1}),
        ]
        assert conn.execute("SELECT sse_pg.stop_publishing('orders')").fetchone() == (True,)


def test_two_calls_at_the_same_time(db: psycopg.Connection, database_url: str) -> None:
    """The second one waits for the first, and writers wait for both."""
    db.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    failed: list[Exception] = []

    def call(channel: str) -> None:
        try:
            with psycopg.connect(database_url, autocommit=True) as conn:
                conn.execute("SELECT sse_pg.publish_changes('orders', %s)", [channel])
        except psycopg.Error as problem:
            failed.append(problem)

    with psycopg.connect(database_url) as first:
        first.execute("SELECT sse_pg.publish_changes('orders', 'first')")
        threads = [threading.Thread(target=call, args=[f"later{n}"]) for n in range(3)]
        for thread in threads:
            thread.start()
        wait_for(
            lambda: db.execute(
                "SELECT count(*) FROM pg_locks WHERE relation = 'orders'::regclass AND NOT granted"
            ).fetchone() == (3,),
            "three calls that wait",
        )  # fmt: skip
        first.commit()
    for thread in threads:
        thread.join()
    assert failed == []
    db.execute("INSERT INTO orders VALUES (1)")
    ((channel,),) = db.execute("SELECT channel FROM sse_pg.events").fetchall()
    assert db.execute("SELECT channel FROM sse_pg.published_tables").fetchall() == [(channel,)]
    assert db.execute("SELECT count(*) FROM pg_proc WHERE proname LIKE 'sse_pg_orders%'").fetchone() == (1,)
