"""sql/roles.sql with real roles over real logins: what each may do, and that it may do nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import psycopg.conninfo
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support.client import Client
from support.process import CHECKOUT, one_line, process, run
from support.server import Launcher
from support.waiting import eventually

from sse_pg.db import queries
from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres
from sse_pg.errors import MigrationError

DENIED = psycopg.errors.InsufficientPrivilege
ROLES = CHECKOUT / "sql" / "roles.sql"
Login = Callable[[str], str]


def apply_roles(url: str) -> list[tuple[str, str, str]]:
    """Run sql/roles.sql; return what it prints."""
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(ROLES.read_bytes())
        while cursor.nextset():
            pass
        return cursor.fetchall()


@pytest.fixture
def login(postgres: EmbeddedPostgres, database_url: str) -> Iterator[Login]:
    """Make a login of a group role; return its connection string."""
    apply_roles(database_url)
    made: list[sql.Identifier] = []

    def make(group: str) -> str:
        name = f"r{uuid4().hex[:12]}"
        with psycopg.connect(database_url, autocommit=True) as conn:
            made.append(sql.Identifier(name))
            conn.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE {}").format(made[-1], sql.Identifier(group)))
        return make_conninfo(database_url, user=name)

    yield make
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = ANY(%s)",
            [[name.as_string().strip('"') for name in made]],
        )
        for name in made:
            conn.execute(sql.SQL("DROP ROLE {}").format(name))


def denied(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            with pytest.raises(DENIED):
                conn.execute(statement)  # type: ignore[arg-type]


#: What no role may do, whatever else it may.
FORGERY = (
    "INSERT INTO sse_pg.events (id, channel, payload) OVERRIDING SYSTEM VALUE VALUES (9, 'a', '1')",
    "INSERT INTO sse_pg.events (channel, payload, created_at) VALUES ('a', '1', 'yesterday')",
    "INSERT INTO sse_pg.events_default (id, channel, payload) OVERRIDING SYSTEM VALUE VALUES (9, 'a', '1')",
    "UPDATE sse_pg.events SET payload = '1'",
    "DELETE FROM sse_pg.events",
    "TRUNCATE sse_pg.events",
    "ALTER TABLE sse_pg.events DISABLE TRIGGER ALL",
    "DROP TABLE sse_pg.events_default",
    "CREATE TABLE sse_pg.mine ()",
    "SELECT nextval('sse_pg.events_id_seq')",
    "SELECT setval('sse_pg.events_id_seq', 1)",
    "SELECT * FROM sse_pg.idempotency_keys",
    "SELECT sse_pg.begin_epoch()",
    "SELECT sse_pg.note_purged(1)",
    "SELECT sse_pg.alone('drop', '{1}', parts => '{sse_pg.events_default}')",
    "SELECT sse_pg.drop_partitions('{}', 1)",
    "SELECT sse_pg.make_table('mine')",
    "UPDATE sse_pg.log SET purged_to = 1",
)


def test_it_prints_what_it_grants_and_runs_again(database_url: str, postgres: EmbeddedPostgres) -> None:
    printed = apply_roles(database_url)
    assert ("sse_pg_publisher", "EXECUTE", "sse_pg.publish(text,text,jsonb,text,jsonb)") in printed
    assert len([row for row in printed if row[0] == "sse_pg_publisher"]) == 10
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("GRANT DELETE ON sse_pg.events TO sse_pg_publisher")
    assert apply_roles(database_url) == printed, "what an older version granted stays"
    psql = postgres.psql.split()[0]
    if Path(psql).exists():
        again = subprocess.run(
            [psql, "-X", "-v", "ON_ERROR_STOP=1", "-f", str(ROLES), database_url], capture_output=True, text=True
        )
        assert again.returncode == 0, again.stderr
        assert "sse_pg_publisher" in again.stdout


def test_a_publisher_publishes_and_nothing_else(database_url: str, login: Login, db: psycopg.Connection) -> None:
    url = login("sse_pg_publisher")
    with psycopg.connect(url, autocommit=True) as conn:
        assert conn.execute("SELECT sse_pg.publish('a', 't', '{}')").fetchone() == (1,)
        assert conn.execute("SELECT sse_pg.publish('a', 't', '{}', 'key')").fetchone() == (2,)
        assert conn.execute("SELECT sse_pg.position()").fetchone() == ("2",)
        many = "SELECT id FROM sse_pg.publish_many('{a,a}', '{t,t}', '{1,2}')"
        assert conn.execute(many).fetchall() == [(3,), (4,)]
        assert conn.execute("SELECT sse_pg.finish('a')").fetchone() == (5,)
    denied(
        url,
        *FORGERY,
        "SELECT * FROM sse_pg.events",
        "SELECT * FROM sse_pg.log",
        "INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1')",
        "SELECT sse_pg.subscribe('u', 'a')",
        "SELECT * FROM sse_pg.purge(0)",
        "SELECT sse_pg.make_partitions()",
    )
    assert db.execute(
        "SELECT count(*), bool_and(created_at > now() - interval '1 day') FROM sse_pg.events"
    ).fetchone() == (
        5,
        True,
    )


def test_raw_insert_is_one_grant_more(login: Login, db: psycopg.Connection) -> None:
    url = login("sse_pg_publisher")
    assert (
        "GRANT INSERT (channel, event_type, payload, headers) ON sse_pg.events TO sse_pg_publisher" in ROLES.read_text()
    )
    db.execute("GRANT INSERT (channel, event_type, payload, headers) ON sse_pg.events TO sse_pg_publisher")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1')")
        with conn.cursor().copy("COPY sse_pg.events (channel, payload) FROM STDIN") as copy:
            copy.write_row(("b", "2"))
    denied(url, *FORGERY, "SELECT * FROM sse_pg.events")
    assert db.execute("SELECT id, channel FROM sse_pg.events ORDER BY id").fetchall() == [(1, "a"), (2, "b")]


def test_a_subscriber_reads_and_subscribes(login: Login, db: psycopg.Connection) -> None:
    url = login("sse_pg_subscriber")
    db.execute("SELECT sse_pg.publish('a', 't', '{}')")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("LISTEN sse_pg")
        assert conn.execute("SELECT sse_pg.position()").fetchone() == ("1",)
        db.execute("SELECT sse_pg.publish('a', 't', '2')")
        assert next(conn.notifies(timeout=20, stop_after=1)).channel == "sse_pg"
        assert conn.execute("SELECT id, payload FROM sse_pg.events WHERE id > 1").fetchall() == [(2, 2)]
        assert conn.execute("SELECT sse_pg.subscribe('u', 'a')").fetchone() == (True,)
        assert conn.execute("SELECT user_id, channel FROM sse_pg.subscriptions").fetchall() == [("u", "a")]
        assert conn.execute("SELECT sse_pg.unsubscribe('u', 'a')").fetchone() == (True,)
        assert conn.execute("SELECT purged_to FROM sse_pg.log").fetchone() == (0,)
    denied(
        url,
        *FORGERY,
        "SELECT sse_pg.publish('a', 't', '1')",
        "INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1')",
        "INSERT INTO sse_pg.subscriptions (user_id, channel) VALUES ('u', 'a')",
        "SELECT * FROM sse_pg.purge(0)",
    )


def test_a_server_owns_nothing(login: Login) -> None:
    url = login("sse_pg_server")
    denied(
        url,
        *FORGERY,
        "INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '1')",
        "INSERT INTO sse_pg.migrations (number, name) VALUES (9, 'x')",
        "DELETE FROM sse_pg.subscriptions",
    )
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT FROM pg_class WHERE pg_has_role(relowner, 'USAGE')").fetchall() == []


async def test_a_server_serves_under_its_role(launch: Launcher, login: Login, db: psycopg.Connection) -> None:
    """Publish, subscribe, stream, history, presence, an epoch, partitions, retention: with no other right."""
    db.execute("SELECT sse_pg.publish('a', 't', '0')")
    db.execute("UPDATE sse_pg.log SET identity = 'another/cluster'")  # the server is to begin an epoch
    launch.database_url = login("sse_pg_server")
    server = await launch(partition_size=10, keep_events=20, maintenance=0.05, bell="always")
    async with Client(server.url) as client:
        assert (await client.post("/api/events/channels/subscribe", {"userId": "u", "channel": "a"}))[0] == 201
        async with client.stream(userId="u") as stream:
            first = await client.publish("a", 1)
            assert first > 1_000_000_000
            assert (await stream.event()).json() == 1
            status, answer = await client.get("/api/events/active-connections")
            assert status == 200
            assert len(answer["servers"]) == 1
            status, answer = await client.get("/api/events/streams?servers=all")
            assert (status, answer["server"]["answered"], answer["count"]) == (200, True, 1)
            keyed = {"channel": "a", "payload": 2, "idempotencyKey": "k"}
            assert (await client.post("/api/events/publish", keyed))[0] == 201
            assert (await client.post("/api/events/publish", keyed))[0] == 201
            status, page = await client.get("/api/events/history?channel=a")
            assert [event["payload"] for event in page["events"]] == [0, 1, 2]
            assert (await client.post("/api/events/channels/unsubscribe", {"userId": "u", "channel": "a"}))[0] == 200

        def purged() -> bool:
            db.execute("SELECT sse_pg.publish('b', 't', '1') FROM generate_series(1, 10)")
            row = db.execute("SELECT purged_to > %s FROM sse_pg.log", [first]).fetchone()
            return row is not None and bool(row[0])

        await eventually(purged)
        assert db.execute("SELECT count(*) FROM sse_pg.epochs").fetchone() == (1,)
        owners = db.execute(
            "SELECT DISTINCT relowner = (SELECT relowner FROM pg_class WHERE oid = 'sse_pg.events'::regclass)"
            "  FROM pg_class WHERE relnamespace = 'sse_pg'::regnamespace"
        ).fetchall()
        assert owners == [(True,)]
        async with client.stream("a", last_event_id="1") as stream:
            assert (await stream.event()).event == "sse-pg.gap"
    await server.stop()
    assert db.execute("SELECT count(*) FROM sse_pg.servers").fetchone() == (0,)


def test_the_processes_need_no_more(login: Login) -> None:
    url = login("sse_pg_server")
    with process("serve", "--port", "0", DATABASE_URL=url) as server:
        assert server.url()
        server.popen.terminate()
        assert server.wait() == 0
        assert not any('"level":"error"' in line or "permission denied" in line for line in server.err), server.err
    assert run("purge", DATABASE_URL=url).returncode == 0
    assert run("migrate", DATABASE_URL=url).stdout == "the schema is up to date\n"


async def test_two_functions_are_enough_to_list_the_open_streams(
    launch: Launcher, login: Login, db: psycopg.Connection
) -> None:
    url = login("pg_monitor")
    await launch()
    asks, shows = "SELECT sse_pg.ask_for_streams()", "SELECT problem, streams FROM sse_pg.open_streams(NULL, '60 s')"
    name = psycopg.conninfo.conninfo_to_dict(url)["user"]
    db.execute(f"GRANT USAGE ON SCHEMA sse_pg TO {name}".encode())
    denied(url, asks, shows, "SELECT * FROM sse_pg.stream_questions", "SELECT * FROM sse_pg.stream_answers")
    db.execute(f"GRANT EXECUTE ON FUNCTION sse_pg.ask_for_streams, sse_pg.open_streams TO {name}".encode())
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute(asks.encode())
        assert await (await conn.execute(shows.encode())).fetchall() == [(None, 0)]
    db.execute(f"DROP OWNED BY {name}".encode())


def test_a_server_says_which_migration_is_missing(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    url = login("sse_pg_server")
    later = [*queries.migrations(), queries.Migration(2, "pre_more", b"CREATE TABLE sse_pg.more ()")]
    monkeypatch.setattr(queries, "migrations", lambda: later)
    with pytest.raises(MigrationError, match=r"0002_pre_more is missing.*run sse-pg migrate as the owner") as raised:
        migrate(url)
    assert "\n" not in str(raised.value)


def test_a_login_without_the_role_is_told_of_it(postgres: EmbeddedPostgres, database_url: str, login: Login) -> None:
    url = login("pg_monitor")
    assert "sql/roles.sql" in one_line(run("migrate", DATABASE_URL=url))


def psql(postgres: EmbeddedPostgres, url: str) -> subprocess.CompletedProcess[str]:
    program = postgres.psql.split()[0]
    if not Path(program).exists():
        pytest.skip("there is no psql")
    return subprocess.run([program, "-X", "-q", "-f", str(ROLES), url], capture_output=True, text=True)


def test_one_error_says_what_an_administrator_has_to_run(
    database_url: str, postgres: EmbeddedPostgres, login: Login, db: psycopg.Connection
) -> None:
    """The roles belong to the cluster, so other tests need them: they are only renamed here."""
    url = login("pg_monitor")
    done = psql(postgres, url)
    assert done.stderr.count("ERROR") == 1
    assert "Run this file as postgres" in done.stderr
    name = psycopg.conninfo.conninfo_to_dict(url)["user"]
    db.execute(f"ALTER SCHEMA sse_pg OWNER TO {name}")  # type: ignore[arg-type]
    db.execute("ALTER ROLE sse_pg_publisher RENAME TO sse_pg_publisher_away")
    try:
        done = psql(postgres, url)
        assert done.stderr.count("ERROR") == 1
        assert "CREATE ROLE sse_pg_publisher NOLOGIN;" in done.stderr
    finally:
        db.execute("ALTER ROLE sse_pg_publisher_away RENAME TO sse_pg_publisher")
        db.execute("ALTER SCHEMA sse_pg OWNER TO postgres")
