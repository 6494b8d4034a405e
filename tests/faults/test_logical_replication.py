"""Logical replication: the log moves to another database, and a trigger publishes what is copied."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support import cluster
from support.client import Client
from support.doctor import one
from support.process import run
from support.server import Launcher
from support.standby import standby_of
from support.waiting import eventually, wait_for

from sse_pg.core.cursor import Cursor
from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres

_numbers = count(1)


@pytest.fixture(scope="module")
def replicating() -> Iterator[EmbeddedPostgres]:
    """A cluster from which databases can be copied."""
    with cluster.throwaway(wal_level="logical") as server:
        yield server


@pytest.fixture
def source(replicating: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    """A database with the schema."""
    with psycopg.connect(_create(replicating), autocommit=True) as conn:
        yield conn


@pytest.fixture
def database_url(replicating: EmbeddedPostgres) -> str:
    """Another one, which the servers of a test use."""
    return _create(replicating)


def _create(cluster: EmbeddedPostgres) -> str:
    name = f"moving{next(_numbers)}"
    with psycopg.connect(cluster.url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    url = make_conninfo(cluster.url, dbname=name)
    migrate(url)
    return url


def _subscribe(source: psycopg.Connection, db: psycopg.Connection, publication: str) -> None:
    """Copy what is there, and then each change.

    The slot is made first: within one cluster, CREATE SUBSCRIPTION would wait for itself.
    """
    info = source.info
    slot = f"slot_{info.dbname}"
    where = make_conninfo(host=info.host, port=info.port, user=info.user, dbname=info.dbname)
    source.execute(f"CREATE PUBLICATION moved FOR {publication}")  # type: ignore[arg-type]
    source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    db.execute(
        f"CREATE SUBSCRIPTION {slot} CONNECTION '{where}' PUBLICATION moved WITH (create_slot = false)"  # type: ignore[arg-type]
    )
    left = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'"
    wait_for(lambda: db.execute(left).fetchone() == (0,), "the copy of the tables")


def _unsubscribe(source: psycopg.Connection, db: psycopg.Connection) -> None:
    db.execute(f"DROP SUBSCRIPTION slot_{source.info.dbname}")  # type: ignore[arg-type]


async def test_a_log_that_moved_begins_one_epoch(
    source: psycopg.Connection, db: psycopg.Connection, launch: Launcher
) -> None:
    db.execute("TRUNCATE sse_pg.migrations, sse_pg.log")  # as in a copy of the schema alone
    source.execute("SELECT sse_pg.make_partitions(1, 10)")
    source.execute("SELECT sse_pg.publish('a', 'T', '1') FROM generate_series(1, 7)")
    source.execute("SELECT sse_pg.finish('b')")
    _subscribe(source, db, "TABLES IN SCHEMA sse_pg WITH (publish_via_partition_root)")
    # The partition of these is made later, and only at the source.
    source.execute("SELECT sse_pg.make_partitions(1, 10)")
    source.execute("SELECT sse_pg.publish('a', 'T', '1') FROM generate_series(1, 7)")
    source.execute("SELECT sse_pg.finish('b')")
    wait_for(lambda: db.execute("SELECT max(id) FROM sse_pg.events").fetchone() == (16,), "the last event")
    _unsubscribe(source, db)
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        for number in range(3):
            assert await client.publish("a", number) > 1_000_000_000
        events = await stream.events(3)
        assert [event.json() for event in events] == [0, 1, 2]
    await server.stop()
    server = await launch()
    async with Client(server.url) as client, client.stream("a", last_event_id=events[0].id) as stream:
        assert [event.json() for event in await stream.events(2)] == [1, 2]
    assert db.execute("SELECT count(*) FROM sse_pg.epochs").fetchone() == (1,)


async def test_a_server_waits_while_a_subscription_copies_events(
    source: psycopg.Connection, db: psycopg.Connection, database_url: str, launch: Launcher
) -> None:
    """A stream that is open all the time is sent each event of the new log once, and no copied one twice."""
    source.execute("SELECT sse_pg.publish('a', 'T', to_jsonb(n)) FROM generate_series(1, 8) n")
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        first = await client.publish("a", "before")
        assert (await stream.event()).json() == "before"
        db.execute("DELETE FROM sse_pg.events")
        _subscribe(source, db, "TABLE sse_pg.events WITH (publish_via_partition_root)")
        await eventually(lambda: "subscription" in server.bus.tail.last_error)
        status, body = await client.get("/readyz")
        assert (status, "slot_moving" in body["detail"]) == (503, True)
        finding = await one("moved", database_url)
        assert (finding.state, finding.sql) == ("error", (f"DROP SUBSCRIPTION slot_{source.info.dbname}",))
        assert "subscription" in run("migrate", DATABASE_URL=database_url).stderr
        source.execute("SELECT sse_pg.publish('a', 'T', to_jsonb(n)) FROM generate_series(9, 16) n")
        wait_for(lambda: db.execute("SELECT max(id) FROM sse_pg.events").fetchone() == (16,), "the last event")
        db.execute(finding.sql[0])  # type: ignore[arg-type]
        await eventually(server.bus.tail.listening.is_set)
        for word in ("x", "y", "z"):
            assert await client.publish("a", word) > 1_000_000_000 + first
        events = [await stream.event()]
        while events[-1].data != '"z"':
            events.append(await stream.event())
        assert [event.json() for event in events if event.event == "message"] == ["x", "y", "z"]
        copied = [event.id for event in events if event.event == "T"]
        assert len(copied) == len(set(copied))
    assert db.execute("SELECT count(*) FROM sse_pg.epochs").fetchone() == (1,)
    assert (await one("moved", database_url)).state == "ok"


@pytest.mark.parametrize("listens", [True, False])
async def test_events_are_copied_below_what_was_read(
    source: psycopg.Connection, db: psycopg.Connection, database_url: str, launch: Launcher, listens: bool
) -> None:
    """As when somebody sets the sequence ahead, so that ids do not collide, and copies afterwards."""
    source.execute("SELECT setval('sse_pg.events_id_seq', 100)")
    source.execute("SELECT sse_pg.publish('a', 'T', to_jsonb(n)) FROM generate_series(1, 8) n")
    server = await launch(listen_database_url=None if listens else "none")
    async with Client(server.url) as client, client.stream("a") as stream:
        db.execute("SELECT setval('sse_pg.events_id_seq', 1000)")
        assert await client.publish("a", "before") == 1001
        assert (await stream.event()).json() == "before"
        await eventually(lambda: server.bus.hub.position == Cursor(1001))  # the ids below cannot come any more
        _subscribe(source, db, "TABLE sse_pg.events WITH (publish_via_partition_root)")
        gap = await stream.event()
        assert (gap.event, gap.json()) == ("sse-pg.gap", {"reason": "unknown", "after": "1001", "before": "1001"})
        await eventually(lambda: "slot_moving" in server.bus.tail.last_error)
        status, body = await client.get("/readyz")
        assert (status, "slot_moving" in body["detail"]) == (503, True)
        _unsubscribe(source, db)
        await eventually(server.bus.tail.listening.is_set)
        assert await client.publish("a", "after") == 1002
        assert (await stream.event()).json() == "after"
        async with client.stream("a", last_event_id="0") as other:
            assert [event.json() for event in await other.events(10)] == [*range(1, 9), "before", "after"]


async def test_a_server_at_a_standby_waits_too(
    source: psycopg.Connection, db: psycopg.Connection, replicating: EmbeddedPostgres, launch: Launcher
) -> None:
    """The standby has replayed that there is a subscription, so it need not ask the primary."""
    source.execute("SELECT setval('sse_pg.events_id_seq', 100)")
    source.execute("SELECT sse_pg.publish('a', 'T', '1')")
    with standby_of(replicating) as standby:
        server = await launch(read_database_url=standby.url(db.info.dbname))
        async with Client(server.url) as client, client.stream("a") as stream:
            db.execute("SELECT setval('sse_pg.events_id_seq', 1000)")
            await client.publish("a", "before")
            assert (await stream.event()).json() == "before"
            await eventually(lambda: server.bus.hub.position == Cursor(1001))
            _subscribe(source, db, "TABLE sse_pg.events WITH (publish_via_partition_root)")
            assert (await stream.event()).event == "sse-pg.gap"
            await eventually(lambda: "slot_moving" in server.bus.tail.last_error)
            assert (await client.get("/readyz"))[0] == 503
            _unsubscribe(source, db)
            await eventually(server.bus.tail.listening.is_set)
            await client.publish("a", "after")
            assert (await stream.event()).json() == "after"
        await server.stop()


async def test_publishing_into_ids_that_were_copied_is_unavailable_and_not_refused(
    db: psycopg.Connection, launch: Launcher
) -> None:
    """As after a restore of the data alone, which leaves the sequence behind, while a server runs."""
    server = await launch(safety_read=60.0)
    async with Client(server.url) as client, client.stream("a") as stream:
        await client.publish("a", 0)
        await stream.event()
        db.execute("SET sse_pg.bell = 'off'")
        db.execute(
            "INSERT INTO sse_pg.events (id, channel, payload) OVERRIDING SYSTEM VALUE"
            " SELECT n, 'a', to_jsonb(n) FROM generate_series(2, 6) n"
        )
        status, body = await client.post("/api/events/publish", {"channel": "a", "payload": 1})
        assert (status, "copied" in body["detail"]) == (503, True)
        assert (await client.request("GET", "/api/events/history?channel=a"))[0] == 200


async def test_a_trigger_that_publishes_what_is_copied(
    source: psycopg.Connection, db: psycopg.Connection, launch: Launcher
) -> None:
    """Events with higher ids are delivered before the copying transaction commits, and its event is not overlooked."""
    for conn in (source, db):
        conn.execute("CREATE TABLE public.orders (id integer PRIMARY KEY)")
    db.execute(
        "CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM sse_pg.publish('a', current_setting('session_replication_role'), to_jsonb(NEW.id)); "
        "PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$"
    )
    db.execute("CREATE TRIGGER tell AFTER INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.tell()")
    db.execute("ALTER TABLE public.orders ENABLE ALWAYS TRIGGER tell")
    _subscribe(source, db, "TABLE public.orders")
    server = await launch()
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND NOT granted"
    async with Client(server.url) as client, client.stream("a") as stream:
        db.execute("SELECT pg_advisory_lock(1)")
        source.execute("INSERT INTO public.orders VALUES (7)")
        wait_for(lambda: db.execute(waiting).fetchone() == (1,), "the trigger")
        await client.publish("a", 8)
        assert (await stream.event()).json() == 8
        db.execute("SELECT pg_advisory_unlock(1)")
        copied = await stream.event()
        assert (copied.event, copied.json()) == ("replica", 7)
    _unsubscribe(source, db)
