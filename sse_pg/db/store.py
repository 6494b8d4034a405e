"""The statements behind requests: one method each, on a connection of the pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg

from sse_pg.core.cursor import START, Cursor
from sse_pg.core.event import Event
from sse_pg.core.ranges import Ranges
from sse_pg.db.connection import Connection, deadline, is_unavailable, summary
from sse_pg.db.pool import Pool, connection
from sse_pg.db.queries import query
from sse_pg.errors import BusUnavailable, RuleFailed, TooManySubscriptions

#: A page is read in windows of ids. The first has so many ids, and each further one is wider by a factor.
FIRST_WINDOW_IDS = 1_000_000
WINDOW_GROWTH = 16
#: Events that a page of one event type looks at, whatever their type. A rare type would make it read the whole log.
MAX_EXAMINED_EVENTS = 20_000
#: A page ends after the event with which its payloads have so many bytes, whatever its limit in events is.
MAX_PAGE_BYTES = 4_194_304
#: Seconds that a check of the database may wait for a connection, and then for its response.
PING_DEADLINE_S = 2.0


@dataclass(frozen=True)
class Page:
    """The events of one read, and up to which id the log was purged at that moment."""

    events: list[Event]
    purged_to: int
    full: bool
    """Whether the read ended because it reached a limit, of events or of bytes."""
    expired_to: int = 0
    """Up to which id events of one of the channels were deleted at that moment because of its own retention."""
    reach: int | None = None
    """The id at which the read ended because it had looked at many events of other types; it is not part of it."""
    vouched: Cursor | None = None
    """What can be relied upon to be visible in the read, if it may lack events that others have; see StandbyStore."""


@dataclass(frozen=True)
class Step:
    """One step of an ascending walk through the log."""

    events: list[Event]
    cursor: Cursor
    """The cursor after the step: it covers the events and everything before them."""
    more: bool
    """Whether events are left below the position that the step was made at."""
    position: Cursor
    """That position, or the part of it that the read vouches for."""
    purged_to: int
    """Up to which id the log was purged when the events were read."""
    expired_to: int
    """Up to which id events of one of the channels were deleted by then because of its own retention."""


class Newest(NamedTuple):
    """The ids of the newest events of each channel."""

    ids: dict[str, list[int]]
    """By channel, descending."""
    expired_to: int
    """Up to which id events of one of the channels were deleted before because of its own retention."""
    vouched: Cursor | None
    """As in a page."""


class Deletion(NamedTuple):
    """Events that one transaction deleted."""

    channel: str
    """The digest of the channel."""
    first: int
    last: int
    expired: bool
    """Whether the channel's own retention had ended for them. Otherwise they were erased."""


