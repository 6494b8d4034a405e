"""Makes partitions for the ids to come, and purges what is beyond the limits.

The SQL functions exclude each other by an advisory lock: one server at a time does the work, and the others find
nothing to do. No error here ends the server. It is logged, and the next round tries again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import random
from typing import Any

import psycopg

from sse_pg.config import Settings
from sse_pg.db.connection import summary
from sse_pg.db.pool import Pool, connection
from sse_pg.db.queries import query
from sse_pg.errors import BusUnavailable

log = logging.getLogger(__name__)

#: Partitions beyond the one that is being filled.
PARTITIONS_AHEAD = 4
#: Seconds between rounds while the sequence is about to outrun the partitions.
MIN_PAUSE_S = 1.0
#: Rounds that are left out, one after the other, while nobody needs the database and no id is drawn.
ROUNDS_TO_SKIP = 9
#: Rounds in a row that could not purge everything, after which a warning is logged.
BUSY_ROUNDS_BEFORE_WARNING = 10


@dataclass(frozen=True)
class Purged:
    """What one purge removed."""

    partitions: int = 0
    events: int = 0
    """Ids in the partitions' ranges: an upper bound of the number of events."""
    bytes: int = 0
    keys: int = 0
    purged_to: int = 0
    state: str = "done"
    """``done``, or ``busy``: something may be left, because others hold the table, have not read it, or purge."""
    deleted: int = 0
    """Events that were deleted because of their channel's own retention."""
    behind: Sequence[str] = ()
    """Consumers that lack events which were purged or deleted."""

    def and_then(self, later: Purged) -> Purged:
        """Return the sum of this purge and a later one."""
        return Purged(
            self.partitions + later.partitions,
            self.events + later.events,
            self.bytes + later.bytes,
            self.keys + later.keys,
            later.purged_to,
            later.state,
            self.deleted + later.deleted,
            sorted({*self.behind, *later.behind}),
        )

    def __str__(self) -> str:
        of_channels = f"{self.deleted} events of channels with their own retention, " if self.deleted else ""
        return (
            f"{self.partitions} partitions with up to {self.events} events ({self.bytes / 2**20:.1f} MiB), "
            f"now up to id {self.purged_to}, {of_channels}and {self.keys} idempotency keys"
        )


@dataclass(frozen=True)
class Consumers:
    """The named consumers of the log, as far as retention concerns them."""

    count: int = 0
    lag: int = 0
    """Events that the one lacks that is furthest behind."""
    retention_used: float = 0.0
    """How much of the retention the oldest event that one of them lacks has behind it. From 1 on it may be purged."""

    @classmethod
    def of(cls, settings: Settings, count: int, lag: int, ids: int, age_s: float) -> Consumers:
        """Compare the ids above the oldest event, and its age, with the limits of the settings."""
        return cls(count, lag, retention_used(settings, ids, age_s))


def retention_used(settings: Settings, ids: int, age_s: float) -> float:
    """Return the share of the retention that an event has behind it, with so many ids above it and of this age."""
    by_count = ids / settings.keep_events if settings.keep_events else 0.0
    by_age = age_s / (settings.keep_hours * 3600) if settings.keep_hours else 0.0
    return max(by_count, by_age)


@dataclass(frozen=True)
class LogSize:
    """What the log takes on disk, and how old its oldest event is; as of the last round."""

    bytes: int = 0
    oldest_at: float | None = None
    """Unix time; None if there is no event, or there was no round yet."""
    oldest_age_s: float | None = None
    read_at: float = 0.0
    """By time.monotonic()."""

    def age_s(self, now: float) -> float:
        """Return the age of the oldest event now; 0 if there is none."""
        return 0.0 if self.oldest_age_s is None else self.oldest_age_s + now - self.read_at


