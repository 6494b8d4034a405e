"""The list of open streams, and disconnecting a user on all servers, over HTTP and in SQL."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from support.client import SMALL_BUFFER, Client
from support.server import Launcher
from support.tokens import SECRET, bearer, token
from support.waiting import eventually

from sse_pg.db.queries import query
from sse_pg.delivery.end_reason import EndReason

STREAMS = "/api/events/streams"


async def test_the_list_says_who_and_what(launch: Launcher) -> None:
    one, two = await launch(server_name="one"), await launch(server_name="two")
    async with Client(one.url) as client, Client(two.url) as other:
        await client.post("/api/events/channels/subscribe", {"userId": "42", "channel": "b"})
        async with client.stream("a"), client.stream(userId="42"), other.stream("c"):
            await eventually(lambda: len(one.bus.hub.streams) == 2 and two.bus.hub.streams)
            await eventually(lambda: all(stream.live for stream in one.bus.hub.streams))
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
            (found,) = (await client.get(f"{STREAMS}?userId=42"))[1]["streams"]
            assert found | {"since": ""} == user | {"since": ""}, "all but the microseconds"
            status, body = await client.get(f"{STREAMS}?limit=1")
            assert (body["count"], len(body["streams"])) == (2, 1)
        for wrong in ("limit=0", "limit=1001", "limit=x"):
            assert (await client.get(f"{STREAMS}?{wrong}"))[0] == 422


async def test_those_who_do_not_read_come_first(launch: Launcher) -> None:
    server = await launch(compression="off")
    async with (
        Client(server.url, receive_buffer=SMALL_BUFFER) as client,
        client.stream("quiet"),
        client.stream("busy") as slow,
    ):
        await eventually(lambda: len(server.bus.hub.streams) == 2)
        assert slow
        unread = 0
        while not unread:  # the operating system takes the first ones, perhaps a moment later
            await client.publish("busy", "x" * 100_000)
            first, last = (await client.get(STREAMS))[1]["streams"]
            unread = max(first["unreadBytes"], last["unreadBytes"])
        assert (first["channels"], first["unreadBytes"]) == (["busy"], unread)
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


def asked(db: psycopg.Connection, *question: object, patience: str = "60 s") -> list[dict[str, Any]]:
    """Ask all servers, and return what open_streams() shows."""
    marks = ", ".join(["%s"] * len(question))
    ((number,),) = db.execute(f"SELECT sse_pg.ask_for_streams({marks})", question).fetchall()  # type: ignore[arg-type]
    with db.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM sse_pg.open_streams(%s, %s)", [number, patience]).fetchall()


@pytest.mark.parametrize("polls", [False, True])
async def test_all_servers_say_which_streams_they_have(launch: Launcher, db: psycopg.Connection, polls: bool) -> None:
    options: dict[str, Any] = {"listen_database_url": "none"} if polls else {}
    one, two = [await launch(server_name=name, **options) for name in ("one", "two")]
    await launch(server_name="three", **options)
    async with Client(one.url) as client, Client(two.url) as other:
        await other.post("/api/events/channels/subscribe", {"userId": "42", "channel": "c"})
        async with client.stream("a,b"), other.stream(userId="42"):
            await eventually(lambda: one.bus.hub.streams and two.bus.hub.streams)
            await eventually(lambda: all(each.live for server in (one, two) for each in server.bus.hub.streams))
            rows = await asyncio.to_thread(asked, db)
            of = {row["name"]: row for row in rows}
            assert (len(rows), set(of), {row["problem"] for row in rows}) == (3, {"one", "two", "three"}, {None})
            assert [of[name]["streams"] for name in ("one", "two", "three")] == [1, 1, 0]
            assert (of["one"]["user_id"], of["one"]["channels"], of["one"]["channel_count"]) == (None, ["a", "b"], 2)
            assert (of["two"]["user_id"], of["two"]["channels"], of["two"]["address"]) == ("42", ["c"], "127.0.0.1")
            assert (of["two"]["unread_bytes"], of["two"]["sent_bytes"] > 0) == (0, True)
            assert of["three"]["since"] is of["three"]["channels"] is None
            ((at,),) = db.execute("SELECT clock_timestamp()").fetchall()
            assert 0 <= (at - of["one"]["since"]).total_seconds() < 600

            rows = await asyncio.to_thread(asked, db, "42")
            assert {row["name"]: row["streams"] for row in rows} == {"one": 0, "two": 1, "three": 0}

            status, body = await client.get(f"{STREAMS}?servers=all")
            assert (status, body["count"], body["server"]["name"], body["server"]["answered"]) == (200, 2, "one", True)
            assert {each["name"]: each["answered"] for each in body["otherServers"]} == {"two": True, "three": True}
            names = {each["id"]: each["name"] for each in [body["server"], *body["otherServers"]]}
            found = {names[each["serverId"]]: each["channels"] for each in body["streams"]}
            assert found == {"one": ["a", "b"], "two": ["c"]}
            status, body = await client.get(f"{STREAMS}?servers=all&userId=42&limit=1")
            assert (body["count"], [each["userId"] for each in body["streams"]]) == (1, ["42"])
            assert (await client.get(f"{STREAMS}?servers=both"))[0] == 422


async def test_a_list_that_is_cut_off_says_so(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream("a"), client.stream("b"):
        await eventually(lambda: len(server.bus.hub.streams) == 2)
        (row,) = await asyncio.to_thread(asked, db, None, 1)
        assert (row["streams"], row["problem"]) == (2, "only 1 of its streams are listed")


async def test_a_server_that_does_not_answer_is_listed(
    launch: Launcher, db: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database_url, autocommit=True) as hung:
        ((number,),) = hung.execute(query("server_insert"), ["hung", 42, "1.0", 1]).fetchall()
        hung.execute(query("server_lock"), [number])
        (row,) = asked(db, patience="0")
        assert (row["name"], row["problem"], row["streams"]) == ("hung", "it has not answered", None)
        server = await launch(server_name="up")
        async with Client(server.url) as client, client.stream("a"):
            await eventually(lambda: server.bus.hub.streams)
            ((number,),) = db.execute("SELECT sse_pg.ask_for_streams()").fetchall()
            answered = "SELECT count(*) FROM sse_pg.stream_answers WHERE question = %s"
            await eventually(lambda: db.execute(answered, [number]).fetchone() == (1,))
            shown = "SELECT name, problem, channels FROM sse_pg.open_streams(patience => '0')"
            assert db.execute(shown).fetchall() == [("hung", "it has not answered", None), ("up", None, ["a"])]
            status, body = await client.get(f"{STREAMS}?servers=all")
            assert (status, [(each["name"], each["answered"]) for each in body["otherServers"]]) == (
                200,
                [("hung", False)],
            )


async def test_a_server_that_ended_after_its_answer_is_listed_as_such(launch: Launcher, db: psycopg.Connection) -> None:
    first, _ = await launch(server_name="first"), await launch(server_name="second")
    rows = await asyncio.to_thread(asked, db)
    assert len(rows) == 2
    await first.stop()
    rows = db.execute("SELECT name, problem FROM sse_pg.open_streams() ORDER BY name").fetchall()
    assert rows == [("second", None), (None, "it is no longer up")]


def test_it_fails_if_an_empty_list_would_say_nothing(db: psycopg.Connection) -> None:
    shown = "SELECT * FROM sse_pg.open_streams()"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="nobody has asked"):
        db.execute(shown)
    with db.transaction(force_rollback=True):
        db.execute("SELECT sse_pg.ask_for_streams()")
        with pytest.raises(psycopg.errors.InvalidTransactionState, match="commits"):
            db.execute(shown)
    db.execute("SELECT sse_pg.ask_for_streams()")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no server is up"):
        db.execute(shown)
    with db.transaction(force_rollback=True):
        db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with pytest.raises(psycopg.errors.InvalidTransactionState, match="repeatable read"):
            db.execute(shown)
    for most in (0, 10_001):
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute("SELECT sse_pg.ask_for_streams(NULL, %s)", [most])
    db.execute("UPDATE sse_pg.stream_questions SET asked_at = now() - interval '61 s'")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="nobody has asked"):
        db.execute(shown)


async def test_answers_are_deleted(launch: Launcher, db: psycopg.Connection) -> None:
    await launch()
    rows = await asyncio.to_thread(asked, db)
    assert [row["problem"] for row in rows] == [None]
    for way in ("sse_pg.ask_for_streams()", "sse_pg.purge_channels(1)"):
        db.execute("UPDATE sse_pg.stream_questions SET asked_at = now() - interval '11 min'")
        db.execute(f"SELECT {way}")  # type: ignore[arg-type]
        old = db.execute("SELECT count(*) FROM sse_pg.stream_questions WHERE asked_at < now() - interval '10 min'")
        assert old.fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM sse_pg.stream_answers WHERE question = 1").fetchone() == (0,)


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
