"""The tail: the one connection that LISTENs, reads the log from where it stands, and hands events to the hub.

Live delivery, catching up after a lost connection, a missed bell and a server's start are one path: read what lies
above the position. The bell only says when.

A tail is asleep (it waits for the bell) or awake (it polls). Which, it shows by shared locks that publishers look at
before they ring (sql/schema.sql, announce). docs/guarantee.md has the argument why no event is overlooked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from random import random
from typing import Any

import psycopg

from sse_pg.core.frontier import Frontier, GapCounts
from sse_pg.core.ranges import Ranges
from sse_pg.core.tail_meter import TailMeter
from sse_pg.db import tail_session
from sse_pg.db.connection import Connection, connect_listener, deadline, summary
from sse_pg.db.tail_session import Publishers
from sse_pg.delivery.bell import Bell
from sse_pg.delivery.control_listener import ControlListener
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.waiters import Waiters
from sse_pg.errors import BusUnavailable

log = logging.getLogger(__name__)

#: Rows of one read: enough to amortise the round trip, little enough to hand on before the next.
READ_LIMIT = 2000
#: Reading goes over to polling when this many bells came within as many polls' time ...
BUSY_BELLS = 10
#: ... and back when so many polls in a row found nothing.
IDLE_POLLS = 25
#: Seconds between reads while events are held back for a missing id.
GAP_POLL = 0.002
#: Seconds between reads while a publisher is in flight that may not ring for us.
NAP = 0.025
#: Seconds without an answer after which the connection is taken for dead.
DEADLINE = 10.0


class Tail:
    """Follows the log as long as ``run`` runs, over any number of connections."""

    def __init__(
        self,
        url: str | None,
        hub: Hub,
        control: ControlListener,
        *,
        order_wait: float,
        poll: float,
        safety_read: float,
        masked: bool,
        on_connect: Callable[[Connection], Any],
    ) -> None:
        self._url = url
        self._hub = hub
        self._control = control
        self._order_wait = order_wait
        self._poll = poll
        self._safety_read = safety_read
        self._masked = masked
        self._on_connect = on_connect
        self._frontier: Frontier | None = None
        self.gaps = GapCounts()
        self.meter = TailMeter(time.monotonic())
        self._bell = Bell(control, self.meter)
        self._waiters = Waiters()
        self._lay_down: int | None = None
        self._noted = 0
        self._bells: list[float] = []
        self.listening = asyncio.Event()
        """Set while the connection is up and the log was read once."""
        self.last_error = "the LISTEN connection is not up yet"
        self.awake = False
        self.read_at: float | None = None
        """When the log was read last, by time.monotonic()."""

    async def run(self) -> None:
        """Follow the log until cancelled; a lost connection is made again with growing pauses."""
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(DEADLINE):  # wait_for() of Python 3.11 can lose a cancellation
                    conn = await connect_listener(self._url)
                try:
                    await self._start(conn)
                    attempt = 0
                    await self._follow(conn)
                finally:
                    self.listening.clear()
                    self.meter.turn("down", time.monotonic())
                    await conn.close()
            except (psycopg.Error, OSError, TimeoutError, BusUnavailable) as error:
                self.last_error = f"the LISTEN connection is down: {summary(error)}"
            except Exception:
                # A mistake of ours: a tail that ended would leave a server that serves nothing and says nothing.
                self.last_error = "the tail failed; the server's log has more"
                log.exception("the tail failed")
            else:
                continue
            self.meter.failures += 1
            pause = min(1.0, 0.05 * 2**attempt) * (0.5 + random())  # noqa: S311 - not a secret
            attempt = min(attempt + 1, 10)
            log.warning("%s; next attempt in %.2f s", self.last_error, pause)
            await asyncio.sleep(pause)

    async def fresh(self) -> None:
        """Wait for a read that begins after this call, and until what it found is handed on."""
        waiter = self._waiters.ask()
        self._bell.ring()
        await waiter

    @property
    def open(self) -> Ranges:
        """The missing ids that may still come."""
        return self._frontier.open if self._frontier is not None else Ranges()

    # ------------------------------------------------------------ starting

    async def _start(self, conn: Connection) -> None:
        """LISTEN first, then read: what commits in between is seen by either."""
        conn.add_notify_handler(self._bell.heard)
        with deadline(conn, DEADLINE):
            await tail_session.listen(conn)
            await self._on_connect(conn)
            self.awake = False
            await tail_session.fall_asleep(conn, was_awake=False)
            await tail_session.check_epoch(conn)
            epochs = await self._epochs(conn)
            purged_to = await tail_session.purged_to(conn)
            publishers = await self._publishers(conn)
        start = publishers.start
        if self._frontier is None:
            # What is missing now holds nothing back: a stream from now on is not to be given what was there before.
            self._frontier = Frontier(start, 0.0, self.gaps)
            self._hub.begin(start)
        elif publishers.last < self._frontier.seen or len(epochs) > len(self._hub.epochs):
            self._begin_anew(publishers)
        elif purged_to > self._frontier.seen:
            log.error("events up to id %d were purged while this server had read to %d", purged_to, self._frontier.seen)
            self._frontier = Frontier(start, 0.0, self.gaps)
            self._hub.restart(start, "expired")
        self._hub.epochs = epochs
        self._lay_down = publishers.last
        self._control.missed()
        await self._pass(conn, settle=True)
        self.last_error = ""
        self.meter.connections += 1
        self.meter.turn("asleep", time.monotonic())
        self.listening.set()

    async def _epochs(self, conn: Connection) -> list[tuple[int, int]]:
        self._control.epoch_began = False
        return await tail_session.epochs(conn)

    def _begin_anew(self, publishers: Publishers) -> Frontier:
        """Go on in another log: a restored backup, another database, a failover that may have lost commits."""
        assert self._frontier is not None
        log.error("the log is not the one that was read up to id %d; it is at %d", self._frontier.seen, publishers.last)
        frontier = self._frontier = Frontier(publishers.start, 0.0, self.gaps)
        self._noted = 0
        self._hub.restart(publishers.start)
        return frontier

    # ------------------------------------------------------------ following

    async def _follow(self, conn: Connection) -> None:
        idle = 0
        last_settled = time.monotonic()
        while True:
            unasked = False
            if self.awake:
                woken = await self._bell.pause(GAP_POLL if self._held else self._poll)
            else:
                nap = self._nap()
                woken = await self._bell.wait(conn, nap)
                unasked = not woken and nap == self._safety_read
            if self._control.epoch_began:
                # By hand. What this server has read is of this log; cursors that others bring may not be.
                with deadline(conn, DEADLINE):
                    self._hub.epochs = await self._epochs(conn)
            now = time.monotonic()
            settle = self._lay_down is not None or now - last_settled >= self._safety_read
            found = await self._pass(conn, settle=settle)
            if unasked:
                self.meter.safety_reads[found > 0] += 1
            if now - last_settled >= self._safety_read:
                await self._note_settled(conn)
                with deadline(conn, DEADLINE):
                    self.meter.queue_usage = await tail_session.queue_usage(conn)
                last_settled = now
            if self.awake:
                idle = 0 if found else idle + 1
                if idle >= IDLE_POLLS:
                    await self._fall_asleep(conn)
            elif woken and found and self._busy(now):
                await self._wake_up(conn)
                idle = 0

    def _nap(self) -> float:
        """Return how long to wait for the bell."""
        if self._held:
            return GAP_POLL
        return NAP if self._lay_down is not None else self._safety_read

    @property
    def _held(self) -> bool:
        return self._frontier is not None and self._frontier.holding

    def _busy(self, now: float) -> bool:
        """Tell whether the bell rings about as often as polling would read."""
        if not self._masked:
            return False
        self._bells.append(now)
        if len(self._bells) < BUSY_BELLS:
            return False
        del self._bells[:-BUSY_BELLS]
        return now - self._bells[0] < 2 * BUSY_BELLS * self._poll

    async def _wake_up(self, conn: Connection) -> None:
        """Show "awake" before "asleep" goes: a publisher in between sees both and rings."""
        with deadline(conn, DEADLINE):
            await tail_session.wake_up(conn)
        self.awake = True
        self.meter.turn("awake", time.monotonic())
        self._bells.clear()
        self._lay_down = None

    async def _fall_asleep(self, conn: Connection) -> None:
        """Show "asleep", then poll on until nobody is in flight who may have looked before that.

        A publisher takes its lock before it looks. One that looked before "asleep" was there has a bound of at most
        the last id drawn by now, and is either among the locks, or gone and its rows visible.
        """
        with deadline(conn, DEADLINE):
            await tail_session.fall_asleep(conn, was_awake=True)
            self._lay_down = (await self._publishers(conn)).last
        self.awake = False
        self.meter.turn("asleep", time.monotonic())

    # ------------------------------------------------------------ reading

    async def _publishers(self, conn: Connection) -> Publishers:
        """Ask who is in flight; note when those who may not ring have gone."""
        publishers = await tail_session.publishers(conn)
        self.meter.last_id = publishers.last
        if self._lay_down is not None and publishers.all_began_after(self._lay_down):
            self._lay_down = None
        return publishers

    async def _pass(self, conn: Connection, *, settle: bool) -> int:
        """Read everything that is new and hand it on; return how many events that were."""
        frontier = self._frontier
        assert frontier is not None
        waiting = self._waiters.begin()
        found = 0
        try:
            while True:
                in_flight = None
                with deadline(conn, DEADLINE):
                    if settle or frontier.open:
                        in_flight = await self._publishers(conn)
                        if in_flight.last < frontier.seen:  # TRUNCATE ... RESTART IDENTITY, a setval
                            await tail_session.check_epoch(conn)  # corrects what is noted of the log that is gone
                            in_flight = await self._publishers(conn)
                            frontier = self._begin_anew(in_flight)
                    rows = await tail_session.events(conn, frontier.seen, frontier.open, READ_LIMIT)
                now = time.monotonic()
                self.read_at = now
                self.meter.reads += 1
                frontier.feed(rows, now)
                cut_off = len(rows) == READ_LIMIT
                if in_flight is not None and not cut_off:
                    frontier.settle(in_flight.last, in_flight.alive)
                await self._control.apply()
                self._hub.deliver(frontier.release(now), frontier.position)
                self.meter.missing(frontier.open, now)
                found += len(rows)
                if not cut_off:
                    break
            frontier.wait = self._order_wait
        except BaseException:
            self._waiters.again(waiting)
            raise
        self._waiters.end(waiting, frontier)
        return found

    async def _note_settled(self, conn: Connection) -> None:
        """Note in the database, for position(), up to where the log is settled."""
        frontier = self._frontier
        assert frontier is not None
        if frontier.seen > self._noted:
            with deadline(conn, DEADLINE):
                await tail_session.note_settled(conn, frontier.seen, frontier.open)
            self._noted = frontier.seen
