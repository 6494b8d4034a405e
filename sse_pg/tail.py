"""The tail: the one connection that LISTENs, reads the log from where it stands, and hands events to the hub.

Live delivery, catching up after a lost connection, a missed bell and a server's start are one path: read what lies
above the position. The bell only says when.

A tail is asleep (it waits for the bell) or awake (it polls). Which, it shows by shared locks that publishers look at
before they ring (sql/schema.sql, announce). docs/guarantee.md has the argument why no event is overlooked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from random import random
from typing import Any

import msgspec
import psycopg

from sse_pg.authorizer import Authorizer
from sse_pg.cursor import Cursor
from sse_pg.database import Connection, answering, connect_listener, summary
from sse_pg.errors import BusUnavailable
from sse_pg.event import Event
from sse_pg.followers import Followers
from sse_pg.frontier import Frontier, GapCounts
from sse_pg.hub import Hub
from sse_pg.queries import query
from sse_pg.ranges import Ranges
from sse_pg.tail_meter import TailMeter

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


class _Revoked(msgspec.Struct):
    """What sse_pg.revoke() tells."""

    user: str | None = None
    channel: str | None = None


class Tail:
    """Follows the log as long as ``run`` runs, over any number of connections."""

    def __init__(
        self,
        url: str | None,
        hub: Hub,
        followers: Followers,
        authorizer: Authorizer,
        *,
        order_wait: float,
        poll: float,
        safety_read: float,
        masked: bool,
        on_connect: Callable[[Connection], Any],
    ) -> None:
        self._url = url
        self._hub = hub
        self._followers = followers
        self._authorizer = authorizer
        self._order_wait = order_wait
        self._poll = poll
        self._safety_read = safety_read
        self._masked = masked
        self._on_connect = on_connect
        self._frontier: Frontier | None = None
        self.gaps = GapCounts()
        self.meter = TailMeter(time.monotonic())
        self._wake = asyncio.Event()
        self._fresh: list[asyncio.Future[None]] = []
        self._answered: list[tuple[asyncio.Future[None], int]] = []
        """Who asked for a read that is over, and the highest id that it saw."""
        self._lay_down: int | None = None
        self._noted = 0
        self._bells: list[float] = []
        self._rung = False
        self._epoch_began = False
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
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fresh.append(waiter)
        self._wake.set()
        await waiter

    @property
    def open(self) -> Ranges:
        """The missing ids that may still come."""
        return self._frontier.open if self._frontier is not None else Ranges()

    # ------------------------------------------------------------ starting

    async def _start(self, conn: Connection) -> None:
        """LISTEN first, then read: what commits in between is seen by either."""
        conn.add_notify_handler(self._heard)
        with answering(conn, DEADLINE):
            await conn.execute(query("tail_session"))
            await conn.execute(query("listen"))
            await self._on_connect(conn)
            self.awake = False
            await conn.execute(query("sleep_begin"))
            await conn.execute(query("check_epoch"))
            epochs = await self._epochs(conn)
            ((purged_to,),) = await (await conn.execute(query("purged_to"))).fetchall()
            last, alive = await self._publishers(conn)
        start = _start_of(last, alive)
        if self._frontier is None:
            # What is missing now holds nothing back: a stream from now on is not to be given what was there before.
            self._frontier = Frontier(start, 0.0, self.gaps)
            self._hub.begin(start)
        elif last < self._frontier.seen or len(epochs) > len(self._hub.epochs):
            self._begin_anew(last, alive)
        elif purged_to > self._frontier.seen:
            log.error("events up to id %d were purged while this server had read to %d", purged_to, self._frontier.seen)
            self._frontier = Frontier(start, 0.0, self.gaps)
            self._hub.restart(start, "expired")
        self._hub.epochs = epochs
        self._lay_down = last
        self._revoked(None, None)  # what was said while nobody listened
        await self._pass(conn, settle=True)
        self.last_error = ""
        self.meter.connections += 1
        self.meter.turn("asleep", time.monotonic())
        self.listening.set()

    async def _epochs(self, conn: Connection) -> list[tuple[int, int]]:
        self._epoch_began = False
        return [
            (settled_to, starts_at) for settled_to, starts_at in await (await conn.execute(query("epochs"))).fetchall()
        ]

    def _begin_anew(self, last: int, alive: Ranges) -> Frontier:
        """Go on in another log: a restored backup, another database, a failover that may have lost commits."""
        assert self._frontier is not None
        log.error("the log is not the one that was read up to id %d; it is at %d", self._frontier.seen, last)
        start = _start_of(last, alive)
        frontier = self._frontier = Frontier(start, 0.0, self.gaps)
        self._noted = 0
        self._hub.restart(start)
        return frontier

    def _heard(self, notify: psycopg.Notify) -> None:
        """Note a notification. psycopg calls this for those that come with the answer to a statement, too."""
        self._rung = True
        if notify.channel == "sse_pg_control":
            what, _, which = notify.payload.partition(" ")
            if what == "subscriptions":
                self._followers.changed(which or None)
            elif what == "epoch":
                self._epoch_began = True
            elif what == "revoke":
                # Anybody can NOTIFY; 8,000 brackets are deep enough for a RecursionError.
                with contextlib.suppress(msgspec.DecodeError, RecursionError):
                    revoked = msgspec.json.decode(which, type=_Revoked)
                    self._revoked(revoked.user, revoked.channel)
        else:
            self.meter.bells += 1

    def _revoked(self, user: str | None, channel: str | None) -> None:
        self._authorizer.revoked(user, channel)
        self._followers.changed(user)

    # ------------------------------------------------------------ following

    async def _follow(self, conn: Connection) -> None:
        idle = 0
        last_settled = time.monotonic()
        while True:
            unasked = False
            if self.awake:
                woken = await self._pause(GAP_POLL if self._held else self._poll)
            else:
                nap = self._nap()
                woken = await self._wait(conn, nap)
                unasked = not woken and nap == self._safety_read
            if self._epoch_began:
                # By hand. What this server has read is of this log; cursors that others bring may not be.
                with answering(conn, DEADLINE):
                    self._hub.epochs = await self._epochs(conn)
            now = time.monotonic()
            settle = self._lay_down is not None or now - last_settled >= self._safety_read
            found = await self._pass(conn, settle=settle)
            if unasked:
                self.meter.safety_reads[found > 0] += 1
            if now - last_settled >= self._safety_read:
                await self._note_settled(conn)
                with answering(conn, DEADLINE):
                    ((self.meter.queue_usage,),) = await (await conn.execute(query("notification_queue"))).fetchall()
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
        with answering(conn, DEADLINE):
            await conn.execute(query("wake_begin"))
            await conn.execute(query("sleep_end"))
        self.awake = True
        self.meter.turn("awake", time.monotonic())
        self._bells.clear()
        self._lay_down = None

    async def _fall_asleep(self, conn: Connection) -> None:
        """Show "asleep", then poll on until nobody is in flight who may have looked before that.

        A publisher takes its lock before it looks. One that looked before "asleep" was there has a bound of at most
        the last id drawn by now, and is either among the locks, or gone and its rows visible.
        """
        with answering(conn, DEADLINE):
            await conn.execute(query("sleep_begin"))
            await conn.execute(query("wake_end"))
            self._lay_down, _ = await self._publishers(conn)
        self.awake = False
        self.meter.turn("asleep", time.monotonic())

    # ------------------------------------------------------------ reading

    async def _publishers(self, conn: Connection) -> tuple[int, Ranges]:
        """Return the last id drawn and the ids that may still come; note when those who may not ring have gone."""
        cursor = await conn.execute(query("publishers"), prepare=True)
        row = await cursor.fetchone()
        assert row is not None
        last, least_bound, first_ids, last_ids = row
        self.meter.last_id = last
        if self._lay_down is not None and (least_bound is None or least_bound > self._lay_down):
            self._lay_down = None
        return last, Ranges(zip(first_ids, last_ids, strict=True))

    async def _pass(self, conn: Connection, *, settle: bool) -> int:
        """Read everything that is new and hand it on; return how many events that were."""
        frontier = self._frontier
        assert frontier is not None
        waiting, self._fresh = self._fresh, []
        found = 0
        try:
            while True:
                in_flight = None
                with answering(conn, DEADLINE):
                    if settle or frontier.open:
                        in_flight = await self._publishers(conn)
                        if in_flight[0] < frontier.seen:  # TRUNCATE ... RESTART IDENTITY, a setval
                            await conn.execute(query("check_epoch"))  # mends what is noted of the log that is gone
                            in_flight = await self._publishers(conn)
                            frontier = self._begin_anew(*in_flight)
                    rows = await self._read(conn, frontier)
                now = time.monotonic()
                self.read_at = now
                self.meter.reads += 1
                frontier.feed(rows, now)
                cut_off = len(rows) == READ_LIMIT
                if in_flight is not None and not cut_off:
                    frontier.settle(*in_flight)
                await self._followers.refresh()
                await self._authorizer.recheck()
                self._hub.deliver(frontier.release(now), frontier.position)
                self.meter.missing(frontier.open, now)
                found += len(rows)
                if not cut_off:
                    break
            frontier.wait = self._order_wait
        except BaseException:
            self._fresh += waiting
            raise
        self._answered += [(waiter, frontier.seen) for waiter in waiting]
        self._answered = [answer for answer in self._answered if not _tell(frontier, *answer)]
        return found

    async def _read(self, conn: Connection, frontier: Frontier) -> list[Event]:
        params: dict[str, object] = {"seen": frontier.seen, "limit": READ_LIMIT}
        name = "tail_read_above"
        if frontier.open:
            name = "tail_read"
            params["first"] = [first for first, _ in frontier.open]
            params["last"] = [last for _, last in frontier.open]
        cursor = await conn.execute(query(name), params, prepare=True, binary=True)
        return [Event(*row) for row in await cursor.fetchall()]

    async def _note_settled(self, conn: Connection) -> None:
        """Note in the database, for position(), up to where the log is settled."""
        frontier = self._frontier
        assert frontier is not None
        if frontier.seen > self._noted:
            params = {
                "high": frontier.seen,
                "first": [first for first, _ in frontier.open],
                "last": [last for _, last in frontier.open],
            }
            with answering(conn, DEADLINE):
                await conn.execute(query("settled"), params)
            self._noted = frontier.seen

    # ------------------------------------------------------------ waiting

    async def _pause(self, seconds: float) -> bool:
        """Wait between polls; True when somebody asked for a read."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def _wait(self, conn: Connection, seconds: float) -> bool:
        """Wait until the connection has something to read (the bell, or its end), or somebody asks for a read.

        psycopg's own generator of notifications is not used: it keeps the connection to itself while it waits.
        """
        woken = False
        self._take_in(conn)
        if not self._rung:
            loop = asyncio.get_running_loop()
            descriptor = conn.fileno()
            loop.add_reader(descriptor, self._wake.set)
            try:
                woken = await self._pause(seconds)
            finally:
                loop.remove_reader(descriptor)
            # What is heard before the read that follows needs no other; what comes with its answer may.
            conn.pgconn.consume_input()
            self._take_in(conn)
        rung, self._rung = self._rung, False
        return rung or woken

    def _take_in(self, conn: Connection) -> None:
        """Take in the notifications that have arrived."""
        while (pending := conn.pgconn.notifies()) is not None:
            self._heard(psycopg.Notify(pending.relname.decode(), pending.extra.decode(), pending.be_pid))


def _tell(frontier: Frontier, waiter: asyncio.Future[None], seen: int) -> bool:
    """Tell a waiter that what was seen up to an id is handed on; False while some of it is held back."""
    if frontier.holds_up_to(seen):
        return False
    if not waiter.done():
        waiter.set_result(None)
    return True


def _start_of(last: int, alive: Ranges) -> Cursor:
    """Return the position below everything that may still come."""
    return Cursor(min(last, alive.spans[0][0] - 1) if alive else last)
