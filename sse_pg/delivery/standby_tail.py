"""The tail of a server that reads from a standby: it polls, and goes by the mark that a server on the primary writes.

A standby has no LISTEN, no advisory locks and no exact sequence. What may still come is in the row that has the mark,
in the snapshot of the events (``read_marked`` in sql/schema.sql). docs/guarantee.md argues why that is enough.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from sse_pg.core.cursor import Cursor, trimmed
from sse_pg.core.epoch import Epoch
from sse_pg.core.frontier import Frontier
from sse_pg.core.ranges import Ranges
from sse_pg.core.tail_meter import State
from sse_pg.db import standby_session, tail_session
from sse_pg.db.connection import Connection, connect_listener
from sse_pg.db.demand import Demand
from sse_pg.db.hosts import Hosts
from sse_pg.db.standby_session import Marked
from sse_pg.db.tail_session import Publishers, Read
from sse_pg.delivery.control_listener import ControlListener
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.tail import GAP_POLL_S, READ_LIMIT_ROWS, Tail, copied_by
from sse_pg.errors import BusUnavailable

log = logging.getLogger(__name__)

#: A missing id holds back the events above it for longer than on the primary: the mark that says whether it may still
#: come is written up to 25 ms after the event above it, and then has to be replayed.
EXTRA_ORDER_WAIT_S = 0.04
#: A tail that has found nothing for this time polls less often ...
CALM_AFTER_S = 1.0
#: ... that is, at this interval.
CALM_POLL_S = 0.02
#: Interval between reads while no stream is open. The first stream that opens ends the wait.
QUIET_POLL_S = 1.0
#: Interval between two looks whether events are copied into the log.
LOOK_INTERVAL_S = 1.0
#: Interval between reads while somebody waits for the standby to have replayed what the primary had.
CATCH_UP_POLL_S = 0.02
#: Time that the primary gets to note what this server has found in a new log. Reading waits for it.
CONFIRM_TIMEOUT_S = 1.0


class StandbyTail(Tail):
    """Reads every few milliseconds while events come."""

    _connection_name = "the connection to the standby"

    def __init__(
        self,
        url: str,
        hub: Hub,
        control: ControlListener,
        demand: Demand,
        *,
        order_wait: float,
        poll: float,
        written: Callable[[], Awaitable[int]],
        confirm: Callable[[int, Ranges], Awaitable[None]],
        on_connect: Callable[[Connection], Awaitable[None]],
        on_rest: Callable[[Connection], Awaitable[None]],
        rest: Callable[[], Awaitable[None]],
    ) -> None:
        """``written`` asks the primary up to where its WAL is written, and ``confirm`` lets it note what is in its log.

        Both raise BusUnavailable if it is unavailable.
        """
        super().__init__(
            hub,
            control,
            demand,
            order_wait=order_wait + EXTRA_ORDER_WAIT_S,
            poll=poll,
            on_connect=on_connect,
            on_rest=on_rest,
            rest=rest,
        )
        self._url = url
        self.hosts = Hosts.as_given()
        self._written = written
        self._confirm = confirm
        self._noted_as = ""
        """Which log this was noted to be; empty until a server has noted it."""
        self._identity = ""
        self._expected: str | None = None
        self._mark = Publishers(0, Ranges(), None)
        self._since: int | None = None
        """The first transaction whose messages are to be read; None before the first read of a connection."""
        self._heard: set[tuple[int, str]] = set()
        """The messages from there on that were heard before."""
        self._expired: dict[str, int] = {}
        """Channels that were found to be expired, and up to which id."""
        self._concerned: list[Stream] = []
        """Their streams, which left the live delivery, and come back after the read."""
        self._went_back_at: int | None = None
        """The place in the WAL at which the primary was found to have gone back to lower ids."""
        self.snapshot_at = 0
        """Up to where the standby had replayed the WAL when it was last read. It goes back if that was another one."""
        self.replayed = 0
        """Everything that the primary had written to the WAL up to here is handed on."""
        self.primary_last_id = 0
        """The last id that the primary had drawn when it was last asked."""

    @property
    def seen(self) -> int:
        """The highest id that was read."""
        return self._frontier.seen if self._frontier is not None else 0

    @property
    def mark(self) -> int:
        """The id up to which the standby knows what may still come."""
        return self._mark.last

    def expect(self, identity: str) -> None:
        """Read no log but that of this primary."""
        self._expected = identity

    def went_back(self, written: int) -> None:
        """Begin anew when the standby has replayed what was written: the primary has drawn lower ids than were read."""
        self._went_back_at = written

    async def catch_up(self, claimed: Cursor) -> None:
        """Ask the primary up to where it has written, and wait until the standby has replayed and shown that much.

        Whatever was offered to anybody was written by then. If the primary is unavailable, nobody can say whether the
        cursor is ahead of the standby or of another log, so this raises BusUnavailable, and the client waits.
        """
        written = await self._written()
        while not self._hub.position.covers(claimed):
            await self.fresh()
            if self.replayed >= written:
                return
            await asyncio.sleep(CATCH_UP_POLL_S)

    # ------------------------------------------------------------ starting

    async def _connect(self) -> Connection:
        return await connect_listener(self._url, self.hosts)

    async def _set_up(self, conn: Connection) -> None:
        self._filters = await tail_session.set_up(conn)
        self._identity = await standby_session.copy_identity(conn)
        self._require_expected()
        if (copier := await standby_session.copying_subscription(conn)) is not None:
            raise BusUnavailable(copied_by(copier))
        self._noted_as = await standby_session.noted_identity(conn)  # before the epochs are read
        # What was sent before the first read is covered, since _start() assumes that anything may have been.
        self._since, self._heard = None, set()
        await self._on_connect(conn)

    def _require_expected(self) -> None:
        if self._expected not in (None, self._identity):
            raise BusUnavailable("SSE_PG_READ_DATABASE_URL leads to another log than DATABASE_URL")

    @property
    def _state(self) -> State:
        return "awake"

    async def _publishers(self, conn: Connection) -> Publishers:
        marked = await self._marked(conn, Frontier(Cursor(2**62), 0.0), None)
        return self._mark if isinstance(marked, Read) else marked.read.publishers or self._mark

    def _went_back(self, publishers: Publishers) -> bool:
        """A mark below what was read is no sign of it: this standby may be further behind than the one before."""
        return False

    async def _begin(self, conn: Connection, publishers: Publishers, epochs: list[Epoch]) -> list[Stream]:
        known = {epoch.starts_at for epoch in self._hub.epochs}
        here = {epoch.starts_at for epoch in epochs}
        if self._frontier is not None and known - here:
            # It may be one that was left behind when another was promoted, and have events that are lost.
            raise BusUnavailable("the standby has not replayed the beginning of the log that this server has read")
        begun = here - known if self._frontier is not None else set()
        concerned = await super()._begin(conn, publishers, epochs)
        if begun:
            await self._confirm_epochs(min(begun))
        return concerned

    async def _confirm_epochs(self, begun: int) -> None:
        """Let the primary note what this server has read of the log before: a standby cannot be written to.

        Otherwise clients that come back would be sent a gap event although they lack nothing. The ids above ``begun``
        are of the new log, which may have been read before anybody noted that it had begun.
        """
        frontier = self._frontier
        assert frontier is not None
        read = trimmed(frontier.seen, frontier.open).clip(begun)
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                await self._confirm(read.high, read.gaps)
        except (BusUnavailable, TimeoutError) as error:
            log.warning("the primary has not noted that ids up to %d are in its log: %s", read.high, error)

    async def _read_epochs_if_begun(self, conn: Connection) -> None:
        if self._control.epoch_began:
            with self._deadline(conn):
                await self._enter_epoch(conn)

    # ------------------------------------------------------------ following

    async def _follow(self, conn: Connection) -> None:
        found_at = looked_at = time.monotonic()
        while not self._demand.begin_rest():
            pause, due = self._pause(time.monotonic() - found_at), self._demand.rests_in_s
            await self._bell.pause(pause if due is None else min(pause, due))
            await self._read_epochs_if_begun(conn)
            if await self._read_log(conn, settle=True):
                found_at = time.monotonic()
            if time.monotonic() - looked_at >= LOOK_INTERVAL_S:
                with self._deadline(conn):
                    copier = await standby_session.copying_subscription(conn)
                self._refuse_copies(copier)
                looked_at = time.monotonic()
        await self._end_following(conn)

    def _pause(self, idle_s: float) -> float:
        """Return for how long to wait, ``idle_s`` after the last read that found an event."""
        if self._held:
            return GAP_POLL_S
        if not self._hub.streams:
            return QUIET_POLL_S
        return self._poll if idle_s < CALM_AFTER_S else max(self._poll, CALM_POLL_S)

    # ------------------------------------------------------------ reading

    async def _read_log(self, conn: Connection, *, settle: bool) -> int:
        try:
            found = await super()._read_log(conn, settle=settle)
        finally:
            concerned, self._concerned = self._concerned, []
            self._bring_up(concerned)
        if not self._held:
            self.replayed = max(self.replayed, self.snapshot_at)
        return found

    async def _read(self, conn: Connection, frontier: Frontier, *, asks: bool) -> tuple[Read, Frontier]:
        self._require_expected()
        followed = self._hub.followed.filter(time.monotonic()) if self._filters else None
        with self._deadline(conn):
            if not self._noted_as:
                self._noted_as = await standby_session.noted_identity(conn)
            marked = await self._marked(conn, frontier, followed)
            if isinstance(marked, Marked) and marked.epochs > len(self._hub.epochs):
                frontier = await self._enter_epoch(conn)
                marked = await self._marked(conn, frontier, followed)
        if isinstance(marked, Marked) and self._went_back_at is not None and marked.replayed >= self._went_back_at:
            frontier = await self._begin_anew(conn, self._mark)
            self._went_back_at = None
            with self._deadline(conn):
                marked = await self._marked(conn, frontier, followed)
        if isinstance(marked, Read):
            return marked, frontier
        self._hear(marked)
        self._expire(marked)
        self.snapshot_at = marked.replayed
        return marked.read, frontier

    async def _enter_epoch(self, conn: Connection) -> Frontier:
        """Go on in the log that begins where a standby was promoted, this one or another that it follows.

        The promoted one may lack what was read: a connection before this one may have led to a standby that had more.
        If begin_epoch() was called by hand, this is the same log, and nothing is confirmed.
        """
        epochs = await self._epochs(conn)
        if len(epochs) <= len(self._hub.epochs):  # it has not replayed the beginning yet, or more is certain now
            self._hub.epochs = epochs
        else:
            before, self._noted_as = self._noted_as, await standby_session.noted_identity(conn)
            if before == self._noted_as:
                self._hub.epochs = epochs
            else:
                await self._begin(conn, self._mark, epochs)
        assert self._frontier is not None
        return self._frontier

    async def _marked(self, conn: Connection, frontier: Frontier, followed: bytes | None) -> Marked | Read:
        marked = await standby_session.events(
            conn, frontier.seen, frontier.open, READ_LIMIT_ROWS, since=self._since, followed=followed
        )
        if isinstance(marked, Marked) and marked.read.publishers is not None:
            self._mark = marked.read.publishers
        return marked

    def _hear(self, marked: Marked) -> None:
        """Note what was sent to the servers, before the events that were read with it are handed on."""
        if len(marked.messages) > standby_session.MAX_MESSAGES:
            self._control.missed()
        for transaction, message in marked.messages:
            if (transaction, message) not in self._heard:
                self._control.heard(message)
        self._heard = {each for each in marked.messages if each[0] >= marked.oldest_running}
        self._since = marked.oldest_running

    def _expire(self, marked: Marked) -> None:
        """Note which channels have lost events that were not read.

        The primary spares what a registered server has not read, but may not know of this one.
        """
        new = {channel: up_to for channel, up_to in marked.expired.items() if self._expired.get(channel, 0) < up_to}
        if new:
            self._concerned += self._hub.expire_channels(new)
        self._expired = marked.expired

    def _note(self, publishers: Publishers) -> None:
        self.meter.last_id = max(publishers.last, self.primary_last_id)

    async def _was_drawn(self, conn: Connection, number: int) -> bool:
        return number <= self._mark.last

    async def _note_settled(self, conn: Connection) -> bool:
        """Note nothing: a standby cannot be written to."""
        return True
