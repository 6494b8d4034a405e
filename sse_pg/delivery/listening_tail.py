"""The tail of a server whose connection LISTENs: the bell says when to read.

It is asleep (it waits for the bell) or awake (it polls). It shows which with shared locks that publishers check before
they ring (``announce`` in sql/schema.sql).
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Awaitable, Callable

from sse_pg.core.epoch import Epoch
from sse_pg.core.tail_meter import State
from sse_pg.db import tail_session
from sse_pg.db.connection import Connection, connect_listener
from sse_pg.db.demand import Demand
from sse_pg.db.hosts import Hosts
from sse_pg.db.tail_session import Publishers
from sse_pg.delivery.control_listener import ControlListener
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.tail import GAP_POLL_S, Tail

#: After a read that found so many events, the next one comes after a shorter time: the price of a read is then small
#: beside that of its events, and under full load a pause of 5 ms was 2 of 16 ms of an event's delay.
BUSY_EVENTS = 50
BUSY_POLL_S = 0.001
#: The tail wakes up when this many bells that found events came within twice the time of as many polls ...
BELLS_TO_WAKE = 10
#: ... and falls asleep when this many polls in a row found nothing.
POLLS_TO_SLEEP = 25
#: Seconds until it is tried again to fall asleep, if another session holds the lock that shows it.
SLEEP_RETRY_S = 10.0
#: Shortest time between two notes of what is settled, ...
MARK_INTERVAL_S = 0.25
#: ... and if a server reads from a standby, which goes by them. With 100 ms, and publishers that overlap, its cursors
#: had more gaps than a cursor can hold. Noting this often costs the server that does it half as much again.
STANDBY_MARK_INTERVAL_S = 0.025
#: Time until the next attempt if somebody holds the row.
MARK_RETRY_S = 2.0
#: Each note leaves an old version of the row, which can be removed when no snapshot needs it. If the table grows beyond
#: this size, because of a long transaction ...
MAX_LOG_BYTES = 1_048_576
#: ... what is settled is noted less often: every server that reads the row goes through the old versions.
SLOW_MARK_INTERVAL_S = 1.0
#: Time between reads of a tail that has fallen asleep, while a publisher is in flight that may not ring for it.
IN_FLIGHT_POLL_S = 0.025
#: Time between reads of a tail that polls while no stream is open.
EASE_POLL_S = 1.0
#: With no stream open, a tail that has read everything looks this many times less often than its safety reads are ...
QUIET_FACTOR = 60
#: ... but at least this often.
MAX_QUIET_S = 60.0


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


class ListeningTail(Tail):
    """Reads when the bell rings, polls while it would ring too often, and makes a safety read once in a while."""

    _connection_name = "the LISTEN connection"

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
        """``safety_read`` is in seconds. ``masked``: the tail may be awake, and publishers then need not ring."""
        super().__init__(
            hub, control, demand, order_wait=order_wait, poll=poll, on_connect=on_connect, on_rest=on_rest, rest=rest
        )
        self._url = url
        self.hosts = Hosts(url)
        self._safety_read = safety_read
        self._pauses = {
            Pause.HELD: GAP_POLL_S,
            Pause.IN_FLIGHT: IN_FLIGHT_POLL_S,
            Pause.SAFETY: safety_read,
            Pause.QUIET: max(safety_read, min(MAX_QUIET_S, QUIET_FACTOR * safety_read)),
        }
        self._masked = masked
        self._fell_asleep_at: int | None = None
        """The last id drawn when the tail fell asleep, while a publisher may be in flight that does not ring for it."""
        self._busy_bells: list[float] = []
        self._is_elected = False
        """Whether this tail is the one that notes what is settled."""
        self._mark_at = 0.0
        """When it may do so next, by time.monotonic()."""
        self._mark_interval_s = MARK_INTERVAL_S
        self.awake = False

    async def _connect(self) -> Connection:
        return await connect_listener(self._url, self.hosts)

    async def _set_up(self, conn: Connection) -> None:
        """LISTEN before the log is read: an event that is committed in between is read or rings the bell, or both."""
        conn.add_notify_handler(self._bell.heard)
        self._filters = await tail_session.set_up(conn)
        await tail_session.listen(conn)
        await self._on_connect(conn)
        self.awake = not await tail_session.fall_asleep(conn, was_awake=False)
        if self.awake:
            await tail_session.wake_up(conn, was_asleep=False)
        await tail_session.check_epoch(conn)
        self._is_elected = await tail_session.elect(conn)

    async def _begin(self, conn: Connection, publishers: Publishers, epochs: list[Epoch]) -> list[Stream]:
        concerned = await super()._begin(conn, publishers, epochs)
        self._fell_asleep_at = None if self.awake else publishers.last
        return concerned

    @property
    def _state(self) -> State:
        return "awake" if self.awake else "asleep"

    def _note(self, publishers: Publishers) -> None:
        """Also note when the publishers that may not ring have ended."""
        super()._note(publishers)
        if self._fell_asleep_at is not None and publishers.all_began_after(self._fell_asleep_at):
            self._fell_asleep_at = None

    async def _follow(self, conn: Connection) -> None:
        idle = found = 0
        awake_until = 0.0
        last_settled = time.monotonic()
        while not self._demand.begin_rest():
            is_safety_read = False
            rests_in_s = self._demand.rests_in_s
            if self.awake and self._is_at_ease:
                woken = await self._bell.wait_for_others(conn, min(EASE_POLL_S, rests_in_s or EASE_POLL_S))
            elif self.awake:
                woken = await self._bell.pause(self._poll_pause(found))
            else:
                pause = self._pause
                limit = self._pauses[pause]
                within = min(limit, self._mark_in_s, limit if rests_in_s is None else rests_in_s)
                woken = await self._bell.wait(conn, within)
                if not woken and within < limit:
                    # The time has come for the mark, or to let go of the database if nobody has needed it since.
                    await self._mark(conn)
                    continue
                if not woken and pause is Pause.QUIET and await self._finds_nothing(conn):
                    continue
                is_safety_read = not woken and pause in (Pause.SAFETY, Pause.QUIET)
            await self._read_epochs_if_begun(conn)
            now = time.monotonic()
            settle = self._fell_asleep_at is not None or now - last_settled >= self._safety_read
            found = await self._read_log(conn, settle=settle)
            if is_safety_read:
                self.meter.safety_reads[found > 0] += 1
            await self._mark(conn)
            if now - last_settled >= self._safety_read:
                await self._look_around(conn)
                last_settled = now
            if self.awake:
                idle = 0 if found else idle + 1
                if idle >= POLLS_TO_SLEEP and now >= awake_until and not await self._fall_asleep(conn):
                    awake_until = now + SLEEP_RETRY_S
            elif woken and found and (self._busy(now) or self._is_at_ease):
                await self._wake_up(conn)
                idle = 0
        await self._end_following(conn)

    def _poll_pause(self, found: int) -> float:
        """Return how long an awake tail waits after a read that found so many events."""
        if self._held:
            return GAP_POLL_S
        return min(BUSY_POLL_S, self._poll) if found >= BUSY_EVENTS else self._poll

    @property
    def _mark_in_s(self) -> float:
        """In how many seconds what is settled should be noted."""
        if not self._is_elected or self._settled == self._noted:
            return math.inf
        return max(0.0, self._mark_at - time.monotonic())

    async def _mark(self, conn: Connection) -> None:
        """Note what is settled, if it is time."""
        if self._mark_in_s == 0.0:
            is_noted = await self._note_settled(conn)
            # If somebody holds the row, the next reads come first.
            self._mark_at = time.monotonic() + (self._mark_interval_s if is_noted else MARK_RETRY_S)

    async def _look_around(self, conn: Connection) -> None:
        """Do what is to be done about once in a second."""
        with self._deadline(conn):
            around = await tail_session.look_around(conn, is_elected=self._is_elected)
        self._refuse_copies(around.subscription)
        self.meter.queue_usage, self._is_elected = around.queue_usage, around.is_elected
        if around.log_bytes > MAX_LOG_BYTES:
            self._mark_interval_s = SLOW_MARK_INTERVAL_S
        else:
            self._mark_interval_s = STANDBY_MARK_INTERVAL_S if around.standby_is_read else MARK_INTERVAL_S

    @property
    def _pause(self) -> Pause:
        """Why a sleeping tail waits for the bell only for a while."""
        if self._held:
            return Pause.HELD
        if self._fell_asleep_at is not None:
            return Pause.IN_FLIGHT
        is_noted = not self._is_elected or self._settled == self._noted
        if self._hub.streams or self._complete_to is None or self.open or not is_noted:
            return Pause.SAFETY
        return Pause.QUIET

    async def _finds_nothing(self, conn: Connection) -> bool:
        """Return whether no id was drawn since everything was read: a safety read for which nobody waits."""
        with self._deadline(conn):
            last, self.meter.queue_usage = await tail_session.look(conn)
        if last != self._complete_to:
            return False
        self.read_at = time.monotonic()
        self.meter.safety_reads[False] += 1
        return True

    @property
    def _is_at_ease(self) -> bool:
        """Whether nobody waits for events: no stream is open, and no server that reads a standby needs the notes.

        The tail then shows "awake", so that nobody rings for it, but takes its time. The first stream that opens ends
        the pause, as does everything else that asks for a read.
        """
        return self._masked and not self._is_elected and not self._hub.streams and not self._held

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
        with self._deadline(conn):
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
        with self._deadline(conn):
            if not await tail_session.fall_asleep(conn, was_awake=True):
                return False
            self._fell_asleep_at = (await self._publishers(conn)).last
        self.awake = False
        self.meter.enter("asleep", time.monotonic())
        return True
