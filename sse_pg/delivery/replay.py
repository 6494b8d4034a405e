"""Brings a stream from its cursor to live: pages from the table at the client's speed, then the ring, then live."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import NamedTuple

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import Envelope
from sse_pg.core.framing import Framing
from sse_pg.db.store import Store
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.latest_events import STANDBY_PAUSE_S, LatestEvents
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.tail import Tail
from sse_pg.errors import fresh

#: A page ends after the event with which its payloads have so many bytes, or those of one write to a stream.
MAX_PAGE_BYTES = 262144
#: Events of a stream's first page.
FIRST_PAGE_EVENTS = 50
#: Pages cached for the next stream that asks for the same, and their bytes.
MAX_CACHED_PAGES = 16
MAX_CACHED_BYTES = 4_194_304

Key = tuple[frozenset[str], Envelope | None, Framing, Cursor, int]


class Part(NamedTuple):
    """What is written to a stream before its client has to read some, and the stream's cursor after it."""

    framed: bytes
    cursor: Cursor
    events: int
    told: Cursor
    """The cursor of the last block."""


class FramedPage(NamedTuple):
    """A page as it is sent."""

    parts: list[Part]
    """At least one; the cursor of the last covers the page."""
    expired: bool
    """Whether it begins with a gap event because events were purged."""
    expired_to: int
    """Up to which id the retention of one of its channels had ended; 0 if the cursor lacks nothing up to there."""

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(len(part.framed) for part in self.parts)


