"""A server that polls through a real PgBouncer in transaction mode, without any connection that listens."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from support.client import Client
from support.locks import advisory_locks
from support.pgbouncer import Pooler, needs_pgbouncer
from support.server import Launcher, Server
from support.waiting import eventually

from sse_pg.db import pooled_session
from sse_pg.db.hosts import Hosts
from sse_pg.db.pooled_session import Heard, TailConnection
from sse_pg.errors import BusUnavailable

pytestmark = needs_pgbouncer


@pytest.fixture
def pooled_url(pooler: Pooler) -> str:
    """The way to the database through a PgBouncer that takes its backends in turn."""
    return pooler("transaction", min_pool_size="3", server_round_robin="1")


async def polling(launch: Launcher, url: str, **options: Any) -> Server:
    """Start a server. Its maintenance holds locks that the statements of these tests would wait for, in one thread."""
    server = await launch(database_url=url, listen_database_url="none", maintenance=3600.0, **options)
    await eventually(lambda: server.bus.maintenance.rounds.total() == 1)
    return server


def publish(db: psycopg.Connection, payload: int, channel: str = "a") -> int:
    ((number,),) = db.execute("SELECT sse_pg.publish(%s, 'message', to_jsonb(%s))", (channel, payload)).fetchall()
    return int(number)


async def test_events_arrive_in_whatever_order_they_commit(
    pooled_url: str, launch: Launcher, db: psycopg.Connection, database_url: str
) -> None:
    server = await polling(launch, pooled_url, order_wait=0.005)
    async with Client(server.url) as client, client.stream("a") as stream:
        with psycopg.connect(database_url) as other:
            late = publish(other, 1)  # commits after the next one, which does not wait for it
            first = publish(db, 2)
            event = await stream.event()
            assert (event.json(), event.id) == (2, f"{first}~1")
            other.commit()
        event = await stream.event()
        assert (event.json(), event.number) == (1, late)
        assert await client.publish("a", 3) == first + 1
        assert (await stream.event()).json() == 3
        assert (await client.get("/readyz"))[0] == 200
        status, body = await client.get("/api/events/stats")
        assert (status, [each["bell"] for each in body["servers"]]) == (200, ["polling"])
        status, body = await client.get("/api/events/active-connections")
        assert (status, body["activeConnections"]) == (200, 1)
    # What is settled is noted, for position().
    await eventually(lambda: db.execute("SELECT settled_to FROM sse_pg.log").fetchall() == [(first + 1,)])
    # Nothing of ours stays on the backends that others are given.
    assert advisory_locks(db) == 0
    assert db.execute("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'").fetchone() == (0,)
    with psycopg.connect(pooled_url, autocommit=True, prepare_threshold=None) as conn:
        assert {conn.execute("SHOW row_security").fetchone() for _ in range(9)} == {("on",)}
        assert {conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() for _ in range(9)} == {(0,)}
    await server.stop()
    assert db.execute("SELECT count(*) FROM sse_pg.servers").fetchone() == (0,)


async def test_a_large_transaction(pooled_url: str, launch: Launcher, db: psycopg.Connection) -> None:
    server = await polling(launch, pooled_url)
    async with Client(server.url) as client, client.stream("a") as stream:
        db.execute(
            "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(n) FROM generate_series(1, 5000) n"
        )
        assert [event.json() for event in await stream.events(5000)] == list(range(1, 5001))


async def test_a_database_that_is_serializable_by_default(
    pooler: Pooler, launch: Launcher, db: psycopg.Connection
) -> None:
    """The order of the reads needs READ COMMITTED."""
    (name,) = db.execute("SELECT current_database()").fetchone() or ("",)
    db.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")  # type: ignore[arg-type]
    server = await polling(launch, pooler("transaction"))
    async with Client(server.url) as client, client.stream("a") as stream:
        for number in range(20):
            await client.publish("a", number)
            status, history = await client.get(f"/api/events/history?channel=a&after={number}")
            assert (status, [event["payload"] for event in history["events"]]) == (200, [number])
        assert [event.json() for event in await stream.events(20)] == list(range(20))


async def test_streams_follow_subscriptions(pooled_url: str, launch: Launcher, db: psycopg.Connection) -> None:
    server = await polling(launch, pooled_url)
    async with Client(server.url) as client, client.stream(userId="ada") as stream:
        for round_ in range(5):
            with db.transaction():
                db.execute("SELECT sse_pg.subscribe('ada', 'a')")
            publish(db, round_)
            assert (await stream.event()).json() == round_
            db.execute("SELECT sse_pg.unsubscribe('ada', 'a')")
            await eventually(lambda: not any(stream.channels for stream in server.bus.hub.streams))
            missed = publish(db, -1)
            await eventually(lambda missed=missed: server.bus.hub.position.high >= missed)
        await client.post("/api/events/channels/subscribe", {"userId": "ada", "channel": "b"})
        publish(db, 99, "b")
        assert (await stream.event()).json() == 99


RULE = """
    CREATE TABLE readers (name text);
    INSERT INTO readers VALUES ('ada');
    CREATE OR REPLACE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean
    LANGUAGE sql STABLE AS $$ SELECT EXISTS (SELECT FROM public.readers r WHERE r.name = user_id) $$;
