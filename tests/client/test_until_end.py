"""The client and channels that end: the iteration ends, and a Publisher publishes what leads there."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from support.server import Launcher, Server

from sse_pg.client import Backoff, Finished, Publisher, Reconnect, subscribe
from sse_pg.errors import BusUnavailable, ClientError

SOON = Backoff(base=0.01, cap=0.05)


async def test_the_iteration_ends_with_the_channels(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    ends: list[Finished] = []
    lost: list[Reconnect] = []
    got: list[int] = []
    async with subscribe(
        server.url, ["a", "b"], cursor=0, until_end=True, on_finished=ends.append, on_reconnect=lost.append
    ) as events:
        db.execute("SELECT sse_pg.publish('a', '1'), sse_pg.finish('a')")
        async for event in events:
            got.append(event.json())
            if got == [1]:
                db.execute("SELECT sse_pg.publish('b', '2'), sse_pg.publish('a', '3'), sse_pg.finish('b')")
            if got == [1, 2, 3]:
                db.execute("SELECT sse_pg.finish('a')")
    assert (got, [end.channel for end in ends], lost) == ([1, 2, 3], ["a", "b", "a"], [])
    async with subscribe(server.url, ["a", "b"], cursor=events.cursor, until_end=True) as events:
        assert [event async for event in events] == []


async def test_without_a_cursor_it_ends_as_well(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    db.execute("SELECT sse_pg.finish('a')")
    async with asyncio.timeout(20), subscribe(server.url, ["a"], until_end=True) as events:
        assert [event async for event in events] == []


def test_until_end_needs_channels() -> None:
    with pytest.raises(ValueError, match="needs channels"):
        subscribe("http://127.0.0.1:1", user_id="u", until_end=True)


# ------------------------------------------------------------ the publisher


def stored(db: psycopg.Connection, channel: str) -> list[object]:
    rows = db.execute("SELECT payload FROM sse_pg.events WHERE channel = %s ORDER BY id", [channel]).fetchall()
    return [payload for (payload,) in rows]


async def test_what_comes_close_together_shares_a_commit(launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    async with Publisher(server.url, within=0.05) as bus:
        for number in range(200):
            await bus.publish("a", number)
        await bus.finish("a")
    assert stored(db, "a") == [*range(200), {"channel": "a"}]
    assert server.bus.publisher.commits <= 4


async def test_a_server_that_is_away_for_a_while(launch: Launcher, db: psycopg.Connection) -> None:
    """A request whose answer was lost is repeated, and its events are published once."""
    server = await launch()
    lost = LostAnswers(server)
    async with Publisher(server.url, within=0.001, backoff=SOON) as bus:
        for number in range(60):
            await bus.publish("a", number)
            if number % 20 == 10:
                await bus.flush()
        await bus.finish("a")
    assert lost.count >= 3
    assert stored(db, "a")[:60] == [*range(60)]
    assert len(stored(db, "a")) >= 61


class LostAnswers:
    """Lets a server cut the connection after every second commit."""

    def __init__(self, server: Server) -> None:
        self.count = 0
        self._asked = 0
        self._publish = server.bus.publisher.publish
        server.bus.publisher.publish = self._and_cut  # type: ignore[method-assign]

    async def _and_cut(self, *args: object, **options: object) -> object:
        published = await self._publish(*args, **options)  # type: ignore[arg-type]
        self._asked += 1
        if self._asked % 2:
            self.count += 1
            raise ConnectionResetError
        return published


async def test_an_event_that_is_refused_is_not_passed_over_in_silence(launch: Launcher) -> None:
    server = await launch()
    with pytest.raises(ClientError, match="white space"):
        async with Publisher(server.url, within=0.001) as bus:
            await bus.publish("a b", 1)
    bus = Publisher(server.url, within=0.001)
    await bus.publish("a b", 1)
    with pytest.raises(ClientError, match="white space"):
        await bus.flush()
    with pytest.raises(ClientError, match="white space"):
        await bus.publish("a", 1)
    await bus.close()


async def test_its_patience_ends() -> None:
    with pytest.raises(BusUnavailable, match="does not respond"):
        async with Publisher("http://127.0.0.1:1", patience=0.1, backoff=SOON) as bus:
            await bus.publish("a", 1)


async def test_an_error_in_the_block_is_raised_and_nothing_is_waited_for() -> None:
    async def fail() -> None:
        async with Publisher("http://127.0.0.1:1") as bus:
            await bus.publish("a", 1)
            raise ZeroDivisionError

    async with asyncio.timeout(20):
        with pytest.raises(ZeroDivisionError):
            await fail()