class Maintenance:
    """The maintenance of the log, as the settings ask for it."""

    def __init__(self, pool: Pool, settings: Settings, last_id: Callable[[], float] = lambda: math.inf) -> None:
        """``last_id`` returns the last id drawn as far as this process knows, without asking the database."""
        self._pool = pool
        self._last_id = last_id
        self._settings = settings
        self._busy = 0
        self._is_complete = False
        """Whether the last round left nothing to do."""
        self._last: tuple[float, int] | None = None
        self.rounds: Counter[str] = Counter()
        """Rounds by how they ended: done, busy, failed."""
        self.succeeded_at = 0.0
        """Unix time at which the last round that did not fail ended."""
        self.made = 0
        """Partitions made by this process."""
        self.purged = Purged()
        """The sum of all rounds."""
        self.fallen_behind = 0
        """Consumers that lost events in a round, counted in each round."""
        self.consumers = Consumers()
        """What the last round found."""
        self.log_size = LogSize()
        self.late_s = 0.0
        """For how long the event that is most overdue in a channel with its own retention should have been deleted."""

    async def run(self) -> None:
        """Maintain the log until cancelled. A server at rest does it once it is back."""
        skipped = 0
        while True:
            await self._pool.demand.until_here(None)
            pause = self._settings.maintenance
            if skipped < ROUNDS_TO_SKIP and self._has_nothing_to_do:
                skipped += 1
            else:
                skipped, self._is_complete = 0, False
                try:
                    with self._pool.demand.upkeep():
                        pause = await self._round()
                except (BusUnavailable, psycopg.Error) as error:
                    self.rounds["failed"] += 1
                    log.warning("maintenance failed, the next round tries again: %s", summary(error))
            # The jitter keeps several servers from coming at the same moment.
            await asyncio.sleep(pause * (0.75 + random() / 2))  # noqa: S311 - not a secret

    async def _round(self) -> float:
        """Make partitions, purge, and return the seconds until the next round."""
        await self.make_partitions()
        purged = await self.purge(self._settings.keep_events, self._settings.keep_hours)
        self._report(purged)
        keeps_channels, self.late_s = await self._row("kept_late")
        self.consumers = Consumers.of(self._settings, *await self._row("consumers"))
        octets, oldest_at, age_s = await self._row("log_size")
        self.log_size = LogSize(octets, oldest_at, age_s, time.monotonic())
        pause = await self._pause()
        self.succeeded_at = time.time()
        self._is_complete = purged.state == "done" and not keeps_channels
        return pause

    @property
    def _has_nothing_to_do(self) -> bool:
        """Whether nobody needs the database, and no id was drawn since a round that did everything.

        Then only events and keys can be due that have become too old.
        """
        return (
            self._is_complete
            and self._last is not None
            and self._last_id() <= self._last[1]
            and self._pool.demand.idle_s >= self._settings.maintenance / 2  # less than any pause between rounds
        )

    async def make_partitions(self) -> int | None:
        """Make the partitions that are missing; return how many, or None if others hold the table."""
        made = 0
        params = {"ahead": PARTITIONS_AHEAD, "size": self._settings.partition_size}
        while True:
            (now,) = await self._row("make_partitions", params)
            if now is None:
                return None
            if now == 0:
                return made
            made += now
            self.made += now
            log.info("made %d partitions", now)

    async def purge(self, keep_events: int, keep_hours: float) -> Purged:
        """Purge until nothing is left or others hold the table. A limit of 0 is no limit."""
        params = {
            "keep_events": keep_events or None,
            "keep": timedelta(hours=keep_hours) if keep_hours else None,
            "keep_keys": timedelta(hours=self._settings.keep_keys_hours) if self._settings.keep_keys_hours else None,
        }
        total = Purged()
        while True:
            got = Purged(*await self._row("purge", params))
            total, self.purged = total.and_then(got), self.purged.and_then(got)
            if got.state != "more":
                return total

    def _report(self, purged: Purged) -> None:
        self.rounds[purged.state] += 1
        if purged.partitions or purged.keys or purged.deleted:
            log.info("purged %s", purged)
        if purged.behind:
            log.warning("events were purged that these consumers lack: %s", ", ".join(purged.behind))
            self.fallen_behind += len(purged.behind)
        self._busy = self._busy + 1 if purged.state == "busy" else 0
        if self._busy and self._busy % BUSY_ROUNDS_BEFORE_WARNING == 0:
            log.warning(
                "%d rounds in a row could not purge everything: a long transaction holds sse_pg.events, or a server "
                "has not yet read the events that are to be purged",
                self._busy,
            )

    async def _pause(self) -> float:
        """Return the seconds until the next round: the setting, or less if the ids would outrun the partitions."""
        last, room = await self._row("partition_room")
        now, before = time.monotonic(), self._last
        self._last = (now, last)
        if room == 0:
            return min(MIN_PAUSE_S, self._settings.maintenance)
        if before is None or last <= before[1]:
            return self._settings.maintenance
        seconds_left: float = room / ((last - before[1]) / max(now - before[0], 0.001))
        return min(self._settings.maintenance, max(MIN_PAUSE_S, seconds_left / 4))

    async def _row(self, name: str, params: Any = None) -> tuple[Any, ...]:
        async with connection(self._pool, upkeep=True) as conn:
            row = await (await conn.execute(query(name), params)).fetchone()
        assert row is not None
        return row