class Store:
    """Reads and writes the schema sse_pg. Times are microseconds since 2000 (event.timestamp).

    Every method raises BusUnavailable if the database is unavailable.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def page(
        self,
        channels: Sequence[str],
        wanted: Ranges,
        limit: int,
        *,
        max_bytes: int = MAX_PAGE_BYTES,
        event_type: str | None = None,
        descending: bool = False,
    ) -> Page:
        """Return up to ``limit`` stored events of the channels within a set of ids.

        The page ends after the event with which its payloads have ``max_bytes``.
        They are read in windows of ids, beginning at the end from which the page counts. For busy channels one window
        is enough, and it touches one or two partitions, however many there are.
        """
        events: list[Event] = []
        reach = None
        full = False
        async with self.pool.read_share(), connection(self.pool) as conn:
            vouched = await self._vouched(conn)
            if event_type is not None:
                reach = await _reach(conn, channels, wanted, descending=descending)
                if reach is not None:
                    wanted = wanted.above(reach) if descending else wanted.up_to(reach - 1)
            for window in _windows(wanted, descending=descending):
                params = {
                    **_where(channels, window),
                    "limit": limit - len(events),
                    "octets": max_bytes - sum(event.chars for event in events),
                    "event_type": event_type,
                }
                name = "page_desc" if descending else "page"
                rows = await (await conn.execute(query(name), params, prepare=True, binary=True)).fetchall()
                if not rows:
                    raise BusUnavailable("sse_pg.log is empty; a server that starts makes its row anew")
                # These never go back, so those of the last window hold for the windows before it.
                purged_to, expired_to = rows[0][:2]
                events += [Event(*row[2:]) for row in rows if row[2] is not None]
                full = len(events) == limit or (rows[-1][2] is None and rows[-1][4] is not None)  # not an event: more
                if full:
                    reach = None
                    break
        return Page(events, purged_to, full, expired_to, reach, vouched)

    async def _vouched(self, conn: Connection) -> Cursor | None:
        """Return what is visible for certain to later statements; None: everything that was visible to anybody."""
        return None

    async def step(
        self,
        channels: Sequence[str],
        cursor: Cursor,
        position: Cursor,
        limit: int,
        *,
        max_bytes: int = MAX_PAGE_BYTES,
        event_type: str | None = None,
    ) -> Step:
        """Return up to ``limit`` events that ``cursor`` lacks and ``position`` has, ascending.

        The step ends after the event with which the payloads have ``max_bytes``.

        The position must have been read before this call, so that everything that is visible at the position is among
        the rows. Rows that the position does not cover are left for the next step.
        """
        wanted = cursor.missing_up_to(position.high)
        page = await self.page(channels, wanted, limit + 1, max_bytes=max_bytes, event_type=event_type)
        if page.vouched is not None:
            position = position & page.vouched
        rows = page.events[:limit]
        if page.full:
            covered = position.clip(rows[-1].id)
        elif page.reach is not None:
            covered = position.clip(page.reach - 1)
        else:
            covered = position
        events = [event for event in rows if position.offered(event.id)]
        more = page.full or page.reach is not None
        return Step(events, cursor | covered, more, position, page.purged_to, page.expired_to)

    async def newest(self, channels: Sequence[str], position: Cursor, most: int) -> Newest:
        """Return the ids of the last ``most`` events of each channel that ``position`` has.

        They are read in windows of ids, like a page.
        """
        found: dict[str, list[int]] = {channel: [] for channel in channels}
        expired_to = None
        async with self.pool.read_share(), connection(self.pool) as conn:
            vouched = await self._vouched(conn)
            for window in _windows(START.missing(position), descending=True):
                wanting = [channel for channel, ids in found.items() if len(ids) < most]
                if not wanting:
                    break
                most_of = [most - len(found[channel]) for channel in wanting]
                params = {**_where(wanting, window), "most_of": most_of, "all": list(channels)}
                rows = await _planned(conn, "newest", params)
                if expired_to is None:  # what is deleted between two windows, the stream is told about
                    expired_to = int(rows[0][0])
                for _, channel, number in rows:
                    if channel is not None:
                        found[channel].append(number)
        return Newest(found, expired_to or 0, vouched)

    async def position(self) -> Cursor:
        """Return the position of a reader that has read everything that is visible now."""
        async with self.pool.read_share():
            ((high, first, last),) = await self._rows("visible_position")
        position = Cursor(high, Ranges(zip(first, last, strict=True)))
        return position & position  # a cursor ends with an id that was offered, not with a gap

    async def written(self) -> int:
        """Return up to where the WAL is written: everything that is visible now is below that."""
        ((_, written),) = await self._rows("primary_look")
        return int(written)

    async def confirm_epochs(self, high: int, gaps: Ranges) -> None:
        """Note that what a server has read of the log before is in this one: the ids up to ``high`` but for gaps."""
        first, last = [first for first, _ in gaps], [last for _, last in gaps]
        await self._rows("confirm_epochs", {"high": high, "first": first, "last": last})

    async def last_id(self) -> int:
        """Return the last id that was drawn, 0 if there is none."""
        ((last,),) = await self._rows("last_id")
        return int(last)

    async def last_events(self, channels: Sequence[str]) -> list[tuple[str, int, str]]:
        """Return (channel, id, type) of the last event of each of these channels that has events."""
        return [(row[0], row[1], row[2]) for row in await self._rows("last_events", (list(channels),))]

    async def deletions(self, since: int | None) -> tuple[list[Deletion], int]:
        """Return what was deleted row by row since an earlier call, and what to pass to the next call.

        None returns nothing. If the second value is lower than ``since``, this is another database.
        """
        rows = await self._rows("deletions", (None if since is None else str(since),), upkeep=True)
        oldest_running = int(rows[0][0])
        return [Deletion(*row[1:]) for row in rows if row[1] is not None], oldest_running

    async def gone(self, ids: Sequence[int]) -> tuple[set[int], int]:
        """Return which of these events are no longer in the log, of those above the id up to which it was purged.

        Returns this id too.
        """
        async with connection(self.pool, upkeep=True) as conn:
            rows = await _planned(conn, "gone", {"ids": list(ids)})
        return {row[1] for row in rows if row[1] is not None}, rows[0][0]

    async def subscribe(self, user_id: str, channel: str) -> bool:
        """Subscribe a user to a channel; return whether the subscription is new."""
        try:
            return bool((await self._rows("subscribe", (user_id, channel)))[0][0])
        except psycopg.errors.ProgramLimitExceeded as error:
            raise TooManySubscriptions(error.diag.message_primary or summary(error)) from error

    async def unsubscribe(self, user_id: str, channel: str) -> bool:
        """End a subscription; return whether there was one."""
        return bool((await self._rows("unsubscribe", (user_id, channel)))[0][0])

    async def subscriptions(self, user_id: str) -> list[tuple[str, int]]:
        """Return a user's channels, sorted, each with the time of its subscription."""
        return [(row[0], row[1]) for row in await self._rows("subscriptions_of", (user_id,))]

    async def subscriptions_of(self, users: Sequence[str]) -> dict[str, frozenset[str]]:
        """Return the channels of each of these users; users without any are left out."""
        return {row[0]: frozenset(row[1]) for row in await self._rows("subscriptions_of_many", (list(users),))}

    async def control_key(self) -> str:
        """Return the key of the digests in notifications."""
        return str((await self._rows("control_key"))[0][0])

    async def authorize_is_shipped(self) -> bool:
        """Return whether sse_pg.authorize() allows everything, as shipped."""
        return bool((await self._rows("authorize_shipped"))[0][0])

    async def authorize(self, questions: Sequence[tuple[str | None, str, str]], timeout: float) -> list[bool]:
        """Return what sse_pg.authorize() says to each (user, action, channel); ``timeout`` in seconds for all of them.

        Raises RuleFailed if the function fails or takes longer.
        """
        users, actions, channels = map(list, zip(*questions, strict=True))
        async with connection(self.pool) as conn:
            try:
                async with conn.transaction():
                    await conn.execute(query("authorize_timeout"), (f"{max(1, round(timeout * 1000))}ms",))
                    cursor = await conn.execute(
                        query("authorize"), {"users": users, "actions": actions, "channels": channels}
                    )
                    return [bool(row[0]) for row in await cursor.fetchall()]
            except psycopg.errors.QueryCanceled as error:
                raise RuleFailed(f"it takes longer than {timeout:g} s", late=True) from error
            except psycopg.Error as error:
                if is_unavailable(error):
                    raise
                raise RuleFailed(summary(error), late=False) from error

    async def servers(self) -> list[tuple[int, str, int, str, int, int]]:
        """Return (id, name, pid, version, started, active connections) of each server that is up."""
        return [tuple(row) for row in await self._rows("servers_live")]

    async def stats(self) -> tuple[Any, ...]:
        """Return (version, newest id, oldest id, purged to, settled to, partitions, publishers in flight)."""
        return (await self._rows("stats"))[0]

    async def servers_state(self) -> list[tuple[Any, ...]]:
        """Return what ``servers`` returns, and (position, asleep, awake, polls) of each."""
        return await self._rows("servers_state")

    async def overview_tables(self, most: int, most_characters: int) -> list[tuple[Any, ...]]:
        """Return (table, channel, operations, owner, problem) of published tables, those with a problem first."""
        return await self._rows("overview_tables", {"most": most, "most_characters": most_characters})

    async def overview_consumers(self, most: int, most_events: int, most_channels: int) -> list[tuple[Any, ...]]:
        """Return (name, first channels, number of channels, lag, oldest at, updated at) of those furthest behind."""
        params = {"most": most, "most_events": most_events, "most_channels": most_channels}
        return await self._rows("overview_consumers", params)

    async def overview_kept(self, most: int) -> list[tuple[Any, ...]]:
        """Return (channel, hours, expired to, seconds late) of channels with a retention of their own."""
        return await self._rows("overview_kept", {"most": most})

    async def update_server(self, server_id: int, active: int, position: Cursor) -> bool:
        """Write how many streams a server has, and what it has read. Return whether its row is there."""
        async with connection(self.pool, upkeep=True) as conn:
            cursor = await conn.execute(query("server_update"), (active, position.high, read_to(position), server_id))
            return bool(await cursor.fetchall())

    async def remove_server(self, server_id: int) -> None:
        """Delete a server's row."""
        async with connection(self.pool, upkeep=True) as conn:
            await conn.execute(query("server_delete"), (server_id,))

    async def ping(self) -> None:
        """Find out whether the log can be read. Raises BusUnavailable if not, whatever the reason is.

        Who asks waits for seconds only, whatever a request may wait: load balancers take no response for a worse one.
        """
        try:
            async with connection(self.pool, upkeep=True, within=PING_DEADLINE_S) as conn:
                with deadline(conn, PING_DEADLINE_S):
                    await conn.execute(query("ping"))
        except psycopg.Error as error:
            raise BusUnavailable(summary(error)) from error

    async def _rows(self, name: str, params: Any = None, *, upkeep: bool = False) -> list[tuple[Any, ...]]:
        async with connection(self.pool, upkeep=upkeep) as conn:
            cursor = await conn.execute(query(name), params, binary=True)
            return await cursor.fetchall()


