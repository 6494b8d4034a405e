"""The list of open streams, and disconnecting a user on all servers, over HTTP and in SQL."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from support.client import Client
from support.server import Launcher
from support.tokens import SECRET, bearer, token
from support.waiting import eventually

from sse_pg.delivery.end_reason import EndReason

STREAMS = "/api/events/streams"


async def test_the_list_says_who_and_what(launch: Launcher) -> None:
    one, two = await launch(server_name="one"), await launch(server_name="two")
    async with Client(one.url) as client, Client(two.url) as other:
        await client.post("/api/events/channels/subscribe", {"userId": "42", "channel": "b"})
        async with client.stream("a"), client.stream(userId="42"), other.stream("c"):
            await eventually(lambda: len(one.bus.hub.streams) == 2 and two.bus.hub.streams)
            status, body = await client.get(STREAMS)
            assert (status, body["count"]) == (200, 2)
            assert (body["server"]["name"], [each["name"] for each in body["otherServers"]]) == ("one", ["two"])
            anonymous, user = body["streams"]
            assert (anonymous["userId"], anonymous["channels"], anonymous["followsSubscriptions"]) == (
                None,
                ["a"],
                False,
            )
            assert (user["userId"], user["channels"], user["followsSubscriptions"]) == ("42", ["b"], True)
            assert user["address"] == "127.0.0.1"
            assert (user["unreadBytes"], user["sentBytes"] > 0) == (0, True)
            assert (await client.get(f"{STREAMS}?userId=42"))[1]["streams"] == [user]
            status, body = await client.get(f"{STREAMS}?limit=1")
            assert (body["count"], len(body["streams"])) == (2, 1)
        for wrong in ("limit=0", "limit=1001", "limit=x"):
            assert (await client.get(f"{STREAMS}?{wrong}"))[0] == 422


async def test_those_who_do_not_read_come_first(launch: Launcher) -> None:
    server = await launch(compression="off")
    async with Client(server.url) as client, client.stream("quiet"), client.stream("busy") as slow:
        await eventually(lambda: len(server.bus.hub.streams) == 2)
        (busy,) = (each for each in server.bus.hub.streams if "busy" in each.channels)
        assert slow
        while not busy.unread:
            await client.publish("busy", "x" * 100_000)
        first, last = (await client.get(STREAMS))[1]["streams"]
        assert (first["channels"], first["unreadBytes"] > 0) == (["busy"], True)
        assert (last["channels"], last["unreadBytes"]) == (["quiet"], 0)


@pytest.mark.parametrize("how", ["http", "sql"])
async def test_a_user_is_disconnected_on_all_servers_and_comes_back(
    launch: Launcher, db: psycopg.Connection, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    servers = [await launch(token_secret=SECRET) for _ in range(2)]
    rights: dict[str, Any] = {"publish": ["*"], "subscribe": ["*"]}
    ada, bob = (bearer(token(name, **rights)) for name in ("ada", "bob"))
    async with (
        Client(servers[0].url, ada) as one,
        Client(servers[1].url, ada) as two,
        Client(servers[1].url, bob) as his,
    ):
        async with one.stream("a") as first, two.stream("a") as second, his.stream("a") as third:
            if how == "http":
                assert await one.delete(f"{STREAMS}?userId=ada") == (202, {"userId": "ada", "disconnected": True})
            else:
                db.execute("SELECT sse_pg.disconnect('ada')")
            await first.ended()
            await second.ended()
            number = await one.publish("a", "later")
            assert (await third.event()).id == str(number)
        assert [server.bus.hub.closed[EndReason.REVOKED] for server in servers] == [1, 1]
        assert "user 'ada' is disconnected: 1 streams end" in caplog.text
        async with one.stream("a", last_event_id="0") as again:
            assert (await again.event()).id == str(number)


async def test_a_message_that_is_sent_again_or_made_up_ends_nothing(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    async with Client(server.url) as client:
        async with client.stream(userId="ada") as stream:
            db.execute("SELECT sse_pg.disconnect('ada')")
            await stream.ended()
        ((message,),) = db.execute("SELECT message FROM sse_pg.notifications").fetchall()
        what, user, number, signature = str(message).split(" ")
        async with client.stream(userId="ada") as stream:
            forged = f"{what} {user} {number} {signature[::-1]}"
            for text in (message, forged, f"{what} {user}", f"{what} {user} {number} {signature} x", what):
                db.execute("SELECT pg_notify('sse_pg_control', %s)", [text])
            db.execute("SELECT sse_pg.subscribe('ada', 'a')")  # heard after those
            await eventually(lambda: any("a" in each.channels for each in server.bus.hub.streams))
            await asyncio.sleep(0)
            number_of_event = await client.publish("a", 1)
            assert (await stream.event()).id == str(number_of_event)


async def test_who_may(launch: Launcher) -> None:
    server = await launch(token_secret=SECRET)
    for name, rights, may_list, may_end in (
        ("ada", {}, 403, 202),
        ("bob", {}, 403, 403),
        ("bob", {"observe": True}, 200, 403),
        ("bob", {"actFor": ["a*"]}, 403, 202),
    ):
        async with Client(server.url, bearer(token(name, subscribe=["*"], **rights))) as client:  # type: ignore[arg-type]
            assert (await client.get(STREAMS))[0] == may_list, (name, rights)
            assert (await client.delete(f"{STREAMS}?userId=ada"))[0] == may_end, (name, rights)
            assert (await client.delete(STREAMS))[0] == 422
    async with Client(server.url) as client:
        assert (await client.get(STREAMS))[0] == 401
        assert (await client.delete(f"{STREAMS}?userId=ada"))[0] == 401
