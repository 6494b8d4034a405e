"""Takes events out of this server's memory that were deleted from the log: erased, or no longer kept."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from random import random

import psycopg

from sse_pg.db.connection import summary
from sse_pg.db.store import Deletion, Store
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.replay import Replay
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.tail import Tail
from sse_pg.errors import BusUnavailable

log = logging.getLogger(__name__)

#: Ids that one statement looks up.
IDS_PER_READ = 1000
#: Time for what the tail has read already to be handed on, after which unread bytes are looked at in any case.
HAND_ON_TIMEOUT_S = 0.2
#: Time in which a client has to read what was sent before an erasure. Then its connection ends.
UNREAD_TIMEOUT_S = 0.5
#: Pause between two rounds: every login can send the notification that asks for one.
PAUSE_S = 0.05
#: Time after which the database may have forgotten what was deleted; it keeps that for a day.
MAX_ABSENCE_S = 43_200.0
#: Average pause before the next attempt if the database is unavailable.
RETRY_PAUSE_S = 0.5


class Erasures:
    """Does what the notification "deleted" asks for. It says nothing itself: the database says what was deleted.

    The log is asked which of the events in memory are gone, so a forged notification takes nothing out.
    """

    def __init__(
        self,
        hub: Hub,
        store: Store,
        digest: Callable[[str], str],
    ) -> None:
        """``digest`` returns what the database calls a channel in its notes of deletions."""
        self._hub = hub
        self._store = store
        self._digest = digest
        self._since: int | None = None
        """What is known: every deletion by a transaction before this one. None: nothing is."""
        self._known_at = 0.0
        """When that was asked, by time.monotonic(); 0 before the first time."""
        self._wake = asyncio.Event()
        self.erased = 0
        """Events that were taken out of memory."""

    async def begin(self) -> None:
        """Know every deletion from here on, before this server has read any event."""
        if self._since is None and not self._known_at:
            asked_at = time.monotonic()
            _, self._since = await self._store.deletions(None)
            self._known_at = asked_at

    def heard(self) -> None:
        """Note that something was deleted."""
        self._wake.set()

    def missed(self) -> None:
        """Assume that something was deleted while nobody listened."""
        if time.monotonic() - self._known_at > MAX_ABSENCE_S:
            self._since = None
        self._wake.set()

    async def run(self, replay: Replay, tail: Tail) -> None:
        """Follow the deletions until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._follow(replay, tail)
                await asyncio.sleep(PAUSE_S)
            except (BusUnavailable, psycopg.Error) as error:
                log.warning("what was deleted from the log could not be read, and is tried again: %s", summary(error))
                self._wake.set()
                await asyncio.sleep(RETRY_PAUSE_S * (0.5 + random()))  # noqa: S311 - jitter

    async def _follow(self, replay: Replay, tail: Tail) -> None:
        asked_at = time.monotonic()
        deletions, now = await self._store.deletions(self._since)
        if self._since is not None and now < self._since:
            self._since = None  # another database
        everything = self._since is None
        if everything or deletions:
            found = None if everything else deletions
            await self._forget(replay, found)
            handed_on = asyncio.ensure_future(tail.fresh())
            try:
                # Events that the tail had read before they were deleted are handed on now. It will read them no more.
                await asyncio.wait({handed_on}, timeout=HAND_ON_TIMEOUT_S)
                await self._forget(replay, found)
                self._watch_unread(found)
                if not handed_on.done():
                    await handed_on
                    await self._forget(replay, found)
            finally:
                handed_on.cancel()
        self._since, self._known_at = now, asked_at

    async def _forget(self, replay: Replay, deletions: list[Deletion] | None) -> None:
        """Take what was deleted out of memory; None means that anything may have been."""
        hub = self._hub
        replay.forget()
        ids: set[int] = set()
        expired: dict[str, int] = {}
        by_digest: dict[str, list[Deletion]] = {}
        for deletion in deletions or ():
            by_digest.setdefault(deletion.channel, []).append(deletion)
        for name in {*hub.ring.channels, *hub.meter.channels}:
            spans = [Deletion("", 0, 2**63 - 1, False)] if deletions is None else by_digest.get(self._digest(name), ())
            for span in spans:
                ids.update(hub.ring.ids(name, span.first, span.last))
                if name in hub.meter.channels and span.first <= hub.meter.channels[name].last.id <= span.last:
                    ids.add(hub.meter.channels[name].last.id)
                if span.expired:
                    expired[name] = max(span.last, expired.get(name, 0))
        gone, purged_to = await self._gone(sorted(ids))
        if ids:
            # Of purged events nobody knows whether they were erased before. Readers that lack them go to the table.
            hub.ring.drop(purged_to)
        for name, up_to in expired.items():
            hub.ring.expire(name, up_to)
        hub.erase(gone)
        replay.forget()
        self.erased += len(gone)

    async def _gone(self, ids: list[int]) -> tuple[set[int], int]:
        gone: set[int] = set()
        purged_to = 0
        for start in range(0, len(ids), IDS_PER_READ):
            found, purged_to = await self._store.gone(ids[start : start + IDS_PER_READ])
            gone |= found
        return gone, purged_to

    def _watch_unread(self, deletions: list[Deletion] | None) -> None:
        """End streams that have bytes from before an erasure to send even when their client had time to read them."""
        digests = None if deletions is None else {each.channel for each in deletions if not each.expired}
        concerned = [
            (stream, stream.sent_bytes)
            for stream in self._hub.streams
            if stream.unread and (digests is None or not digests.isdisjoint(map(self._digest, stream.channels)))
        ]
        if concerned:
            asyncio.get_running_loop().call_later(UNREAD_TIMEOUT_S, _end_unread, concerned)


def _end_unread(concerned: Iterable[tuple[Stream, int]]) -> None:
    """End the streams that have not sent what they had to send; each with its count of bytes at that time."""
    for stream, sent_bytes in concerned:
        if stream.reason is None and stream.sent_bytes - stream.unread < sent_bytes:
            stream.end(EndReason.ERASED)
