"""The tail: reads the log from its position and hands the events to the hub.

Live delivery, catching up after a lost connection, a missed bell and the start of a server are the same code: read what
lies above the position. This file has what every tail shares: the connection and how it is replaced, the comparison of
the log with the one that was read before, and one read with everything that follows from it. When to read is decided by
``listening_tail`` and ``polling_tail``. docs/guarantee.md argues why no event is overlooked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from random import random

import psycopg

from sse_pg.core.cursor import Cursor, trimmed
from sse_pg.core.epoch import Epoch
from sse_pg.core.frontier import Frontier, GapCounts
from sse_pg.core.ranges import Ranges
from sse_pg.core.tail_meter import State, TailMeter
from sse_pg.db import tail_session
from sse_pg.db.connect_failure import without_address
from sse_pg.db.connection import CONNECT_TIMEOUT_S, Connection, deadline, is_unavailable, summary
from sse_pg.db.demand import Demand
from sse_pg.db.hosts import Hosts
from sse_pg.db.store import read_to
from sse_pg.db.tail_session import Publishers, Read
from sse_pg.delivery import succession
from sse_pg.delivery.bell import Bell
from sse_pg.delivery.control_listener import ControlListener
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.waiters import Waiters
from sse_pg.errors import BusUnavailable, LogUnreadable

log = logging.getLogger(__name__)

#: Events of one read: enough to make the round trip cheap, few enough to hand them on in about a millisecond.
READ_LIMIT_ROWS = 500
#: Ids of one look at which of those that may still come are there: a fraction of a second, and a few hundred kilobytes.
LOOK_IDS = 1_000_000
#: The tail reads on when what a sweep has still to bring to streams is no longer than this ...
MAX_BACKLOG_CHARS = 8_388_608
#: ... and looks after this time.
BACKLOG_PAUSE_S = 0.001
#: Ranges of open ids in a note of what is settled. If there are more, the note ends below the next one.
MAX_NOTED_RANGES = 500
#: Time between reads while events are held back by a missing id.
GAP_POLL_S = 0.002
#: Time after which a read asks again which publishers are in flight, while ids are open. Asking takes longer than
#: reading, and says only which ids are dead: those that commit are simply read.
ASK_PAUSE_S = 0.005
#: Time without a response after which the connection is considered dead.
RESPONSE_DEADLINE_S = 10.0
#: Longest pause before the next attempt to connect, on average.
MAX_RECONNECT_PAUSE_S = 1.0


def copied_by(subscription: str) -> str:
    """Return why nothing is read, as check_epoch() says it."""
    return f"the subscription {subscription} copies events into this log; servers wait until it is dropped or disabled"


class Tail(ABC):
    """Follows the log while ``run`` runs, over any number of connections."""

    def __init__(
        self,
        hub: Hub,
        control: ControlListener,
        demand: Demand,
        *,
        order_wait: float,
        poll: float,
        on_connect: Callable[[Connection], Awaitable[None]],
        on_rest: Callable[[Connection], Awaitable[None]],
        rest: Callable[[], Awaitable[None]],
    ) -> None:
        """``order_wait`` and ``poll`` are in seconds.

        ``on_connect`` is awaited with each new connection before the log is read, ``on_rest`` with the connection
        before it is closed because nobody needs the database. ``rest`` then returns when somebody does.
        """
        self._hub = hub
        self._control = control
        self._demand = demand
        self._order_wait = order_wait
        self._poll = poll
        self._on_connect = on_connect
        self._on_rest = on_rest
        self._until_needed = rest
        self.hosts = Hosts(None)
        """Where the connection may lead."""
        self._frontier: Frontier | None = None
        self.gaps = GapCounts()
        self.meter = TailMeter(time.monotonic())
        self._bell = Bell(control, self.meter)
        self._waiters = Waiters()
        self._filters = False
        """Whether the database can leave out payloads that nobody here wants."""
        self._ask_at = 0.0
        """When a read asks again who is in flight, by time.monotonic()."""
        self._complete_to: int | None = None
        """The last id drawn, if every id up to it was read or can no longer come; None if that is not known."""
        self._noted: tuple[int, Ranges] | None = None
        """What this tail has noted in the database last: up to which id the log is settled, except for which ids."""
        self.listening = asyncio.Event()
        """Set while the connection is up and the log was read on it."""
        self.last_error = f"{self._connection_name} is not up yet"
        self.read_at: float | None = None
        """When the log was last read, by time.monotonic(); None before the first read."""

    # ------------------------------------------------------------ what tails differ in

    #: How an error calls the connection.
    _connection_name = "the connection that reads the log"

    @abstractmethod
    async def _connect(self) -> Connection:
        """Open the connection."""

    @abstractmethod
    async def _set_up(self, conn: Connection) -> None:
        """Prepare a new connection, up to the comparison of the log's identity."""

    @abstractmethod
    async def _follow(self, conn: Connection) -> None:
        """Read the log until nobody needs the database."""

    @staticmethod
    def _deadline(conn: Connection) -> AbstractContextManager[None]:
        """Cut the connection if the statements in this block take too long."""
        return deadline(conn, RESPONSE_DEADLINE_S)

    @property
    @abstractmethod
    def _state(self) -> State:
        """What the tail is doing while its connection is up."""

    # ------------------------------------------------------------ for the other parts

    async def run(self) -> None:
        """Follow the log until cancelled. A lost connection is replaced; the pauses between attempts grow."""
        attempt = 0
        while True:
            if self._demand.is_away or self._demand.begin_rest():
                await self._rest()
                attempt = 0
            try:
                # Not wait_for(), which can lose a cancellation in Python 3.11.
                async with asyncio.timeout(RESPONSE_DEADLINE_S + CONNECT_TIMEOUT_S * (self.hosts.count - 1)):
                    conn = await self._connect()
                try:
                    await self._start(conn)
                    self._demand.end_rest()
                    attempt = 0
                    await self._follow(conn)
                finally:
                    self.listening.clear()
                    self.meter.enter("down", time.monotonic())
                    await conn.close()
            except (psycopg.Error, OSError, TimeoutError, BusUnavailable, LogUnreadable) as error:
                down = not isinstance(error, psycopg.Error | LogUnreadable) or is_unavailable(error)
                level = logging.WARNING if down else logging.ERROR
                trouble = f"{self._connection_name} is down" if down else "the log cannot be read"
                self.last_error = f"{trouble}: {without_address(error)}"  # strangers see it in /readyz
                detail = f"{trouble}: {summary(error)}"
            except Exception:
                # A bug. If the tail ended, the server would deliver nothing and nobody would notice.
                self.last_error = detail = "the tail failed; the server's log has the error"
                log.exception("the tail failed")
                level = logging.ERROR
            else:
                continue
            self._demand.end_rest()  # requests find out for themselves whether the database is there
            self.meter.failures += 1
            pause = min(MAX_RECONNECT_PAUSE_S, 0.05 * 2**attempt) * (0.5 + random())  # noqa: S311 - not a secret
            attempt = min(attempt + 1, 10)
            log.log(level, "%s; next attempt in %.2f s", detail, pause)
            await asyncio.sleep(pause)

    def attend(self) -> None:
        """Look at once, and often from now on, because a stream has been opened while there was none."""
        self._bell.ring()

    async def fresh(self) -> None:
        """Wait until everything that a read beginning after this call finds is handed on."""
        waiter = self._waiters.ask()
        self._bell.ring()
        await waiter

    async def catch_up(self, claimed: Cursor) -> None:
        """Hand on all that a client which claims this cursor may have been offered elsewhere."""
        await self.fresh()

    @property
    def open(self) -> Ranges:
        """The missing ids, below the highest one read, that may still come."""
        return self._frontier.open if self._frontier is not None else Ranges()

    # ------------------------------------------------------------ starting

    async def _start(self, conn: Connection) -> None:
        """Compare the log with the one that was read before, begin or go on, and read."""
        with self._deadline(conn):
            await self._set_up(conn)
            epochs = await self._epochs(conn)
            publishers = await self._publishers(conn)
        concerned = await self._begin(conn, publishers, epochs)
        self._complete_to = None
        self._control.missed()
        try:
            await self._read_log(conn, settle=True)
        finally:
            self._bring_up(concerned)
        self.last_error = ""
        self.meter.connections += 1
        self.meter.enter(self._state, time.monotonic())
        self.listening.set()

    async def _begin(self, conn: Connection, publishers: Publishers, epochs: list[Epoch]) -> list[Stream]:
        """Begin, or go on where the last connection ended, or begin anew if this is another log.

        Returns the streams that left the live delivery because events of theirs were deleted meanwhile.
        """
        concerned: list[Stream] = []
        if self._frontier is None:
            # Ids that are missing now hold nothing back: a stream that starts now gets no event from before.
            start = await self._end_of_log(conn, publishers)
            self._frontier = Frontier(start, 0.0, self.gaps)
            self._hub.begin(start)
        elif begun := [
            epoch for epoch in epochs if epoch.starts_at not in {known.starts_at for known in self._hub.epochs}
        ]:
            with self._deadline(conn):
                self._frontier = await succession.go_on(conn, self._hub, self._frontier, begun)
                epochs = await self._epochs(conn)
            self._noted = None
        elif self._went_back(publishers):
            await self._begin_anew(conn, publishers)
        else:
            with self._deadline(conn):
                await tail_session.deletions_ended(conn)
                expired = await tail_session.expired_channels(conn, read_to(self._frontier.position))
            concerned = self._hub.expire_channels(expired)
        self._hub.epochs = epochs
        return concerned

    def _went_back(self, publishers: Publishers) -> bool:
        """Return whether lower ids are drawn than were read: this log has nothing to do with the one before."""
        assert self._frontier is not None
        return publishers.last < self._frontier.seen

    def _bring_up(self, streams: list[Stream]) -> None:
        """Let streams catch up that left the live delivery, unless they do so already."""
        for stream in streams:
            if stream.reason is None and stream.task is None and stream.held is None and not stream.live:
                self._hub.bring_up(stream)

    async def _epochs(self, conn: Connection) -> list[Epoch]:
        self._control.epoch_began = False
        return await tail_session.epochs(conn)

    async def _end_of_log(self, conn: Connection, publishers: Publishers) -> Cursor:
        """Return the position of a reader that has read everything that is visible.

        Only the ids that may still come are looked at, so a start takes as long for a log of ten million events as for
        an empty one. (Rejected: to begin below the first of these ids and to read on from there. A prepared transaction
        that was forgotten for a day made every server read that day.)
        """
        gaps = Ranges()
        for part in publishers.alive.up_to(publishers.last).parts(LOOK_IDS):
            with self._deadline(conn):
                gaps = gaps | await tail_session.missing(conn, part)
        return trimmed(publishers.last, gaps)

    async def _begin_anew(self, conn: Connection, publishers: Publishers) -> Frontier:
        """Go on in another log, which has nothing to do with the one that was read."""
        assert self._frontier is not None
        log.error(
            "this is not the log that was read up to id %d: its last id is %d", self._frontier.seen, publishers.last
        )
        start = await self._end_of_log(conn, publishers)
        frontier = self._frontier = Frontier(start, 0.0, self.gaps)
        self._noted = None
        self._hub.restart(start)
        return frontier

    def _refuse_copies(self, subscription: str | None) -> None:
        """Stop reading while a subscription copies events into the log: their ids may be below what was read.

        Live streams may have lost some of them. A server that starts refuses such a log at once, in check_epoch().
        """
        if subscription is not None:
            self._hub.go_back(self._hub.position)
            raise BusUnavailable(copied_by(subscription))

    async def _read_epochs_if_begun(self, conn: Connection) -> None:
        """Read the epochs again if begin_epoch() was called.

        What this server has read belongs to this log; a client's cursor may not.
        """
        if self._control.epoch_began:
            with self._deadline(conn):
                self._hub.epochs = await self._epochs(conn)

    # ------------------------------------------------------------ the rest

    async def _end_following(self, conn: Connection) -> None:
        """Let go of the database, because nobody needs it."""
        self.listening.clear()
        self.last_error = "the server comes back to the database"
        await self._note_settled(conn)
        with self._deadline(conn):
            await self._on_rest(conn)

    async def _rest(self) -> None:
        """Wait, without a connection, until somebody needs the database. Then follow the log as a new server does."""
        self._frontier = None
        self._noted = None
        self.meter.enter("rest", time.monotonic())
        await self._until_needed()
        self.meter.enter("down", time.monotonic())

    # ------------------------------------------------------------ reading

    @property
    def _held(self) -> bool:
        return self._frontier is not None and self._frontier.holding

    async def _publishers(self, conn: Connection) -> Publishers:
        """Read who is in flight."""
        publishers = await tail_session.publishers(conn)
        self._note(publishers)
        return publishers

    def _note(self, publishers: Publishers) -> None:
        """Note who was in flight."""
        self.meter.last_id = publishers.last

    async def _read_log(self, conn: Connection, *, settle: bool) -> int:
        """Read everything that is new and hand it on; return the number of events.

        ``settle``: also read who is in flight if no id is open. Raises LogUnreadable at an event that cannot be
        delivered, after the events before it are handed on.
        """
        waiting = self._waiters.begin()
        found, cut_off = 0, True
        try:
            while cut_off:
                count, cut_off = await self._read_batch(conn, settle=settle)
                found += count
        except BaseException:
            self._waiters.requeue(waiting)
            raise
        assert self._frontier is not None
        self._frontier.wait = self._order_wait
        self._waiters.end(waiting, self._frontier)
        return found

    async def _read_batch(self, conn: Connection, *, settle: bool) -> tuple[int, bool]:
        """Make one read and hand on what it found; return the number of events, and whether a limit cut it off."""
        frontier = self._frontier
        assert frontier is not None
        while self._hub.fan_out.backlog > MAX_BACKLOG_CHARS:  # noqa: ASYNC110 - rare, and a sweep signals nothing
            await asyncio.sleep(BACKLOG_PAUSE_S)
        self._complete_to = None
        asks = settle or (bool(frontier.open) and time.monotonic() >= self._ask_at)
        read, frontier = await self._read(conn, frontier, asks=asks)
        now = time.monotonic()
        self.read_at = now
        self.meter.reads += 1
        if read.publishers is not None:
            self._ask_at = now + ASK_PAUSE_S
            self._note(read.publishers)
        frontier.feed(read.events, now)
        if read.more:  # a prefix: nothing is known above its last event
            known_to = read.events[-1].id if read.events else 0
            await self._skip_purged(conn, frontier, min(read.purged_to, known_to))
        else:
            await self._skip_purged(conn, frontier, read.purged_to)
            if read.publishers is not None:
                frontier.settle(read.publishers.last, read.publishers.alive)
                if not read.publishers.alive.up_to(read.publishers.last):
                    self._complete_to = read.publishers.last
        await self._control.apply()
        released = frontier.release(now)
        try:
            self._hub.deliver(released, frontier.position)
        except Exception:  # a bug; the frontier has passed these events
            self._hub.abandon(frontier.position)
            raise
        self.meter.note_missing(frontier.open, now)
        if read.fault is not None:
            raise LogUnreadable(read.fault)
        return len(read.events), read.more

    async def _read(self, conn: Connection, frontier: Frontier, *, asks: bool) -> tuple[Read, Frontier]:
        """Read events, and with ``asks`` first who is in flight; return the read, and the frontier that it is for.

        This is another frontier than before if the log was replaced.
        """
        followed = self._hub.followed.filter(time.monotonic()) if self._filters else None
        with self._deadline(conn):
            read = await self._events(conn, frontier, followed, asks=asks)
        if read.publishers is None or read.publishers.last >= frontier.seen:
            return read, frontier
        # TRUNCATE ... RESTART IDENTITY, a setval. What was read lies above an id of the old log.
        with self._deadline(conn):
            await tail_session.check_epoch(conn)  # corrects what is noted about the old log
            publishers = await self._publishers(conn)
        frontier = await self._begin_anew(conn, publishers)
        with self._deadline(conn):
            return await self._events(conn, frontier, followed, asks=True), frontier

    async def _events(self, conn: Connection, frontier: Frontier, followed: bytes | None, *, asks: bool) -> Read:
        """Read the events that the frontier lacks, see tail_session."""
        return await tail_session.events(
            conn, frontier.seen, frontier.open, READ_LIMIT_ROWS, asks=asks, followed=followed
        )

    async def _skip_purged(self, conn: Connection, frontier: Frontier, purged_to: int) -> None:
        """If events were purged before this server read them, skip them and tell the streams."""
        if not frontier.misses_up_to(purged_to):
            return
        if purged_to > frontier.seen and not await self._was_drawn(conn, purged_to):
            return  # the note is about another log, such as the one that this table was copied from
        log.error("events up to id %d were purged before this server read all of them", purged_to)
        frontier.expire(purged_to)
        self._hub.expire(frontier.position)

    async def _was_drawn(self, conn: Connection, number: int) -> bool:
        """Return whether an id up to which the log was purged is one of this log. If not, the note is corrected."""
        with self._deadline(conn):
            if number <= (await tail_session.publishers(conn)).last:
                return True
            await tail_session.check_epoch(conn)
        return False

    @property
    def _settled(self) -> tuple[int, Ranges]:
        """Up to which id the log is settled, and except for which ids."""
        frontier = self._frontier
        assert frontier is not None
        spans = frontier.open.spans
        if len(spans) > MAX_NOTED_RANGES:
            high = spans[MAX_NOTED_RANGES][0] - 1
            return high, frontier.open.up_to(high)
        return frontier.seen, frontier.open

    async def _note_settled(self, conn: Connection) -> bool:
        """Note in the database up to which id the log is settled, if that has changed; return whether it is noted."""
        settled = self._settled
        if settled != self._noted:
            with self._deadline(conn):
                if not await tail_session.note_settled(conn, *settled):
                    return False
            self._noted = settled
        return True
