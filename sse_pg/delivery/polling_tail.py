"""A tail without a bell: it reads the log at short intervals, and less often when nothing comes.

It needs no LISTEN and shows publishers nothing, so it works where a session can do neither. Somebody else has to pass
on what is notified on the control channel.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from sse_pg.core.tail_meter import State
from sse_pg.db import tail_session
from sse_pg.db.connection import Connection, connect_listener
from sse_pg.db.demand import Demand
from sse_pg.delivery.control_listener import ControlListener
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.tail import GAP_POLL_S, Tail

#: A tail that has found nothing for this time polls less often ...
CALM_AFTER_S = 1.0
#: ... that is, at this interval.
CALM_POLL_S = 0.02
#: Interval between reads while no stream is open. The first stream that opens ends the wait.
QUIET_POLL_S = 1.0
#: Time after which a read asks who is in flight although no id is open, and what is settled is noted.
SETTLE_INTERVAL_S = 1.0


class PollingTail(Tail):
    """Reads every few milliseconds while events come."""

    def __init__(
        self,
        url: str | None,
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
        super().__init__(
            hub, control, demand, order_wait=order_wait, poll=poll, on_connect=on_connect, on_rest=on_rest, rest=rest
        )
        self._url = url

    async def _connect(self) -> Connection:
        return await connect_listener(self._url)

    async def _set_up(self, conn: Connection) -> None:
        self._filters = await tail_session.set_up(conn)
        await self._on_connect(conn)
        await tail_session.check_epoch(conn)

    @property
    def _state(self) -> State:
        return "awake"

    async def _follow(self, conn: Connection) -> None:
        found_at = settled_at = time.monotonic()
        while not self._demand.begin_rest():
            pause, due = self._pause(time.monotonic() - found_at), self._demand.rests_in_s
            await self._bell.pause(pause if due is None else min(pause, due))
            await self._read_epochs_if_begun(conn)
            now = time.monotonic()
            settles = now - settled_at >= SETTLE_INTERVAL_S
            if await self._read_log(conn, settle=settles):
                found_at = now
            if settles:
                await self._note_settled(conn)
                settled_at = now
        await self._end_following(conn)

    def _pause(self, idle_s: float) -> float:
        """Return for how long to wait, ``idle_s`` after the last read that found an event."""
        if self._held:
            return GAP_POLL_S
        if not self._hub.streams:
            return QUIET_POLL_S
        return self._poll if idle_s < CALM_AFTER_S else max(self._poll, CALM_POLL_S)
