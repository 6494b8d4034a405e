"""What these tests share: a client that always reconnects, writers, and the table to compare with."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.database_proxy import Proxy
from support.streams import Block, parse_block
from support.waiting import TIMEOUT_S

INSERT = "INSERT INTO sse_pg.events (channel, payload) VALUES (%s, to_jsonb(%s::bigint)) RETURNING id"


class Follower:
    """A client that reconnects with its cursor after every drop, to the next of its servers, and keeps a record."""

    def __init__(
        self,
        *urls: str,
        channels: str = "a",
        cursor: str | None = None,
        drop_every: int = 0,
        silence_s: float | None = None,
    ) -> None:
        """``silence_s``: after how many seconds without a heartbeat the stream counts as dead."""
        self._urls = urls
        self._channels = channels
        self._drop_every = drop_every
        self._silence_s = silence_s
        self.cursor = cursor
        self.payloads: list[Any] = []
        self.cursors: list[str] = []
        """The cursor after each payload."""
        self.gaps: list[Any] = []
        self.connects = 0
        self.opened = asyncio.Event()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled."""
        connector = aiohttp.TCPConnector(force_close=True, ssl=False)
        async with aiohttp.ClientSession(connector=connector, read_bufsize=2**20) as session:
            attempt = 0
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    await self._connection(session, self._urls[attempt % len(self._urls)])
                attempt += 1
                await asyncio.sleep(0.02)

    async def _connection(self, session: aiohttp.ClientSession, url: str) -> None:
        headers = {} if self.cursor is None else {"Last-Event-ID": self.cursor}
        async with session.get(
            f"{url}/api/events/stream",
            params={"channels": self._channels},
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=self._silence_s),
        ) as response:
            if response.status != 200:
                return
            self.connects += 1
            before = len(self.payloads)
            rest = ""
            async for data in response.content.iter_any():
                *blocks, rest = (rest + data.decode()).split("\n\n")
                for text in blocks:
                    self._take(parse_block(text))
                self._news.set()
                if self._drop_every and len(self.payloads) - before >= self._drop_every:
                    break
            response.close()

    def _take(self, block: Block) -> None:
        if block.id is not None:
            self.cursor = block.id
        if block.event == "sse-pg.hello":
            self.opened.set()
        elif block.event == "sse-pg.gap":
            self.gaps.append(block.json())
        elif block.data and not block.event.startswith("sse-pg."):
            self.payloads.append(block.json())
            assert self.cursor is not None
            self.cursors.append(self.cursor)

    async def until(self, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a condition on the record holds."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def proxied(database_url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Start a proxy before the database, and the URL through it."""
    there = conninfo_to_dict(database_url)
    proxy = Proxy(f"{there['host']}/.s.PGSQL.{there['port']}")
    try:
        yield proxy, make_conninfo(database_url, host="127.0.0.1", port=await proxy.start())
    finally:
        await proxy.close()


@asynccontextmanager
async def running(*work: Any) -> AsyncIterator[None]:
    """Run coroutines as long as the block; a coroutine that fails fails the test."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def following(*urls: str, count: int = 1, **kwargs: Any) -> AsyncIterator[Follower]:
    """Open a follower and wait for its first hello."""
    follower = Follower(*urls, **kwargs)
    async with running(follower.run()):
        async with asyncio.timeout(TIMEOUT_S):
            await follower.opened.wait()
        yield follower


async def connect(url: str, *, autocommit: bool = True) -> psycopg.AsyncConnection[Any]:
    """Open a connection as a publisher has it."""
    return await psycopg.AsyncConnection.connect(url, autocommit=autocommit)


@asynccontextmanager
async def connection(url: str, *, autocommit: bool = True) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Open a connection, and close it whatever has become of it: an open transaction rolls back."""
    conn = await connect(url, autocommit=autocommit)
    try:
        yield conn
    finally:
        await conn.close()


async def insert(conn: psycopg.AsyncConnection[Any], payload: int, channel: str = "a") -> int:
    """Publish as psql would; return the id."""
    row = await (await conn.execute(INSERT, (channel, payload))).fetchone()
    assert row is not None
    return int(row[0])


async def table(url: str, channel: str = "a") -> list[Any]:
    """Return every payload of a channel, by id."""
    async with connection(url) as conn:
        cursor = await conn.execute("SELECT payload FROM sse_pg.events WHERE channel = %s ORDER BY id", (channel,))
        return [row[0] for row in await cursor.fetchall()]


async def as_in_table(follower: Follower, url: str, after: Iterable[Any] = ()) -> None:
    """Wait until a follower has as many events as the table, less those it began after; then compare."""
    before = set(after)
    expected = sorted(payload for payload in await table(url) if payload not in before)
    with contextlib.suppress(TimeoutError):
        await follower.until(lambda: len(follower.payloads) >= len(expected))
    got = sorted(follower.payloads)
    if got != expected:
        lost, extra = set(expected) - set(got), set(got) - set(expected)
        doubled = len(got) - len(set(got))
        raise AssertionError(
            f"lost {sorted(lost)[:5]} ({len(lost)}), doubled {doubled}, not in the table {sorted(extra)[:5]}; "
            f"cursor {follower.cursor}, {follower.connects} connects"
        )


class Poster:
    """Publishes over HTTP from one task and keeps the outcome of each payload."""

    def __init__(self, *urls: str, base: int = 0) -> None:
        self._urls = urls
        self._next = base
        self.accepted: set[int] = set()
        self.refused: set[int] = set()
        self.unknown: set[int] = set()
        self.answers: list[tuple[int, dict[str, Any], str | None]] = []
        """(status, body, Retry-After) of each answer other than 201."""

    async def run(self, pause: float = 0.002) -> None:
        """Publish until cancelled."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
            while True:
                await self.one(session)
                await asyncio.sleep(pause)

    async def one(self, session: aiohttp.ClientSession) -> None:
        """Publish once."""
        self._next += 1
        payload = self._next
        self.unknown.add(payload)
        try:
            async with session.post(
                self._urls[payload % len(self._urls)] + "/api/events/publish",
                json={"channel": "a", "payload": payload},
                timeout=aiohttp.ClientTimeout(total=40),
            ) as response:
                if response.content_type == "text/html":
                    return  # a proxy that got no response
                status, body = response.status, json.loads(await response.read())
                wait = response.headers.get("Retry-After")
        except aiohttp.ClientConnectorError:
            self.unknown.discard(payload)
            self.refused.add(payload)
            return
        except (aiohttp.ClientError, OSError, TimeoutError):
            return
        if status == 201:
            self.unknown.discard(payload)
            self.accepted.add(payload)
            return
        self.answers.append((status, body, wait))
        if body["type"] != "urn:sse-pg:outcome-unknown":
            self.unknown.discard(payload)
            self.refused.add(payload)

    def check(self, rows: Iterable[Any]) -> None:
        """Compare the responses with the rows."""
        there = set(rows)
        assert self.accepted <= there, f"answered 201 and not there: {sorted(self.accepted - there)[:5]}"
        assert not self.refused & there, f"refused and there: {sorted(self.refused & there)[:5]}"
        for status, body, wait in self.answers:
            assert status == 503, body
            assert wait is not None, body
