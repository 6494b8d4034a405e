"""The tail of a server that has no connection of its own to the primary, because a transaction pooler is in between.

It polls, and it reads what was sent on the control channel from a table, since it cannot LISTEN. It holds no lock:
publishers see neither "asleep" nor "awake", the server registry goes by the time of the last renewal, and which of
these servers notes what is settled is decided by their numbers.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from sse_pg.core.frontier import Frontier
from sse_pg.core.tail_meter import State
from sse_pg.db import pooled_session, tail_session
from sse_pg.db.connection import Connection
from sse_pg.db.demand import Demand
from sse_pg.db.hosts import Hosts
from sse_pg.db.pooled_session import Heard, TailConnection
from sse_pg.db.store import read_to
from sse_pg.db.tail_session import Publishers, Read
from sse_pg.delivery.control_listener import ControlListener
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.tail import READ_LIMIT_ROWS, Tail

#: A tail waits for this share of the time since it last found an event.
IDLE_SHARE = 0.05
#: Time between two looks who notes what is settled, and reads that ask who is in flight although no id is open.
SETTLE_INTERVAL_S = 1.0
#: Shortest time between two notes of what is settled.
MARK_INTERVAL_S = 0.025


class PooledTail(Tail):
    """Reads every few milliseconds while events come, and less often the longer nothing has come."""

    def __init__(
        self,
        url: str | None,
        hub: Hub,
        control: ControlListener,
        demand: Demand,
        *,
        order_wait: float,
        poll: float,
        idle_poll: float,
        quiet: float,
        server_id: Callable[[], int | None],
        on_connect: Callable[[Connection], Awaitable[None]],
        on_rest: Callable[[Connection], Awaitable[None]],
        rest: Callable[[], Awaitable[None]],
    ) -> None:
        """Times are in seconds: ``poll`` is that between two reads while events come, ``idle_poll`` the longest
        while streams are open, ``quiet`` the longest while there is none.

        ``server_id`` returns this server's number in the registry.
        """
        super().__init__(
            hub, control, demand, order_wait=order_wait, poll=poll, on_connect=on_connect, on_rest=on_rest, rest=rest
        )
        self._url = url
        self.hosts = Hosts(url)
        self._longest = {True: idle_poll, False: max(quiet, poll)}
        """The longest pause, with and without streams."""
        self._server_id = server_id
        self._heard: Heard | None = None
        """What was read last of the control channel; None before the first time on a connection."""
        self._concerned: list[Stream] = []
        """Streams that left the live delivery because events of theirs are gone that were not read ..."""
        self._expired: dict[str, int] = {}
        """... and the ids, by channel, that the position has to pass before they come back."""
        self._is_elected = False
        """Whether this tail is the one that notes what is settled."""

    async def _connect(self) -> Connection:
        return await TailConnection.open(self._url, self.hosts)

    async def _set_up(self, conn: Connection) -> None:
        assert isinstance(conn, TailConnection)
        self._expired.clear()
        conn.log_identity = await tail_session.log_identity(conn)
        self._filters = await tail_session.can_filter(conn)
        # What is sent from here on is read with the events. What was sent before is covered: see _start().
        self._heard = await pooled_session.hear(conn, None)
        await self._on_connect(conn)
        await tail_session.check_epoch(conn)

    async def _begin_anew(self, conn: Connection, publishers: Publishers) -> Frontier:
        self._expired.clear()  # they were ids of the other log
        return await super()._begin_anew(conn, publishers)

    @property
    def _state(self) -> State:
        return "awake"

    # ------------------------------------------------------------ following

    async def _follow(self, conn: Connection) -> None:
        found_at = settled_at = marked_at = time.monotonic()
        while not self._demand.begin_rest():
            pause, due = self._pause(time.monotonic() - found_at), self._demand.rests_in_s
            rung = await self._bell.pause(pause if due is None else min(pause, due))
            now = time.monotonic()
            settles = now - settled_at >= SETTLE_INTERVAL_S
            if rung or settles or pause <= self._poll or not await self._finds_nothing(conn):
                if await self._read_log(conn, settle=settles):
                    found_at = now
                elif rung:
                    found_at = max(found_at, now - self._poll / IDLE_SHARE)  # somebody here expects an event
            if settles:
                with self._deadline(conn):
                    self._is_elected, copier = await pooled_session.look_around(conn, self._server_id())
                self._refuse_copies(copier)
                settled_at = now
            if self._is_elected and now - marked_at >= MARK_INTERVAL_S:
                await self._note_settled(conn)
                marked_at = now
        await self._end_following(conn)

    def _pause(self, idle_s: float) -> float:
        """Return for how long to wait, ``idle_s`` after the last read that found an event."""
        if self._held:
            return self._poll
        return min(self._longest[bool(self._hub.streams)], max(self._poll, IDLE_SHARE * idle_s))

    async def _finds_nothing(self, conn: Connection) -> bool:
        """Return whether no id was drawn since everything was read, and nothing was sent to the servers."""
        if self._complete_to is None:
            return False
        assert self._heard is not None
        with self._deadline(conn):
            last, heard = await pooled_session.look(conn, self._heard.snapshot)
        if last != self._complete_to or heard.messages:
            return False  # the messages are read again, with the events
        heard.follows(self._heard)
        self._heard = heard
        self.read_at = time.monotonic()
        return True

    # ------------------------------------------------------------ reading

    async def _read_log(self, conn: Connection, *, settle: bool) -> int:
        found = await super()._read_log(conn, settle=settle or bool(self._concerned))
        assert self._frontier is not None
        if self._concerned and all(map(self._frontier.position.offered, self._expired.values())):
            concerned, self._concerned, self._expired = self._concerned, [], {}
            self._bring_up(concerned)
        return found

    async def _events(self, conn: Connection, frontier: Frontier, followed: bytes | None, *, asks: bool) -> Read:
        assert self._heard is not None
        read, heard = await pooled_session.events(
            conn,
            frontier.seen,
            frontier.open,
            READ_LIMIT_ROWS,
            asks=asks,
            followed=followed,
            since=self._heard.snapshot,
        )
        heard.follows(self._heard)
        await self._hear(conn, heard)
        self._heard = heard
        return read

    async def _hear(self, conn: Connection, heard: Heard) -> None:
        """Note what was sent to the servers, before the events that were read with it are handed on."""
        for message in heard.messages:
            self._control.heard(message)
        if heard.everything:
            self._control.missed()
        if self._control.epoch_began or heard.everything:
            self._hub.epochs = await self._epochs(conn)
        if heard.everything or "deleted" in heard.messages:
            # A server that polls may have been taken for dead, and then what it has not read is not spared.
            assert self._frontier is not None
            expired = await tail_session.expired_channels(conn, read_to(self._frontier.position))
            self._expired |= expired
            self._concerned += self._hub.expire_channels(expired)
