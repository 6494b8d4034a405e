"""GET /api/events/stats."""

from __future__ import annotations

import psycopg
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

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
