"""GET /api/events/stats."""

from __future__ import annotations

import secrets
import time

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from sse_pg.api import overview
from sse_pg.api.overview import MAX_CONSUMER_CHANNELS, MAX_COUNTED_EVENTS, MAX_ROWS
from sse_pg.api.stats import MAX_CHANNELS


async def test_an_empty_bus(client: Client) -> None:
    status, body = await client.get("/api/events/stats")
    assert status == 200
    assert body["log"]["newestId"] == 0
    assert body["log"]["oldestId"] is None
    assert body["channels"] == []
    (server,) = body["servers"]
    assert (server["id"], server["lag"], server["bell"]) == (body["server"]["id"], 0, "asleep")


async def test_what_was_published_is_counted(client: Client) -> None:
    async with client.stream(channels="a,b") as stream:
        for channel in ("a", "a", "b", "elsewhere"):
            last = await client.publish(channel, {}, "PLACED")
        await stream.events(3)
        await client.get("/api/events/history?channel=elsewhere")
        status, body = await client.get("/api/events/stats?seconds=300")
    assert status == 200
    assert body["totals"] == {"events": 4, "deliveries": 3}
    assert sum(second["events"] for second in body["recent"]) == 4
    assert all(second["delayP50Ms"] <= second["delayP99Ms"] for second in body["recent"])
    assert [(c["channel"], c["events"], c["last"]["eventType"]) for c in body["channels"]] == [
        ("elsewhere", 1, "PLACED"),
        ("b", 1, "PLACED"),
        ("a", 2, "PLACED"),
    ]
    assert body["channels"][0]["last"]["id"] == last
    assert body["servers"][0]["activeConnections"] == 1
    assert (await client.get("/api/events/stats?seconds=0"))[1]["recent"] == []
    assert (await client.get("/api/events/stats?seconds=301"))[0] == 422


async def test_the_size_of_the_log_and_its_oldest_event(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch(maintenance=0.05)
    async with Client(server.url) as client:
        await eventually(lambda: server.bus.maintenance.log_size.bytes)
        empty = (await client.get("/api/events/stats"))[1]["log"]
        assert empty["oldestAt"] is None
        assert server.bus.maintenance.log_size.age_s(time.monotonic()) == 0
        first = await client.post("/api/events/publish", {"channel": "a", "payload": 0})
        for _ in range(20):
            await client.publish("a", "".join(secrets.token_hex(1000) for _ in range(20)))
        await eventually(lambda: server.bus.maintenance.log_size.bytes > empty["bytes"] + 400_000)
        log = (await client.get("/api/events/stats"))[1]["log"]
        assert log["oldestAt"] == first[1]["createdAt"]
        db.execute("DELETE FROM sse_pg.events WHERE id = 1")
        db.execute("UPDATE sse_pg.events SET created_at = now() - interval '1 hour' WHERE id = 2")
        await eventually(lambda: server.bus.maintenance.log_size.age_s(time.monotonic()) > 3599)


async def test_publishers_in_flight_and_open_gaps(launch: Launcher, database_url: str, db: psycopg.Connection) -> None:
    server = await launch(order_wait=0.0)
    with psycopg.connect(database_url) as open_transaction:
        open_transaction.execute("SELECT sse_pg.publish('a', 'LATE', '1')")
        db.execute("SELECT sse_pg.publish('a', 'SOON', '2')")
        await eventually(lambda: server.bus.hub.position.high == 2)
        async with Client(server.url) as client:
            _, body = await client.get("/api/events/stats")
            assert (body["publishersInFlight"], body["openGaps"]) == (1, 1)
            assert (body["log"]["oldestId"], body["log"]["newestId"]) == (2, 2)
            assert body["server"]["position"] == "2~1"


async def test_every_server_shows_its_position(launch: Launcher, db: psycopg.Connection) -> None:
    first, second = await launch(), await launch()
    db.execute("SELECT sse_pg.publish('a', 'T', '1')")
    async with Client(first.url) as client:
        while True:
            _, body = await client.get("/api/events/stats")
            if [server["position"] for server in body["servers"]] == [1, 1]:
                break
    assert {server["id"] for server in body["servers"]} == {
        first.bus.registry.server_id,
        second.bus.registry.server_id,
    }


async def test_channels_are_bounded(client: Client) -> None:
    events = [{"channel": f"c{number}", "payload": number} for number in range(MAX_CHANNELS + 5)]
    status, _ = await client.post("/api/events/publish", events)
    assert status == 201
    async with client.stream(channels="c0", lastEventId="0") as stream:
        await stream.event()
    _, body = await client.get("/api/events/stats")
    assert len(body["channels"]) == MAX_CHANNELS


async def test_tables_consumers_and_kept_channels(
    client: Client, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "MIN_REUSE_S", 0.0)
    monkeypatch.setattr(overview, "REUSE_FACTOR", 0.0)
    _, body = await client.get("/api/events/stats")
    assert (body["tables"], body["consumers"], body["keptChannels"]) == ([], [], [])
    db.execute("CREATE TABLE orders (id int PRIMARY KEY, state text)")
    db.execute("CREATE TABLE bills (id int PRIMARY KEY)")
    db.execute("SELECT sse_pg.publish_changes('orders', 'orders.{id}', operations => '{INSERT,DELETE}')")
    db.execute("SELECT sse_pg.publish_changes('bills', 'bills')")
    db.execute("ALTER TABLE bills DISABLE TRIGGER sse_pg_insert")
    db.execute("INSERT INTO orders SELECT 7, 'new'")
    db.execute("SELECT FROM sse_pg.consume('mail', '{orders.7,b}')")
    db.execute("SELECT FROM sse_pg.consume('index', '{b}')")
    for number in range(3):
        db.execute("SELECT sse_pg.publish('b', 'T', %s)", [str(number)])
    db.execute("SELECT FROM sse_pg.consume('mail', '{orders.7,b}', 1)")
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload, created_at) VALUES ('old', '1', now() - interval '3 hours')"
    )
    db.execute("SELECT sse_pg.keep('old', '90 minutes')")
    _, body = await client.get("/api/events/stats")
    bad, good = body["tables"]
    assert (bad["table"], bad["channel"]) == ("public.bills", "bills")
    assert "trigger is missing or disabled" in bad["problem"]
    assert good == {
        "table": "public.orders",
        "channel": "orders.{id}",
        "operations": ["DELETE", "INSERT"],
        "owner": "postgres",
        "problem": None,
    }
    lags = [(c["name"], c["channels"], c["channelCount"], c["lag"]) for c in body["consumers"]]
    assert lags == [("index", ["b"], 1, 3), ("mail", ["b", "orders.7"], 2, 2)]
    assert all(consumer["oldestAt"] <= body["time"] for consumer in body["consumers"])
    (kept,) = body["keptChannels"]
    assert (kept["channel"], kept["keepHours"], kept["expiredTo"]) == ("old", 1.5, 0)
    assert kept["lateSeconds"] >= 5400


