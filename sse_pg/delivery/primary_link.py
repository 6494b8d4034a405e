"""The connection to the primary of a server that reads from a standby.

It registers the server, hears at once what concerns access, compares the two logs, and writes the mark if no server
that reads on the primary does. The server goes on reading without it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from random import random

import psycopg

from sse_pg.db import standby_session, tail_session
from sse_pg.db.connection import Connection, connect_listener, deadline, is_unavailable, summary
from sse_pg.db.demand import Demand
from sse_pg.db.hosts import Hosts
from sse_pg.delivery.bell import Bell
from sse_pg.delivery.control_listener import ControlListener
from sse_pg.delivery.standby_tail import StandbyTail
from sse_pg.errors import BusUnavailable

log = logging.getLogger(__name__)

#: Seconds without a response after which the connection is considered dead.
RESPONSE_DEADLINE_S = 10.0
#: Seconds between two looks at the primary.
LOOK_INTERVAL_S = 1.0
#: Seconds between two marks while there is something to note, ...
MARK_INTERVAL_S = 0.025
#: ... between two looks whether there is, when there has been nothing ...
IDLE_MARK_INTERVAL_S = 0.25
#: ... for this time.
MARK_IDLE_AFTER_S = 1.0
#: Seconds without any progress of the standby, while the primary writes, after which it counts as stuck. By default a
#: query on a standby may hold up replay for 30 seconds (max_standby_streaming_delay).
STUCK_AFTER_S = 60.0
#: Longest pause before the next attempt to connect, on average.
MAX_RECONNECT_PAUSE_S = 1.0


class PrimaryLink:
    """Holds the connection while ``run`` runs, and replaces it."""

    def __init__(
        self,
        url: str | None,
        control: ControlListener,
        demand: Demand,
        tail: StandbyTail,
        *,
        server_id: Callable[[], int | None],
        on_connect: Callable[[Connection], Awaitable[None]],
        on_rest: Callable[[Connection], Awaitable[None]],
    ) -> None:
        """``server_id`` returns the number of this server in the registry."""
        self._url = url
        self.hosts = Hosts(url)
        self._control = control
        self._demand = demand
        self._tail = tail
        self._server_id = server_id
        self._on_connect = on_connect
        self._on_rest = on_rest
        self._bell = Bell(control, tail.meter)
        self._behind_since: tuple[int, float] | None = None
        self._progress = (-1, 0.0)
        """Up to where the standby had replayed when it last had all or went on, and when that was seen."""
        self.stuck_s = 0.0
        """For how many seconds the standby has replayed nothing of what the primary has written; 0 if it goes on."""
        self.is_left_behind = False
        """Whether it is stuck, and another server has handed on what it lacks."""
        self.connected = asyncio.Event()
        self.last_error = "the connection to the primary is not up yet"

    @property
    def lag_s(self) -> float:
        """For how many seconds the standby has lacked something that the primary had written, as far as is known."""
        if self._behind_since is None or self._tail.replayed >= self._behind_since[0]:
            return 0.0
        return time.monotonic() - self._behind_since[1]

    @property
    def lag_ids(self) -> int:
        """How many ids the primary had drawn that the mark of the standby does not have, when it was last asked."""
        return max(0, self._tail.primary_last_id - self._tail.mark)

    async def run(self) -> None:
        """Hold a connection until cancelled."""
        attempt = 0
        while True:
            await self._demand.until_here(None)
            try:
                async with asyncio.timeout(RESPONSE_DEADLINE_S):
                    conn = await connect_listener(self._url, self.hosts)
                try:
                    await self._begin(conn)
                    attempt = 0
                    await self._watch(conn)
                finally:
                    self.connected.clear()
                    self._progress, self.stuck_s, self.is_left_behind = (-1, 0.0), 0.0, False
                    await conn.close()
                continue
            except (psycopg.Error, OSError, TimeoutError, BusUnavailable) as error:
                down = not isinstance(error, psycopg.Error) or is_unavailable(error)
                trouble = "the primary is unavailable" if down else "what was asked of the primary failed"
                self.last_error = f"{trouble}: {summary(error)}"
            pause = min(MAX_RECONNECT_PAUSE_S, 0.05 * 2**attempt) * (0.5 + random())  # noqa: S311 - not a secret
            attempt = min(attempt + 1, 10)
            log.warning("%s; events are still read from the standby; next attempt in %.2f s", self.last_error, pause)
            await asyncio.sleep(pause)

    async def _begin(self, conn: Connection) -> None:
        conn.add_notify_handler(self._bell.heard)
        with deadline(conn, RESPONSE_DEADLINE_S):
            await tail_session.set_up(conn)
            await standby_session.listen_to_control(conn)
            await standby_session.show_standby_is_read(conn)
            await tail_session.check_epoch(conn)
            self._tail.expect(await standby_session.copy_identity(conn))
            await self._on_connect(conn)
        # Nobody listened until now. What was sent meanwhile may not have been replayed yet.
        self._control.missed()
        self._tail.attend()
        self.last_error = ""
        self.connected.set()

    async def _watch(self, conn: Connection) -> None:
        looked_at = 0.0
        noted_at = time.monotonic()
        is_elected = False
        while not self._demand.is_away:
            with deadline(conn, RESPONSE_DEADLINE_S):
                if time.monotonic() - looked_at >= LOOK_INTERVAL_S:
                    await self._look(conn)
                    is_elected = is_elected or await tail_session.elect(conn)
                    looked_at = time.monotonic()
                if is_elected and await standby_session.write_mark(conn) is not None:
                    noted_at = time.monotonic()
            if not is_elected:
                pause = LOOK_INTERVAL_S
            elif time.monotonic() - noted_at < MARK_IDLE_AFTER_S:
                pause = MARK_INTERVAL_S
            else:
                pause = IDLE_MARK_INTERVAL_S
            if await self._bell.wait(conn, pause):
                self._tail.attend()
        with deadline(conn, RESPONSE_DEADLINE_S):
            await self._on_rest(conn)

    async def _look(self, conn: Connection) -> None:
        seen = self._tail.seen
        last, written = await standby_session.look(conn)
        self._tail.primary_last_id = last
        if last < seen:  # TRUNCATE ... RESTART IDENTITY, a setval: what was read is of another log
            self._tail.went_back(written)
        if self._behind_since is None or self._tail.replayed >= self._behind_since[0]:
            self._behind_since = (written, time.monotonic())
        await self._look_for_progress(conn, written)

    async def _look_for_progress(self, conn: Connection, written: int) -> None:
        """Find out whether the standby goes on.

        A standby that is merely behind does. If no other server is further, as when all of them read from the same
        standby, this one is no worse than they are: a proxy that leaves out all of them helps nobody.
        """
        at, now = self._tail.snapshot_at, time.monotonic()
        if at >= written or at != self._progress[0]:
            self._progress = (at, now)
        was_stuck, self.stuck_s = self.stuck_s >= STUCK_AFTER_S, now - self._progress[1]
        is_stuck = self.stuck_s >= STUCK_AFTER_S
        self.is_left_behind = (
            is_stuck and await standby_session.read_elsewhere(conn, self._server_id()) > self._tail.seen
        )
        if is_stuck and not was_stuck:
            log.error(
                "the standby has replayed nothing for %.0f s, although the primary has written more", self.stuck_s
            )
