"""The tail: reads the log from its position, on the one connection that LISTENs, and hands the events to the hub.

Live delivery, catching up after a lost connection, a missed bell and the start of a server are the same code: read what
lies above the position. The bell only says when to read.

A tail is asleep (it waits for the bell) or awake (it polls). It shows which with shared locks that publishers check
before they ring (``announce`` in sql/schema.sql). docs/guarantee.md argues why no event is overlooked.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Awaitable, Callable
from random import random

import psycopg

from sse_pg.core.frontier import Frontier, GapCounts
from sse_pg.core.ranges import Ranges
from sse_pg.core.tail_meter import TailMeter
from sse_pg.db import tail_session
from sse_pg.db.connection import Connection, connect_listener, deadline, is_unavailable, summary
from sse_pg.db.demand import Demand
from sse_pg.db.store import read_to
from sse_pg.db.tail_session import Publishers
from sse_pg.delivery.bell import Bell
from sse_pg.delivery.control_listener import ControlListener
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.waiters import Waiters
from sse_pg.errors import BusUnavailable, LogUnreadable

log = logging.getLogger(__name__)

#: Events of one read: enough to make the round trip cheap, few enough to hand them on before the next read.
READ_LIMIT_ROWS = 2000
#: The tail reads on when what a sweep has still to bring to streams is no longer than this ...
MAX_BACKLOG_CHARS = 8_388_608
#: ... and looks after this time.
BACKLOG_PAUSE_S = 0.001
#: The tail wakes up when this many bells that found events came within twice the time of as many polls ...
BELLS_TO_WAKE = 10
#: ... and falls asleep when this many polls in a row found nothing.
POLLS_TO_SLEEP = 25
#: Seconds until it is tried again to fall asleep, if another session holds the lock that shows it.
SLEEP_RETRY_S = 10.0
#: Time between reads while events are held back by a missing id.
GAP_POLL_S = 0.002
#: Time after which a read asks again which publishers are in flight, while ids are open. Asking takes longer than
#: reading, and says only which ids are dead: those that commit are simply read.
ASK_PAUSE_S = 0.005
#: Time between reads of a tail that has fallen asleep, while a publisher is in flight that may not ring for it.
IN_FLIGHT_POLL_S = 0.025
#: With no stream open, a tail that has read everything looks this many times less often than its safety reads are ...
QUIET_FACTOR = 60
#: ... but at least this often.
MAX_QUIET_S = 60.0
#: Time without a response after which the connection is considered dead.
RESPONSE_DEADLINE_S = 10.0
#: Longest pause before the next attempt to connect, on average.
MAX_RECONNECT_PAUSE_S = 1.0


class Pause(enum.Enum):
    """Why a sleeping tail waits for the bell only for a while."""

    HELD = enum.auto()
    """Events are held back by a missing id."""
    IN_FLIGHT = enum.auto()
    """A publisher is in flight that may not ring."""
    SAFETY = enum.auto()
    """A bell may be lost."""
    QUIET = enum.auto()
    """The same, but nobody waits for an event."""


class Tail:
    """Follows the log while ``run`` runs, over any number of connections."""

    def __init__(
        self,
        url: str | None,
        hub: Hub,
        control: ControlListener,
        demand: Demand,
        *,
        order_wait: float,
        poll: float,
        safety_read: float,
        masked: bool,
        on_connect: Callable[[Connection], Awaitable[None]],
        on_rest: Callable[[Connection], Awaitable[None]],
        rest: Callable[[], Awaitable[None]],
    ) -> None:
        """``order_wait``, ``poll`` and ``safety_read`` are in seconds.

        ``masked``: the tail may be awake, and publishers then need not ring. ``on_connect`` is awaited with each new
        connection before the log is read, ``on_rest`` with the connection before it is closed because nobody needs the
        database. ``rest`` then returns when somebody does.
        """
        self._url = url
        self._hub = hub
        self._control = control
        self._demand = demand
        self._order_wait = order_wait
        self._poll = poll
        self._safety_read = safety_read
        self._pauses = {
            Pause.HELD: GAP_POLL_S,
            Pause.IN_FLIGHT: IN_FLIGHT_POLL_S,
            Pause.SAFETY: safety_read,
            Pause.QUIET: max(safety_read, min(MAX_QUIET_S, QUIET_FACTOR * safety_read)),
        }
        self._masked = masked
        self._on_connect = on_connect
        self._on_rest = on_rest
        self._until_needed = rest
        self._frontier: Frontier | None = None
        self.gaps = GapCounts()
        self.meter = TailMeter(time.monotonic())
        self._bell = Bell(control, self.meter)
        self._waiters = Waiters()
        self._fell_asleep_at: int | None = None
        """The last id drawn when the tail fell asleep, while a publisher may be in flight that does not ring for it."""
        self._noted_settled = 0
        self._ask_at = 0.0
        """When a read asks again who is in flight, by time.monotonic()."""
        self._complete_to: int | None = None
        """The last id drawn, if every id up to it was read or can no longer come; None if that is not known."""
        self._busy_bells: list[float] = []
        self.listening = asyncio.Event()
        """Set while the connection is up and the log was read on it."""
        self.last_error = "the LISTEN connection is not up yet"
        self.awake = False
        self.read_at: float | None = None
        """When the log was last read, by time.monotonic(); None before the first read."""

    async def run(self) -> None:
        """Follow the log until cancelled. A lost connection is replaced; the pauses between attempts grow."""
        attempt = 0
        while True:
            if self._demand.is_away or self._demand.begin_rest():
                await self._rest()
                attempt = 0
            try:
                # Not wait_for(), which can lose a cancellation in Python 3.11.
                async with asyncio.timeout(RESPONSE_DEADLINE_S):
                    conn = await connect_listener(self._url)
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
                trouble = "the LISTEN connection is down" if down else "the log cannot be read"
                self.last_error = f"{trouble}: {summary(error)}"
            except Exception:
                # A bug. If the tail ended, the server would deliver nothing and nobody would notice.
                self.last_error = "the tail failed; the server's log has the error"
                log.exception("the tail failed")
                level = logging.ERROR
            else:
                continue
            self._demand.end_rest()  # requests find out for themselves whether the database is there
            self.meter.failures += 1
            pause = min(MAX_RECONNECT_PAUSE_S, 0.05 * 2**attempt) * (0.5 + random())  # noqa: S311 - not a secret
            attempt = min(attempt + 1, 10)
            log.log(level, "%s; next attempt in %.2f s", self.last_error, pause)
            await asyncio.sleep(pause)

    def attend(self) -> None:
        """Look at once, and often from now on, because a stream has been opened while there was none."""
        self._bell.ring()

    async def fresh(self) -> None:
        """Wait until everything that a read beginning after this call finds is handed on."""
        waiter = self._waiters.ask()
        self._bell.ring()
        await waiter

    @property
    def open(self) -> Ranges:
        """The missing ids, below the highest one read, that may still come."""
        return self._frontier.open if self._frontier is not None else Ranges()

    # ------------------------------------------------------------ starting

    async def _start(self, conn: Connection) -> None:
        """LISTEN, then read: an event that is committed in between is read or rings the bell, or both."""
        conn.add_notify_handler(self._bell.heard)
        with deadline(conn, RESPONSE_DEADLINE_S):
            await tail_session.listen(conn)
            await self._on_connect(conn)
            self.awake = not await tail_session.fall_asleep(conn, was_awake=False)
            if self.awake:
                await tail_session.wake_up(conn, was_asleep=False)
            await tail_session.check_epoch(conn)
            epochs = await self._epochs(conn)
            publishers = await self._publishers(conn)
        start = publishers.start
        concerned: list[Stream] = []
        if self._frontier is None:
            # Ids that are missing now hold nothing back: a stream that starts now gets no event from before.
            self._frontier = Frontier(start, 0.0, self.gaps)
            self._hub.begin(start)
        elif publishers.last < self._frontier.seen or len(epochs) > len(self._hub.epochs):
            self._begin_anew(publishers)
        else:
            with deadline(conn, RESPONSE_DEADLINE_S):
                expired = await tail_session.expired_channels(conn, read_to(self._frontier.position))
            concerned = self._hub.expire_channels(expired)
        self._hub.epochs = epochs
        self._fell_asleep_at = None if self.awake else publishers.last
        self._complete_to = None
        self._control.missed()
        try:
            await self._read_log(conn, settle=True)
        finally:
            for stream in concerned:
                if stream.reason is None and stream.task is None and stream.held is None and not stream.live:
                    self._hub.bring_up(stream)
        self.last_error = ""
        self.meter.connections += 1
        self.meter.enter("awake" if self.awake else "asleep", time.monotonic())
        self.listening.set()

    async def _epochs(self, conn: Connection) -> list[tuple[int, int]]:
        self._control.epoch_began = False
        return await tail_session.epochs(conn)

    def _begin_anew(self, publishers: Publishers) -> Frontier:
        """Go on in another log: a restored backup, another database, or a failover that may have lost commits."""
        assert self._frontier is not None
        log.error(
            "this is not the log that was read up to id %d: its last id is %d", self._frontier.seen, publishers.last
        )
        frontier = self._frontier = Frontier(publishers.start, 0.0, self.gaps)
        self._noted_settled = 0
        self._hub.restart(publishers.start)
        return frontier

    # ------------------------------------------------------------ following

    async def _follow(self, conn: Connection) -> None:
        idle = 0
        awake_until = 0.0
        last_settled = time.monotonic()
        while not self._demand.begin_rest():
            is_safety_read = False
            if self.awake:
                woken = await self._bell.pause(GAP_POLL_S if self._held else self._poll)
            else:
                pause, due = self._pause, self._demand.rests_in_s
                limit = self._pauses[pause]
                woken = await self._bell.wait(conn, limit if due is None else min(limit, due))
                if not woken and due is not None and due < limit:
                    continue  # the time has come to let go of the database, unless somebody has needed it since
                if not woken and pause is Pause.QUIET and await self._finds_nothing(conn):
                    continue
                is_safety_read = not woken and pause in (Pause.SAFETY, Pause.QUIET)
            if self._control.epoch_began:
                # begin_epoch() was called. What this server has read belongs to this log; a client's cursor may not.
                with deadline(conn, RESPONSE_DEADLINE_S):
                    self._hub.epochs = await self._epochs(conn)
            now = time.monotonic()
            settle = self._fell_asleep_at is not None or now - last_settled >= self._safety_read
            found = await self._read_log(conn, settle=settle)
            if is_safety_read:
                self.meter.safety_reads[found > 0] += 1
            if now - last_settled >= self._safety_read:
                await self._note_settled(conn)
                with deadline(conn, RESPONSE_DEADLINE_S):
                    self.meter.queue_usage = await tail_session.queue_usage(conn)
                last_settled = now
            if self.awake:
                idle = 0 if found else idle + 1
                if idle >= POLLS_TO_SLEEP and now >= awake_until and not await self._fall_asleep(conn):
                    awake_until = now + SLEEP_RETRY_S
            elif woken and found and self._busy(now):
                await self._wake_up(conn)
                idle = 0
        self.listening.clear()
        self.last_error = "the server comes back to the database"
        await self._note_settled(conn)
        with deadline(conn, RESPONSE_DEADLINE_S):
            await self._on_rest(conn)

    @property
    def _pause(self) -> Pause:
        """Why a sleeping tail waits for the bell only for a while."""
        if self._held:
            return Pause.HELD
        if self._fell_asleep_at is not None:
            return Pause.IN_FLIGHT
        assert self._frontier is not None
        is_noted = self._noted_settled >= self._frontier.seen
        if self._hub.streams or self._complete_to is None or self.open or not is_noted:
            return Pause.SAFETY
        return Pause.QUIET

    async def _finds_nothing(self, conn: Connection) -> bool:
        """Return whether no id was drawn since everything was read: a safety read for which nobody waits."""
        with deadline(conn, RESPONSE_DEADLINE_S):
            last, self.meter.queue_usage = await tail_session.look(conn)
        if last != self._complete_to:
            return False
        self.read_at = time.monotonic()
        self.meter.safety_reads[False] += 1
        return True

    async def _rest(self) -> None:
        """Wait, without a connection, until somebody needs the database. Then follow the log as a new server does."""
        self._frontier = None
        self._noted_settled = 0
        self.meter.enter("rest", time.monotonic())
        await self._until_needed()
        self.meter.enter("down", time.monotonic())

    @property
    def _held(self) -> bool:
        return self._frontier is not None and self._frontier.holding

    def _busy(self, now: float) -> bool:
        """Note a bell that found events; return whether the bell rings about as often as polling would read."""
        if not self._masked:
            return False
        self._busy_bells.append(now)
        if len(self._busy_bells) < BELLS_TO_WAKE:
            return False
        del self._busy_bells[:-BELLS_TO_WAKE]
        return now - self._busy_bells[0] < 2 * BELLS_TO_WAKE * self._poll

    async def _wake_up(self, conn: Connection) -> None:
        """Start to poll. Publishers see "awake" before "asleep" ends; one that sees both rings."""
        with deadline(conn, RESPONSE_DEADLINE_S):
            await tail_session.wake_up(conn)
        self.awake = True
        self.meter.enter("awake", time.monotonic())
        self._busy_bells.clear()
        self._fell_asleep_at = None

    async def _fall_asleep(self, conn: Connection) -> bool:
        """Show "asleep", and keep polling while a publisher is in flight that may have looked before that.

        A publisher takes its lock before it looks. If it looked before "asleep" was shown, its bound is at most the
        last id drawn by now, and either it still holds its lock or it has ended and its rows are visible.
        Returns False if "asleep" cannot be shown.
        """
        with deadline(conn, RESPONSE_DEADLINE_S):
            if not await tail_session.fall_asleep(conn, was_awake=True):
                return False
            self._fell_asleep_at = (await self._publishers(conn)).last
        self.awake = False
        self.meter.enter("asleep", time.monotonic())
        return True

    # ------------------------------------------------------------ reading

    async def _publishers(self, conn: Connection) -> Publishers:
        """Read who is in flight."""
        publishers = await tail_session.publishers(conn)
        self._note(publishers)
        return publishers

    def _note(self, publishers: Publishers) -> None:
        """Note when the publishers that may not ring have ended."""
        self.meter.last_id = publishers.last
        if self._fell_asleep_at is not None and publishers.all_began_after(self._fell_asleep_at):
            self._fell_asleep_at = None

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
        with deadline(conn, RESPONSE_DEADLINE_S):
            read = await tail_session.events(conn, frontier.seen, frontier.open, READ_LIMIT_ROWS, asks=asks)
            if read.publishers is not None and read.publishers.last < frontier.seen:
                # TRUNCATE ... RESTART IDENTITY, a setval. What was read lies above an id of the old log.
                await tail_session.check_epoch(conn)  # corrects what is noted about the old log
                frontier = self._begin_anew(await self._publishers(conn))
                read = await tail_session.events(conn, frontier.seen, frontier.open, READ_LIMIT_ROWS, asks=True)
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

    async def _skip_purged(self, conn: Connection, frontier: Frontier, purged_to: int) -> None:
        """If events were purged before this server read them, skip them and tell the streams."""
        if not frontier.misses_up_to(purged_to):
            return
        with deadline(conn, RESPONSE_DEADLINE_S):
            if purged_to > frontier.seen and purged_to > (await tail_session.publishers(conn)).last:
                # The note is about another log, such as the one that this table was copied from.
                await tail_session.check_epoch(conn)
                return
        log.error("events up to id %d were purged before this server read all of them", purged_to)
        frontier.expire(purged_to)
        self._hub.expire(frontier.position)

    async def _note_settled(self, conn: Connection) -> None:
        """Note in the database, for the SQL function position(), up to which id the log is settled."""
        frontier = self._frontier
        assert frontier is not None
        if frontier.seen > self._noted_settled:
            with deadline(conn, RESPONSE_DEADLINE_S):
                await tail_session.note_settled(conn, frontier.seen, frontier.open)
            self._noted_settled = frontier.seen
