"""A server that nobody needs: it hardly asks the database, and lets go of it altogether if it is set to."""

from __future__ import annotations

import asyncio
import logging

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.client import Client
from support.database_proxy import Proxy
from support.locks import advisory_locks
from support.server import Launcher, Server
from support.waiting import eventually

from sse_pg import bus as bus_module
from sse_pg.db.pool import Pool
from sse_pg.db.queries import query
from sse_pg.delivery.listening_tail import Pause

#: A rest begins soon. On a busy machine it begins before the test's next request, or before the server has maintained.
SOON_S = 0.2


def connections(db: psycopg.Connection) -> int:
    """Count what any server has open to this database."""
    ((count,),) = db.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'sse-pg%'"
    ).fetchall()
    return int(count)


def last_statement(db: psycopg.Connection) -> str:
    """Return what the LISTEN connection asked last."""
    ((text,),) = db.execute(
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sse-pg tail'"
    ).fetchall()
    return str(text)


def publish(db: psycopg.Connection, *payloads: int) -> None:
    for payload in payloads:
        db.execute("SELECT sse_pg.publish('a', 'message', to_jsonb(%s))", (payload,))


def publish_silently(db: psycopg.Connection, payload: int) -> None:
    with db.transaction():
        db.execute("SET LOCAL sse_pg.bell = 'off'")
        publish(db, payload)


async def quiet(server: Server, high: int) -> None:
    """Wait until a server has read everything up to an id, and asks the database rarely."""
    await eventually(lambda: server.bus.hub.position.high == high and server.bus.tail._pause is Pause.QUIET)


async def at_rest(server: Server, db: psycopg.Connection) -> None:
    await eventually(lambda: server.bus.demand.is_away)
    await eventually(lambda: not connections(db))


async def metrics(client: Client) -> str:
    async with client.session.get(f"{client.url}/metrics") as response:
        return await response.text()


# ------------------------------------------------------------ quiet


async def test_without_streams_the_tail_asks_one_question_at_a_time(launch: Launcher, db: psycopg.Connection) -> None:
    look = query("look").decode().strip()
    server = await launch(safety_read=0.01)
    async with Client(server.url) as client:
        await client.publish("a", 1)
        await eventually(lambda: last_statement(db).strip() == look)
        reads = server.bus.tail.meter.reads
        looks = server.bus.tail.meter.safety_reads[False]
        await eventually(lambda: server.bus.tail.meter.safety_reads[False] >= looks + 2)
        assert server.bus.tail.meter.reads == reads
        async with client.stream("a"):
            await eventually(lambda: server.bus.tail.meter.reads >= reads + 10)
        await eventually(lambda: last_statement(db).strip() == look)


