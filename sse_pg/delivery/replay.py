"""Bringing one stream from its cursor to live: pages from the table at the client's speed, then the ring, then live."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import NamedTuple

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.db.store import Store
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.tail import Tail

#: A page with more payload than this is followed by a smaller one, one with less by a larger one.
PAGE_BYTES = 262144
FIRST_PAGE = 50
#: Pages kept for the next stream that asks for the same.
KEPT = 16

Key = tuple[frozenset[str], bool, bool, Cursor, int]


class Chapter(NamedTuple):
    """A page as it goes out, and the cursor of a stream that was sent it."""

    framed: bytes
    reached: Cursor
    events: int
    expired: bool
    """Whether it says that something before it was purged."""


class Replay:
    """What catching up needs.

    Streams that ask for the same page share one read of the table and the bytes made of it: a crowd that comes back at
    once, with a ring that is too small, has few cursors among it. What is shared is of one position of the hub; at the
    next it is forgotten, so nobody is given what was read before the position that he is told.
    """

    def __init__(self, hub: Hub, store: Store, tail: Tail, page: int) -> None:
        self._hub = hub
        self._store = store
        self._tail = tail
        self._page = page
        self._at = hub.position
        self._reading: dict[Key, asyncio.Task[Chapter]] = {}
        self._kept: dict[Key, Chapter] = {}
        self.sources: Counter[str] = Counter()
        """Streams that became live, by where what they had missed came from: table, ring, none."""
        self.events = 0
        """Events that streams were sent from the table."""
        self.pages: Counter[str] = Counter()
        """Pages that streams were sent: read or shared."""

    async def catch_up(self, stream: Stream) -> None:
        """Send a stream what it missed and make it live; returns when it is live or has ended.

        Memory is bounded by a page and the client's write buffer. Where production outruns the client, it stays here,
        reading pages. Raises BusUnavailable when the database is away.
        """
        limit = min(FIRST_PAGE, self._page)
        source = "none"
        while stream.reason is None:
            before = stream.replayed
            step = self._hub.join(stream)
            if source == "none" and stream.replayed > before:
                source = "ring"
            if step == "joined":
                self.sources[source] += 1
                return
            if step == "ahead":  # the log was replaced while it caught up
                stream.cursor, _ = await self.judge(stream.cursor)
                continue
            if step == "behind":
                source = "table"
                limit = await self._send_page(stream, limit)
            await stream.drained()

    async def judge(self, claimed: Cursor) -> tuple[Cursor, bool]:
        """Return the cursor that a client really has, and whether something of its claim is of a log that was lost.

        A claim may have what this server has not handed on: the client may come from a server that had read
        further, and a read from now on sees all of that. What is still missing then was never offered to anybody: a
        plain integer above a transaction in flight, or an id that was rolled back. Beyond the sequence itself the
        cursor is of another log. Raises BusUnavailable when the database is away.
        """
        cursor = self._hub.last_certain(claimed)
        if cursor is not claimed:
            return cursor, True
        if self._hub.position.covers(claimed):
            return claimed, False
        await self._tail.fresh()
        position = self._hub.position
        if position.covers(claimed):
            return claimed, False
        if claimed.high > await self._store.last_id():
            return self._hub.position, True
        return claimed & self._hub.position, False

    async def _send_page(self, stream: Stream, limit: int) -> int:
        """Send one page from the table; return the limit for the next."""
        cursor = stream.cursor
        chapter = await self._chapter((stream.channels, stream.envelope, stream.chunked, cursor, limit))
        if stream.cursor is not cursor:
            return limit  # the log was replaced meanwhile
        stream.cursor = chapter.reached
        if chapter.framed:
            now = time.monotonic()
            stream.push(chapter.framed, now)
            stream.replayed += chapter.events
            self.events += chapter.events
            if chapter.expired:
                self._hub.gap_notices["expired"] += 1
            stream.told, stream.told_at = chapter.reached, now
        return max(1, limit // 4) if len(chapter.framed) > PAGE_BYTES else min(self._page, limit * 2)

    async def _chapter(self, key: Key) -> Chapter:
        """Return a page that is kept, wait for one that is being read, or read it."""
        if self._at is not self._hub.position:
            self._at = self._hub.position
            self._reading, self._kept = {}, {}
        kept = self._kept.get(key)
        task = self._reading.get(key)
        self.pages["read" if kept is None and task is None else "shared"] += 1
        if kept is not None:
            return kept
        if task is None:
            reading, at = self._reading, self._at
            task = reading[key] = asyncio.create_task(self._read(key, at))

            def finished(task: asyncio.Task[Chapter]) -> None:
                del reading[key]
                # Looked at even when all who waited are gone: asyncio reports an exception that nobody fetched.
                failed = task.cancelled() or task.exception() is not None
                if not failed and self._at is at:
                    self._keep(key, task.result())

            task.add_done_callback(finished)
        return await asyncio.shield(task)  # a stream that goes takes the page from nobody

    def _keep(self, key: Key, chapter: Chapter) -> None:
        if len(chapter.framed) > PAGE_BYTES:
            return
        if len(self._kept) >= KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = chapter

    async def _read(self, key: Key, position: Cursor) -> Chapter:
        channels, envelope, chunked, cursor, limit = key
        step = await self._store.step(sorted(channels), cursor, position, limit)
        blocks: list[bytes] = []
        expired = bool(cursor.missing_up_to(step.purged_to))
        if expired:
            cursor_after_gap = cursor | Cursor(step.purged_to)
            blocks.append(wire.gap("expired", cursor.text, cursor_after_gap))
            cursor = cursor_after_gap
        for event in step.events:
            if not cursor.offered(event.id):
                blocks.append(wire.frame(event, cursor | position.clip(event.id), envelope=envelope))
        data = b"".join(blocks)
        return Chapter(
            wire.chunk(data) if data and chunked else data,
            cursor | step.cursor,
            len(blocks) - expired,
            expired,
        )