"""


async def test_no_event_after_a_revocation(pooled_url: str, launch: Launcher, db: psycopg.Connection) -> None:
    """The events may be read while the revocation is committed, in every order."""
    db.execute(RULE)
    db.execute("SELECT sse_pg.subscribe('ada', 'a')")
    server = await polling(launch, pooled_url, poll=0.001)
    async with Client(server.url) as client:
        for _ in range(20):
            async with client.stream("a", userId="ada") as stream:
                publish(db, 1)
                assert (await stream.event()).json() == 1
                with db.transaction():
                    db.execute("DELETE FROM readers")
                    db.execute("SELECT sse_pg.revoke('ada')")
                publish(db, 2)
                await stream.ended()
            db.execute("INSERT INTO readers VALUES ('ada')")
            db.execute("SELECT sse_pg.revoke('ada')")
            await server.bus.tail.fresh()  # the refusal is forgotten


async def test_what_is_erased_leaves_the_memory(pooled_url: str, launch: Launcher, db: psycopg.Connection) -> None:
    server = await polling(launch, pooled_url)
    async with Client(server.url) as client, client.stream("a") as stream:
        publish(db, 1)
        assert (await stream.event()).json() == 1
        assert len(server.bus.hub.ring) == 1
        db.execute("SELECT sse_pg.erase('a')")
        await eventually(lambda: server.bus.erasures.erased == 1)
        assert len(server.bus.hub.ring) == 0


async def test_an_epoch_begins(pooled_url: str, launch: Launcher, db: psycopg.Connection) -> None:
    server = await polling(launch, pooled_url)
    async with Client(server.url) as client, client.stream("a") as stream:
        publish(db, 1)
        assert (await stream.event()).json() == 1
        with db.transaction():
            db.execute("SELECT sse_pg.begin_epoch()")
            publish(db, 2)
        assert (await stream.event()).json() == 2
        assert len(server.bus.hub.epochs) == 1


async def test_everything_is_asked_again_after_more_messages_than_one_read_has(
    pooled_url: str, launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled_session, "MAX_MESSAGES", 3)
    server = await polling(launch, pooled_url)
    async with Client(server.url) as client, client.stream(userId="ada") as stream:
        with db.transaction():
            for number in range(10):
                db.execute("SELECT sse_pg.subscribe(%s, 'a')", [f"user {number}"])
            db.execute("SELECT sse_pg.subscribe('ada', 'a')")
        publish(db, 1)
        assert (await stream.event()).json() == 1


async def test_what_was_deleted_before_it_was_read_is_announced(
    pooled_url: str, launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that polls may be taken for dead; then its unread events are not spared."""
    server = await polling(launch, pooled_url)
    read = pooled_session.events

    async def read_late(*args: Any, **options: Any) -> Any:
        """As a server that was frozen: the events came and went before it reads."""
        if not done:
            done.append(True)
            publish(db, 1)
            publish(db, 2, "b")
            db.execute("UPDATE sse_pg.servers SET alive_until = now()")
            db.execute("UPDATE sse_pg.events SET created_at = now() - interval '1 hour'")
            db.execute("SELECT sse_pg.keep('a', '1 minute')")
            ((state, deleted),) = db.execute("SELECT state, deleted FROM sse_pg.purge()").fetchall()
            assert (state, deleted) == ("done", 1)
        return await read(*args, **options)

    async with Client(server.url) as client, client.stream("a,b") as stream:
        done: list[bool] = []
        monkeypatch.setattr(pooled_session, "events", read_late)
        server.bus.tail.attend()
        gap = await stream.event()
        assert (gap.event, json.loads(gap.data)["reason"]) == ("sse-pg.gap", "expired")
        assert (await stream.event()).json() == 2


