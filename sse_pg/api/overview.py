"""Published tables, consumers and kept channels: the part of the statistics that may be expensive to read."""

from __future__ import annotations

import time

from sse_pg.core.event import timestamp
from sse_pg.db.store import Store

#: Maximum number of published tables, of consumers and of kept channels in a response.
MAX_ROWS = 50
#: Counting what a consumer lacks ends at this number of events in a channel: the count reads an index entry for each.
MAX_COUNTED_EVENTS = 10_000
#: Maximum number of channels that are named for each consumer.
MAX_CONSUMER_CHANNELS = 20
#: Maximum number of characters of what is wrong with a published table.
MAX_PROBLEM_CHARACTERS = 500
#: Minimum time for which an overview is reused.
MIN_REUSE_S = 2.0
#: It is reused at least this many times as long as it took: dashboards that stay open must not keep the database busy.
REUSE_FACTOR = 20


class Overview:
    """Published tables, consumers and kept channels, each at most MAX_ROWS. Callers take turns."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._valid_until = float("-inf")
        self._shown: dict[str, list[dict[str, object]]] = {}

    async def show(self) -> dict[str, list[dict[str, object]]]:
        """Return the parts of the response, which are a few seconds old at most unless they are expensive."""
        began = time.monotonic()
        if began >= self._valid_until:
            self._shown = await self._read()
            ended = time.monotonic()
            self._valid_until = ended + max(MIN_REUSE_S, REUSE_FACTOR * (ended - began))
        return self._shown

    async def _read(self) -> dict[str, list[dict[str, object]]]:
        tables = await self._store.overview_tables(MAX_ROWS, MAX_PROBLEM_CHARACTERS)
        consumers = await self._store.overview_consumers(MAX_ROWS, MAX_COUNTED_EVENTS, MAX_CONSUMER_CHANNELS)
        kept = await self._store.overview_kept(MAX_ROWS)
        return {
            "tables": [
                {"table": table, "channel": channel, "operations": operations, "owner": owner, "problem": problem}
                for table, channel, operations, owner, problem in tables
            ],
            "consumers": [
                {
                    "name": name,
                    "channels": channels,
                    "channelCount": count,
                    "lag": lag,
                    "oldestAt": None if oldest_at is None else timestamp(oldest_at),
                    "updatedAt": timestamp(updated_at),
                }
                for name, channels, count, lag, oldest_at, updated_at in consumers
            ],
            "keptChannels": [
                {
                    "channel": channel,
                    "keepHours": round(hours, 3),
                    "expiredTo": expired_to,
                    "lateSeconds": round(late_s, 3),
                }
                for channel, hours, expired_to, late_s in kept
            ],
        }
