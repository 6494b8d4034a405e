"""Streams about which a decision is pending: they wait, nobody else does, and they miss nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from support.client import Client
from support.server import Launcher, Server
from support.tokens import SECRET, bearer, token
from support.waiting import TIMEOUT_S, eventually

#: The rule waits while another session holds this lock.
GATE = 7
RULE = f"""
CREATE OR REPLACE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean
LANGUAGE plpgsql AS $$ BEGIN
    IF user_id = 'slow' AND action = 'subscribe' THEN
        PERFORM pg_advisory_lock_shared({GATE}), pg_advisory_unlock_shared({GATE});
    ELSIF user_id = 'broken' AND channel = 'x' THEN
        RAISE EXCEPTION 'broken';
    END IF;
    RETURN channel <> 'forbidden';
END $$
"""


def as_user(server: Server, user: str) -> Client:
    return Client(server.url, bearer(token(user, subscribe=["*"], publish=["*"])))


@pytest.fixture
async def server(db: psycopg.Connection, launch: Launcher) -> Server:
    db.execute(RULE)  # type: ignore[arg-type]
    for user in ("slow", "quick", "broken"):
        db.execute("SELECT sse_pg.subscribe(%s, 'a')", (user,))
    return await launch(token_secret=SECRET, authorize_timeout=60.0, authorize_cache=0.01)


@contextmanager
def closed(database_url: str) -> Iterator[None]:
    """Let the rule wait."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(%s)", (GATE,))
        yield


def held(server: Server) -> list[str | None]:
    return sorted(str(stream.user) for stream in server.bus.hub.streams if stream.held is not None)


async def test_a_slow_rule_delays_only_the_streams_it_is_asked_about(
    server: Server, db: psycopg.Connection, database_url: str
) -> None:
    async with (
        as_user(server, "slow") as slow,
        as_user(server, "quick") as quick,
        slow.stream(userId="slow") as waiting,
        slow.stream("a") as named,
        quick.stream("a") as live,
    ):
        with closed(database_url):
            db.execute("SELECT sse_pg.subscribe('slow', 'b')")
            db.execute("SELECT sse_pg.revoke('slow', 'a')")
            await quick.publish("a", 1)
            await quick.publish("b", 2)
            assert (await live.event()).json() == 1
            assert held(server) == ["slow", "slow"]
        assert [(await waiting.event()).json() for _ in range(2)] == [1, 2]
        assert (await named.event()).json() == 1
        await eventually(lambda: held(server) == [])
        await quick.publish("b", 3)
        assert (await waiting.event()).json() == 3


async def test_a_rule_that_fails_for_one_user_ends_no_stream_of_another(server: Server, db: psycopg.Connection) -> None:
    async with (
        as_user(server, "broken") as broken,
        as_user(server, "quick") as quick,
        broken.stream(userId="broken") as first,
        quick.stream(userId="quick") as second,
        quick.stream("b") as third,
    ):
        with db.transaction():
            for user in ("broken", "quick"):
                db.execute("SELECT sse_pg.subscribe(%s, 'x')", (user,))
        await first.ended()
        db.execute("SELECT sse_pg.revoke()")
        await quick.publish("x", 1)
        assert (await second.event()).json() == 1
        await quick.publish("b", 2)
        assert (await third.event()).json() == 2


async def test_a_rule_that_takes_too_long_for_one_user_ends_no_stream_of_another(
    db: psycopg.Connection, launch: Launcher, database_url: str
) -> None:
    db.execute(RULE)  # type: ignore[arg-type]
    for user in ("slow", "quick"):
        db.execute("SELECT sse_pg.subscribe(%s, 'a')", (user,))
    server = await launch(token_secret=SECRET, authorize_timeout=0.3, authorize_cache=0.01)
    async with (
        as_user(server, "slow") as slow,
        as_user(server, "quick") as quick,
        slow.stream("a") as first,
        slow.stream(userId="slow") as second,
        quick.stream("a") as third,
        quick.stream(userId="quick") as fourth,
    ):
        with closed(database_url):
            db.execute("SELECT sse_pg.revoke()")
            await first.ended()
            await second.ended()
            await quick.publish("a", 1)
            for stream in (third, fourth):
                assert (await stream.event()).json() == 1


async def test_a_rule_that_fails_for_one_user_does_not_keep_another_from_opening(
    server: Server, db: psycopg.Connection
) -> None:
    db.execute("SELECT sse_pg.subscribe('broken', 'x')")

    async def open_one(user: str) -> int:
        async with as_user(server, user) as client:
            response = await client.session.get(f"{client.url}/api/events/stream?userId={user}")
            response.close()
            return response.status

    async with asyncio.timeout(TIMEOUT_S):
        found = await asyncio.gather(*(open_one(user) for user in ["broken", "quick"] * 5))
    assert found == [500, 200] * 5


async def test_what_is_published_while_a_stream_is_held_is_not_sent_after_a_revocation(
    server: Server, db: psycopg.Connection, database_url: str
) -> None:
    async with as_user(server, "slow") as slow, as_user(server, "quick") as quick, slow.stream("a") as stream:
        with closed(database_url):
            db.execute("SELECT sse_pg.revoke('slow', 'a')")
            await quick.publish("a", "secret")
            await eventually(lambda: held(server) == ["slow"])
            # The rule has not answered yet; now it will say no.
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute(RULE.replace("<> 'forbidden'", "= 'nothing'"))  # type: ignore[arg-type]
                other.execute("SELECT sse_pg.revoke('slow', 'a')")
        with pytest.raises(EOFError):
            await stream.event()


async def test_streams_that_are_being_opened_count(db: psycopg.Connection, launch: Launcher, database_url: str) -> None:
    db.execute(RULE)  # type: ignore[arg-type]
    server = await launch(token_secret=SECRET, authorize_timeout=60.0, max_streams=3)
    async with as_user(server, "slow") as client:
        with closed(database_url):
            opening = [
                asyncio.create_task(client.session.get(f"{client.url}/api/events/stream?channels=c{number}"))
                for number in range(10)
            ]
            async with asyncio.timeout(TIMEOUT_S):
                for refused in itertools.islice(asyncio.as_completed(opening), 7):
                    assert (await refused).status == 503
        async with asyncio.timeout(TIMEOUT_S):
            responses = await asyncio.gather(*opening)
        assert sorted(response.status for response in responses) == [200] * 3 + [503] * 7
        for response in responses:
            response.close()