async def test_the_overview_is_bounded(client: Client, db: psycopg.Connection) -> None:
    channels = [f"c{number:02}" for number in range(MAX_CONSUMER_CHANNELS + 5)]
    db.execute("SELECT FROM sse_pg.consume('behind', %s)", [channels])
    db.execute(
        "INSERT INTO sse_pg.events (channel, payload) SELECT 'c03', '1' FROM generate_series(1, %s)",
        [MAX_COUNTED_EVENTS + 5],
    )
    for number in range(MAX_ROWS + 5):
        db.execute("SELECT FROM sse_pg.consume(%s, '{c03}')", [f"ahead{number:02}"])
        db.execute("SELECT sse_pg.keep(%s, '1 hour')", [f"kept{number:02}"])
        db.execute(f"CREATE TABLE t{number} (id int)")  # type: ignore[arg-type]
        db.execute("SELECT sse_pg.publish_changes(%s, 'a')", [f"t{number}"])
    _, body = await client.get("/api/events/stats")
    assert [len(body[part]) for part in ("tables", "consumers", "keptChannels")] == [MAX_ROWS] * 3
    first = body["consumers"][0]
    assert (first["name"], first["lag"], first["channelCount"]) == ("behind", MAX_COUNTED_EVENTS, len(channels))
    assert first["channels"] == channels[:MAX_CONSUMER_CHANNELS]


@pytest.mark.parametrize(("least_s", "factor"), [(3600.0, 0.0), (0.0, 1e9)])
async def test_the_overview_is_reused_the_longer_the_more_it_costs(
    client: Client, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, least_s: float, factor: float
) -> None:
    monkeypatch.setattr(overview, "MIN_REUSE_S", least_s)
    monkeypatch.setattr(overview, "REUSE_FACTOR", factor)
    _, before = await client.get("/api/events/stats")
    db.execute("SELECT FROM sse_pg.consume('mail', '{a}')")
    _, after = await client.get("/api/events/stats")
    assert before["consumers"] == after["consumers"] == []
