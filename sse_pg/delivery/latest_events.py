"""Lets streams begin with the last events of their channels.

docs/guarantee.md argues that nothing is lost and nothing comes twice.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.core.latest import Latest
from sse_pg.db.store import Newest, Page, Store
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.errors import fresh

#: Scattered events of one read. They may be in as many channels, and each channel is looked at for each of them.
CHUNK_EVENTS = 50
#: Pause after a read from a standby that does not have everything yet.
STANDBY_PAUSE_S = 0.02


class Key(NamedTuple):
    """What one read of the newest ids is about. Streams of a crowd share one."""

    channels: frozenset[str]
    position: Cursor
    most: int


class LatestEvents:
    """Finds where such streams begin, and sends them what lies scattered below."""

    def __init__(self, hub: Hub, store: Store, max_bytes: int) -> None:
        """``max_bytes``: payloads of one read; it ends after the event that reaches this."""
        self._hub = hub
        self._store = store
        self._max_bytes = max_bytes
        self._reading: dict[Key, asyncio.Task[Newest]] = {}
        self._erasures = 0
        self.events = 0
        """Scattered events sent to streams."""

    def forget(self) -> None:
        """Do not send what is being read: an event in it was erased."""
        self._erasures += 1

    async def begin(self, stream: Stream, most: int) -> Cursor:
        """Return the cursor of a stream that begins with the last ``most`` events of each of its channels.

        What is scattered is noted in the stream. Raises BusUnavailable if the database is unavailable.
        """
        while True:
            log, key = self._hub.log, Key(stream.channels, self._hub.position, most)
            newest = await self._newest(key)
            while newest.vouched is not None and not newest.vouched.covers(key.position):
                await asyncio.sleep(STANDBY_PAUSE_S)
                newest = await self._newest(key)
            if self._hub.log == log and stream.channels == key.channels:
                break
        latest = Latest(key.position, newest.ids, most)
        stream.expired_to = max(stream.expired_to, newest.expired_to)
        stream.latest = None if latest.is_done else latest
        return latest.cursor

    async def _newest(self, key: Key) -> Newest:
        task = self._reading.get(key)
        if task is None:
            read = self._store.newest(sorted(key.channels), key.position, key.most)
            task = self._reading[key] = asyncio.create_task(read)
            task.add_done_callback(lambda _: self._reading.pop(key, None))
        await asyncio.wait((task,))  # the end of one stream does not cancel the read for the others
        error = None if task.cancelled() else task.exception()
        if error is not None:
            raise fresh(error)
        return task.result()

    async def send(self, stream: Stream) -> None:
        """Send a stream the next of its scattered events, as many as one read has.

        If the log or the retention of a channel has changed, the stream goes on from its cursor, like one that resumes.
        """
        latest, log, erasures, channels = stream.latest, self._hub.log, self._erasures, stream.channels
        assert latest is not None
        if stream.log != log:
            stream.latest = None
            return
        among, wanted = latest.next(CHUNK_EVENTS)
        among = [channel for channel in among if channel in channels]
        first, last = wanted.spans[0][0], wanted.spans[-1][1]
        page = await self._store.page(among, wanted, len(wanted), max_bytes=self._max_bytes)
        if page.vouched is not None and wanted & page.vouched.missing_up_to(last):
            await asyncio.sleep(STANDBY_PAUSE_S)
            return
        if self._erasures != erasures or stream.channels != channels or stream.held is not None:
            return  # it is read again
        if self._hub.log != log or max(page.purged_to, _news(page.expired_to, stream)) >= first:
            stream.latest = None
            return
        self._write(stream, latest, page, page.events[-1].id if page.full else last)

    def _write(self, stream: Stream, latest: Latest, page: Page, reached: int) -> None:
        now = time.monotonic()
        data, count, sent = b"", 0, 0
        for event in page.events:
            block = wire.frame(event, latest.after(event.id), envelope=stream.envelope)
            if data and len(data) + len(block) > self._hub.fan_out.max_write:
                reached = sent
                break
            data, count, sent = data + block, count + 1, event.id
        latest.note_sent(reached)
        stream.cursor = latest.cursor
        if latest.is_done:
            stream.latest = None
        if data:
            stream.push(stream.framing.batch(data), now)
            stream.replayed += count
            self.events += count
            stream.told = latest.after(sent)
            stream.note_position(stream.told, now)


def _news(expired_to: int, stream: Stream) -> int:
    """Return up to which id events are no longer retained, if the stream does not know; otherwise 0."""
    return expired_to if expired_to > stream.expired_to else 0