def _where(channels: Sequence[str], wanted: Ranges) -> dict[str, object]:
    """Return the parameters that say which events a statement looks at."""
    return {
        "channels": list(channels),
        "first": [first for first, _ in wanted],
        "last": [last for _, last in wanted],
        "least": wanted.spans[0][0] if wanted else 1,
        "most": wanted.spans[-1][1] if wanted else 0,
    }


async def _planned(conn: Connection, name: str, params: dict[str, object]) -> list[tuple[Any, ...]]:
    """Run a statement on the log with the plan that is good for it, in one round trip.

    The settings for that end with the transaction: a pooler may give the session to others.
    """
    async with conn.pipeline(), conn.transaction():
        await conn.execute(query("plan_once"))
        return await (await conn.execute(query(name), params, prepare=True, binary=True)).fetchall()


async def _reach(conn: Connection, channels: Sequence[str], wanted: Ranges, *, descending: bool) -> int | None:
    """Return the id at which a page of one event type must end; None if it may look at all that is wanted."""
    scans = len(channels) * len(wanted.spans)
    if not scans:
        return None
    params = {**_where(channels, wanted), "events": max(1, MAX_EXAMINED_EVENTS // scans)}
    ((reach,),) = await _planned(conn, "page_reach_desc" if descending else "page_reach", params)
    return None if reach is None else int(reach)


def _windows(wanted: Ranges, *, descending: bool) -> Iterator[Ranges]:
    """Cut a set of ids into windows, each wider than the one before. An empty set is one window."""
    width = FIRST_WINDOW_IDS
    while wanted and wanted.spans[-1][1] - wanted.spans[0][0] >= width:
        if descending:
            edge = wanted.spans[-1][1] - width
            yield wanted.above(edge)
            wanted = wanted.up_to(edge)
        else:
            edge = wanted.spans[0][0] + width - 1
            yield wanted.up_to(edge)
            wanted = wanted.above(edge)
        width *= WINDOW_GROWTH
    yield wanted


def read_to(position: Cursor) -> int:
    """Return up to which id a reader at this position lacks nothing that may still come."""
    return position.gaps.spans[0][0] - 1 if position.gaps else position.high