async def test_the_first_stream_finds_what_had_no_bell(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(safety_read=5.0, heartbeat=3600.0)  # a heartbeat would prolong the wait for the event
    async with Client(server.url) as client:
        publish(db, 1)
        await quiet(server, 1)
        publish_silently(db, 2)
        assert server.bus.hub.position.high == 1
        async with client.stream("a", last_event_id="0") as stream:
            assert [event.json() for event in await stream.events(2)] == [1, 2]


async def test_a_look_finds_what_had_no_bell(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(safety_read=0.01)
    publish(db, 1)
    await quiet(server, 1)
    publish_silently(db, 2)
    await eventually(lambda: server.bus.hub.position.high == 2)
    assert server.bus.tail.meter.safety_reads[True] == 1


async def test_what_was_drawn_before_the_look_and_is_committed_after_it_is_found(
    launch: Launcher, db: psycopg.Connection, database_url: str
) -> None:
    server = await launch(safety_read=0.01)
    with psycopg.connect(database_url) as other:
        other.execute("SET LOCAL sse_pg.bell = 'off'")
        publish(other, 1)  # the id is drawn; no look at the sequence shows the commit
        publish(db, 2)
        await eventually(lambda: server.bus.hub.position.high == 2)
        other.commit()
    await eventually(lambda: not server.bus.hub.position.gaps)
    publish(db, 3)
    await eventually(lambda: server.bus.hub.position.high == 3)
    with psycopg.connect(database_url) as other:
        other.execute("SET LOCAL sse_pg.bell = 'off'")
        publish(other, 4)  # the last id of all
        reads = server.bus.tail.meter.reads
        await eventually(lambda: server.bus.tail.meter.reads > reads + 3)  # in flight: it goes on reading
        other.commit()
    await eventually(lambda: server.bus.hub.position.high == 4)


async def test_readyz_does_not_ask_a_database_that_nobody_needs(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool has no count for one request: maintenance and the server registry use it meanwhile."""
    server = await launch()
    ping = server.bus.read_store.ping
    pings = 0

    async def counted() -> None:
        nonlocal pings
        pings += 1
        await ping()

    monkeypatch.setattr(server.bus.read_store, "ping", counted)
    async with Client(server.url) as client:
        await client.publish("a", 1)
        assert await client.get("/readyz") == (200, {"status": "ready"})
        assert pings == 1
        monkeypatch.setattr(bus_module, "QUIET_AFTER_S", 0.0)
        assert await client.get("/readyz") == (200, {"status": "ready"})
        assert pings == 1


async def test_maintenance_leaves_out_rounds_that_have_nothing_to_do(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(maintenance=0.05)
    done = server.bus.maintenance.rounds
    await eventually(lambda: done["done"] >= 2)
    await eventually(lambda: server.bus.maintenance._has_nothing_to_do)
    publish(db, 1)
    await eventually(lambda: not server.bus.maintenance._has_nothing_to_do)
    rounds = done["done"]
    await eventually(lambda: done["done"] > rounds)


# ------------------------------------------------------------ at rest


async def test_a_server_that_nobody_needs_has_no_connection(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=SOON_S, server_name="one")
    async with Client(server.url) as client:
        await at_rest(server, db)
        assert db.execute("SELECT count(*) FROM sse_pg.servers").fetchone() == (0,)
        assert advisory_locks(db) == 0
        for _ in range(3):
            assert await client.get("/healthz") == (200, {"status": "ok"})
            assert await client.get("/readyz") == (200, {"status": "at rest"})
            text = await metrics(client)
            assert "sse_pg_at_rest 1.0" in text
            assert "sse_pg_ready 1.0" in text
            assert "sse_pg_tail_read_age_seconds " not in text.replace("# ", "")
        assert connections(db) == 0
        assert server.bus.demand.is_away

        number = await client.publish("a", "first")
        async with client.stream("a"):  # or the next rest may begin
            assert "sse_pg_at_rest 0.0" in await metrics(client)
            assert await client.get("/readyz") == (200, {"status": "ready"})
        status, page = await client.get("/api/events/history?channel=a")
        assert (status, [event["id"] for event in page["events"]]) == (200, [number])
        await at_rest(server, db)
        status, body = await client.get("/api/events/active-connections")
        assert (status, [each["name"] for each in body["servers"]]) == (200, ["one"])


async def test_a_stream_that_comes_after_a_rest_gets_everything(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=SOON_S)
    async with Client(server.url) as client:
        async with client.stream("a") as stream:
            publish(db, 1)
            assert (await stream.event()).json() == 1
        await at_rest(server, db)
        publish(db, 2, 3)
        async with client.stream("a", last_event_id=stream.last_id) as stream:
            assert [event.json() for event in await stream.events(2)] == [2, 3]
            publish(db, 4)
            assert (await stream.event()).json() == 4
        await at_rest(server, db)
        publish(db, 5)
        async with client.stream("a") as stream:
            publish(db, 6)
            assert (await stream.event()).json() == 6


async def test_what_came_at_rest_is_not_read_through(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=SOON_S)
    publish(db, 1)
    await at_rest(server, db)
    read = server.bus.hub.meter.events
    with db.cursor().copy("COPY sse_pg.events (channel, payload) FROM STDIN") as copy:
        for number in range(5000):
            copy.write_row(("a", str(number)))
    async with Client(server.url) as client, client.stream("a") as stream:
        assert len(server.bus.hub.ring) == 0
        publish(db, -1)
        assert (await stream.event()).json() == -1
        assert server.bus.hub.meter.events == read + 1


async def test_a_transaction_that_began_at_rest_is_not_lost(
    launch: Launcher, db: psycopg.Connection, database_url: str
) -> None:
    server = await launch(let_go_after=SOON_S)
    await at_rest(server, db)
    with psycopg.connect(database_url) as other:
        publish(other, 1)
        publish(db, 2)
        async with Client(server.url) as client, client.stream("a", last_event_id="0") as stream:
            assert (await stream.event()).json() == 2
            other.commit()
            assert (await stream.event()).json() == 1


async def test_an_open_stream_keeps_the_database(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=SOON_S, safety_read=0.01)
    async with Client(server.url) as client, client.stream("a") as stream:
        reads = server.bus.tail.meter.reads
        await eventually(lambda: server.bus.tail.meter.reads > reads + 50)
        assert server.bus.demand.idle_s == 0.0
        publish_silently(db, 1)
        assert (await stream.event()).json() == 1
        assert server.bus.tail.meter.connections == 1


async def test_an_epoch_that_began_at_rest_is_noticed(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=SOON_S)
    async with Client(server.url) as client:
        publish(db, 1)
        with server.bus.demand.hold():
            await eventually(lambda: server.bus.hub.position.high == 1)
        await at_rest(server, db)
        publish(db, 2, 3)  # no server has noted these, so the new epoch cannot be certain of them
        db.execute("SELECT sse_pg.begin_epoch()")
        publish(db, 4)
        async with client.stream("a", last_event_id="3") as stream:
            gap = await stream.event()
            assert (gap.event, gap.json()["reason"]) == ("sse-pg.gap", "unknown")
            assert [event.json() for event in await stream.events(3)] == [2, 3, 4]


async def test_what_was_purged_at_rest_is_announced(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=SOON_S, partition_size=1, keep_events=0)
    async with Client(server.url) as client:
        with server.bus.demand.hold():
            await eventually(lambda: server.bus.maintenance.made)
            publish(db, 1, 2)
            await eventually(lambda: server.bus.hub.position.high == 2)
        await at_rest(server, db)
        publish(db, 3)
        db.execute("SELECT sse_pg.purge(1, NULL, NULL)")
        db.execute("SELECT sse_pg.purge(1, NULL, NULL)")
        async with client.stream("a", last_event_id="1") as stream:
            gap = await stream.event()
            assert (gap.event, gap.json()["reason"]) == ("sse-pg.gap", "expired")
            assert (await stream.event()).json() == 3


async def test_maintenance_that_was_due_at_rest_is_done_upon_return(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=SOON_S, maintenance=0.05)
    await at_rest(server, db)
    rounds = server.bus.maintenance.rounds["done"]
    db.execute("DELETE FROM sse_pg.idempotency_keys")
    async with Client(server.url) as client:
        await client.publish("a", 1)
    await eventually(lambda: server.bus.maintenance.rounds["done"] > rounds)
    assert server.bus.maintenance.rounds["failed"] == 0


async def test_each_server_rests_by_itself(launch: Launcher, db: psycopg.Connection) -> None:
    one = await launch(let_go_after=SOON_S, server_name="one")
    two = await launch(server_name="two")
    async with Client(two.url) as client, client.stream("a") as stream:
        await eventually(lambda: one.bus.demand.is_away)
        await eventually(lambda: db.execute("SELECT count(*) FROM sse_pg.servers").fetchone() == (1,))
        publish(db, 1)
        assert (await stream.event()).json() == 1
        _, body = await client.get("/api/events/active-connections")
        assert [(each["name"], each["activeConnections"]) for each in body["servers"]] == [("two", 1)]


async def test_a_database_that_does_not_come_back_at_once(
    launch: Launcher, database_url: str, db: psycopg.Connection
) -> None:
    server = await launch(let_go_after=SOON_S, pool_timeout=3.0)
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    async with Client(server.url) as client:
        await at_rest(server, db)
        with psycopg.connect(database_url, dbname="postgres", autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
            status, _, response = await client.request(
                "POST", "/api/events/publish", json={"channel": "a", "payload": 1}
            )
            assert status == 503
            assert response.headers["Retry-After"]
            await eventually(lambda: server.bus.demand.is_away)  # nobody needs it, so it is left alone again
            admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
        await client.publish("a", 2)
        async with client.stream("a", last_event_id="0") as stream:
            assert (await stream.event()).json() == 2


async def test_no_stream_opens_before_the_log_is_followed(
    launch: Launcher, database_url: str, db: psycopg.Connection
) -> None:
    target = conninfo_to_dict(database_url)
    proxy = Proxy(f"{target['host']}/.s.PGSQL.{target.get('port', 5432)}")
    url = make_conninfo(database_url, host="127.0.0.1", port=await proxy.start())
    server = await launch(let_go_after=SOON_S, pool_timeout=2.0, database_url=url)
    async with Client(server.url) as client:
        await client.publish("a", 1)
        await at_rest(server, db)
        publish(db, 2)
        proxy.hang()  # the database accepts the connection, and takes longer than a client waits
        status, body = await client.get("/api/events/stream?channels=a")
        assert (status, "comes back" in body["detail"]) == (503, True)
        status, body = await client.get("/api/events/history?channel=a")
        assert (status, "after a rest" in body["detail"]) == (503, True)
        assert await client.get("/readyz") == (200, {"status": "at rest"})
        proxy.resume()
        await eventually(lambda: not server.bus.demand.is_away)
        async with client.stream("a", last_event_id="1") as stream:
            assert (await stream.event()).json() == 2
    await server.stop()
    await proxy.close()


async def test_many_requests_wake_it_together(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=SOON_S)
    async with Client(server.url) as client:
        await at_rest(server, db)
        numbers = await asyncio.gather(*(client.publish("a", n) for n in range(50)))
        assert len(set(numbers)) == 50
        async with client.stream("a", last_event_id="0") as stream:
            assert sorted(event.json() for event in await stream.events(50)) == list(range(50))
        assert server.bus.tail.meter.connections == 2
        await at_rest(server, db)
        stats = server.bus.pool.get_stats()
        assert (stats["pool_size"], stats["pool_available"]) == (0, 0)


async def test_a_server_at_rest_stops(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=SOON_S)
    await at_rest(server, db)
    await server.stop()
    assert connections(db) == 0


async def test_a_connection_that_is_being_made_does_not_survive_the_rest(
    launch: Launcher, db: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    server = await launch(let_go_after=SOON_S)
    await at_rest(server, db)
    with caplog.at_level(logging.WARNING, "psycopg.pool"):
        await server.bus.pool.resize(1)  # as if the attempt had begun earlier
        await eventually(lambda: "has let go" in caplog.text)
    await eventually(lambda: connections(db) == 0)
    assert server.bus.pool.get_stats()["pool_available"] == 0


async def test_rules_are_asked_anew_after_a_rest(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(let_go_after=SOON_S)
    async with Client(server.url) as client:
        await client.publish("a", 1)
        assert server.bus.authorizer.asks_nobody
        await at_rest(server, db)
        assert not server.bus.authorizer.asks_nobody
        db.execute(
            "CREATE OR REPLACE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean"
            " LANGUAGE sql AS 'SELECT false'"
        )
        status, _ = await client.post("/api/events/publish", {"channel": "a", "payload": 2})
        assert status == 403


async def test_a_rest_that_fails_is_tried_again(
    launch: Launcher, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, failed = Pool.let_go, asyncio.Event()

    async def broken(pool: Pool) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("broken")
        await let_go(pool)

    monkeypatch.setattr(Pool, "let_go", broken)
    server = await launch(let_go_after=SOON_S)
    await failed.wait()
    await at_rest(server, db)
    async with Client(server.url) as client:
        await client.publish("a", 1)