async def test_a_server_that_was_deleted_from_the_registry_comes_back(
    pooled_url: str, launch: Launcher, db: psycopg.Connection
) -> None:
    server = await polling(launch, pooled_url)
    (first,) = db.execute("DELETE FROM sse_pg.servers RETURNING id").fetchone() or (0,)
    alive = "SELECT id FROM sse_pg.live_servers()"
    await eventually(lambda: db.execute(alive).fetchall() == [(server.bus.registry.server_id,)])
    assert server.bus.registry.server_id != first


async def test_another_database_behind_the_pooler(
    pooled_url: str, launch: Launcher, db: psycopg.Connection, template: str, database_url: str
) -> None:
    """Each read is checked: the pooler may lead to another server from one transaction to the next."""
    server = await polling(launch, pooled_url)
    conn = await TailConnection.open(pooled_url, Hosts(pooled_url))
    try:
        conn.log_identity = "another"
        with pytest.raises(psycopg.Error, match="another log"):
            await pooled_session.hear(conn, None)
    finally:
        await conn.close()
    tail: Any = server.bus.tail
    assert tail.meter.connections == 1
    server.bus.pool.log_identity = "another"
    async with Client(server.url) as client:
        status, body = await client.get("/api/events/history?channel=a")
        assert (status, "another log" in body["detail"]) == (503, True)


async def test_a_server_lets_go_of_the_pooler_and_comes_back(
    pooled_url: str, launch: Launcher, db: psycopg.Connection
) -> None:
    server = await polling(launch, pooled_url, let_go_after=0.5)
    await eventually(lambda: server.bus.demand.is_away)
    await eventually(lambda: db.execute("SELECT count(*) FROM sse_pg.servers").fetchone() == (0,))
    publish(db, 1)
    async with Client(server.url) as client, client.stream("a", last_event_id="0") as stream:
        assert (await stream.event()).json() == 1
        publish(db, 2)
        assert (await stream.event()).json() == 2


async def test_without_a_pooler(launch: Launcher, db: psycopg.Connection, database_url: str) -> None:
    server = await polling(launch, database_url)
    async with Client(server.url) as client, client.stream("a") as stream:
        publish(db, 1)
        assert (await stream.event()).json() == 1


async def test_the_first_of_the_servers_that_poll_notes_what_is_settled(
    pooled_url: str, launch: Launcher, db: psycopg.Connection, database_url: str
) -> None:
    servers = [await polling(launch, pooled_url) for _ in range(2)]
    tails: list[Any] = [server.bus.tail for server in servers]
    await eventually(lambda: [tail._is_elected for tail in tails] == [True, False])
    await servers[0].stop()
    await eventually(lambda: tails[1]._is_elected)
    await launch()  # listens, and is elected by its lock
    await eventually(lambda: not tails[1]._is_elected)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (Heard("5:9:", 1000.0, [], False), None),
        (Heard("5:8:", 1000.0, [], False), "another one than before"),
        (Heard("5:9:", 9000.0, [], False), "revocations may have been missed"),
    ],
)
def test_what_may_have_been_missed(now: Heard, reason: str | None) -> None:
    before = Heard("5:9:6,7", 999.0, [], False)
    if reason is None:
        now.follows(before)
    else:
        with pytest.raises(BusUnavailable, match=reason):
            now.follows(before)