class Replay:
    """Brings streams up to date.

    Streams that ask for the same page share one read of the table and the bytes made from it, because a crowd that
    reconnects at once, behind a ring that is too small, has few different cursors. A shared page belongs to one
    position of the hub and is dropped at the next position. So no stream gets a position that is newer than its page.
    """

    def __init__(self, hub: Hub, store: Store, tail: Tail, page: int, primary: Store | None = None) -> None:
        """``page`` is the limit of a page in events. ``primary``: ``store`` is a standby, and this its primary."""
        self._hub = hub
        self._is_standby = primary is not None
        self._primary = primary or store
        self._store = store
        self._tail = tail
        self._page = page
        self._page_bytes = min(MAX_PAGE_BYTES, hub.fan_out.max_write)
        self._cache_position = hub.position
        self._reading: dict[Key, asyncio.Task[FramedPage]] = {}
        self._cached: dict[Key, FramedPage] = {}
        self._cached_bytes = 0
        self.latest = LatestEvents(hub, store, self._page_bytes)
        self._erasures = 0
        """How often pages were forgotten. What was read before is not sent any more."""
        self.sources: Counter[str] = Counter()
        """Streams that became live, by the source of what they had missed: table, ring, none."""
        self.events = 0
        """Events sent to streams from the table."""
        self.pages: Counter[str] = Counter()
        """Pages sent to streams: read or shared."""

    async def catch_up(self, stream: Stream) -> None:
        """Send a stream what it missed and make it live; return when it is live or has ended.

        While it waits for the client, it holds nothing but the client's write buffer. If events are published faster
        than the client reads, the stream keeps reading pages. Raises BusUnavailable if the database is unavailable.
        """
        limit = min(FIRST_PAGE_EVENTS, self._page)
        source = "none"
        while stream.reason is None:
            if stream.held is not None:
                await stream.held
                continue
            if stream.latest is not None:
                source = "table"
                await self.latest.send(stream)
                await stream.drained()
                continue
            before = stream.replayed
            step = self._hub.join(stream)
            if source == "none" and stream.replayed > before:
                source = "ring"
            if step == "joined":
                self.sources[source] += 1
                return
            if step == "ahead":  # the log was replaced while it caught up
                stream.cursor, _ = await self.validate(stream.cursor)
                continue
            if step == "behind":
                source = "table"
                limit = await self._send_page(stream, limit)
            await stream.drained()

    def catch_up_at_once(self, stream: Stream) -> bool:
        """Make a stream live if the ring has all that it missed, and that is one write; return whether it is."""
        before = stream.replayed
        if stream.held is not None or self._hub.join(stream) != "joined":
            return False
        self.sources["ring" if stream.replayed > before else "none"] += 1
        return True

    def forget(self) -> None:
        """Forget all pages, also those that are being read or sent: an event in them was erased."""
        self._erasures += 1
        self.latest.forget()
        self._reading, self._cached, self._cached_bytes = {}, {}, 0

    async def validate(self, claimed: Cursor) -> tuple[Cursor, bool]:
        """Return the part of a client's cursor that is true, and whether some of it belongs to a log that was lost.

        The cursor may have ids that this server has not handed on, because the client comes from a server that had
        read further. A read that begins now sees all of these. The ids that are still missing after it were never
        offered to anybody: the cursor is a plain integer above a transaction in flight, or has an id that was rolled
        back. A cursor beyond the sequence belongs to another log. Raises BusUnavailable if the database is unavailable.
        """
        cursor = self._hub.last_certain(claimed)
        if cursor is not claimed:
            return cursor, True
        if self._hub.position.covers(claimed):
            return claimed, False
        await self._tail.catch_up(claimed)
        position = self._hub.position
        if position.covers(claimed):
            return claimed, False
        if claimed.high > await self._primary.last_id():
            return self._hub.position, True
        return claimed & self._hub.position, False

    async def _send_page(self, stream: Stream, limit: int) -> int:
        """Send one page from the table, part by part; return the limit for the next page, in events.

        If the client has to read first, the rest of the page is dropped, and read again later: thousands of clients
        that read nothing must not hold a page each.
        """
        cursor, channels, erasures = stream.cursor, stream.channels, self._erasures
        page = await self._framed_page((channels, stream.envelope, stream.framing, cursor, limit))
        if page.parts[-1].cursor == cursor and self._is_standby:
            await asyncio.sleep(STANDBY_PAUSE_S)  # it does not have yet what the hub's position covers
        for number, part in enumerate(page.parts):
            if stream.paused:
                return limit
            if stream.log != self._hub.log or stream.channels != channels or stream.held is not None:
                return limit  # the log was replaced in the meantime, or a channel was revoked, or may be
            if self._erasures != erasures:
                return limit  # the page may have an event that was erased since
            if page.expired_to > stream.expired_to:
                self._say_expired(stream, page.expired_to)
            stream.cursor = cursor = part.cursor
            if part.framed:
                now = time.monotonic()
                stream.push(part.framed, now)
                stream.told = part.told
                stream.replayed += part.events
                self.events += part.events
                if page.expired and number == 0:
                    self._hub.gap_notices["expired"] += 1
                stream.note_position(cursor, now)
        return min(self._page, limit * 2)

    def _say_expired(self, stream: Stream, up_to: int) -> None:
        """Tell a stream that some of its channels were not retained for as long as it was absent.

        Its cursor stays: what it lacks of the other channels follows.
        """
        stream.expired_to = up_to
        gap = wire.gap("expired", stream.cursor.text, stream.cursor | Cursor(up_to), cursor=stream.cursor)
        stream.write_position(gap, stream.cursor, time.monotonic())
        self._hub.gap_notices["expired"] += 1

    async def _framed_page(self, key: Key) -> FramedPage:
        """Return a page from the cache, wait for it if it is being read, or read it."""
        if self._cache_position is not self._hub.position:
            self._cache_position = self._hub.position
            self._reading, self._cached, self._cached_bytes = {}, {}, 0
        cached = self._cached.get(key)
        task = self._reading.get(key)
        self.pages["read" if cached is None and task is None else "shared"] += 1
        if cached is not None:
            return cached
        if task is None:
            reading, at = self._reading, self._cache_position
            task = reading[key] = asyncio.create_task(self._read(key, at))

            def finished(task: asyncio.Task[FramedPage]) -> None:
                reading.pop(key, None)
                # Fetch the exception even if every waiting stream has ended: asyncio reports one that nobody fetches.
                failed = task.cancelled() or task.exception() is not None
                if not failed and self._cache_position is at and reading is self._reading:
                    self._cache(key, task.result())

            task.add_done_callback(finished)
        await asyncio.wait((task,))  # the end of one stream does not cancel the read for the others
        error = None if task.cancelled() else task.exception()
        if error is not None:
            raise fresh(error)
        return task.result()

    def _cache(self, key: Key, page: FramedPage) -> None:
        if page.size > MAX_CACHED_BYTES or self._is_standby:  # the next read of a standby may find more
            return
        self._cached[key] = page
        self._cached_bytes += page.size
        while len(self._cached) > MAX_CACHED_PAGES or self._cached_bytes > MAX_CACHED_BYTES:
            self._cached_bytes -= self._cached.pop(next(iter(self._cached))).size

    async def _read(self, key: Key, position: Cursor) -> FramedPage:
        channels, envelope, framing, cursor, limit = key
        step = await self._store.step(sorted(channels), cursor, position, limit, max_bytes=self._page_bytes)
        blocks: list[tuple[bytes, Cursor, int]] = []
        expired = bool(cursor.missing_up_to(step.purged_to))
        if expired:
            cursor_after_gap = cursor | Cursor(step.purged_to)
            blocks.append((wire.gap("expired", cursor.text, cursor_after_gap), cursor_after_gap, 0))
            cursor = cursor_after_gap
        expired_to = step.expired_to if cursor.missing_up_to(step.expired_to) else 0
        for event in step.events:
            if not cursor.offered(event.id):
                after = cursor | step.position.clip(event.id)
                blocks.append((wire.frame(event, after, envelope=envelope), after, 1))
        parts = _parts(blocks, cursor | step.cursor, self._hub.fan_out.max_write, framing)
        return FramedPage(parts, expired, expired_to)


def _parts(blocks: list[tuple[bytes, Cursor, int]], reached: Cursor, max_write: int, framing: Framing) -> list[Part]:
    """Join blocks, each with the cursor after it and the number of its events, to parts of ``max_write`` bytes.

    ``reached`` is the cursor after all of them. A block that is larger is a part of its own.
    """
    parts: list[Part] = []
    data, cursor, events = b"", reached, 0
    for block, after, count in blocks:
        if data and len(data) + len(block) > max_write:
            parts.append(Part(framing.batch(data), cursor, events, cursor))
            data, events = b"", 0
        data, cursor, events = data + block, after, events + count
    parts.append(Part(framing.batch(data) if data else data, reached, events, cursor))
    return parts
