"""The requests that wait to be published, in order, and the task that takes them into commits."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from sse_pg.db.draft import Draft, Published
from sse_pg.errors import BusUnavailable, fresh

#: Events of one shared commit, and bytes of their payloads. A single request may have more.
MAX_SHARED_EVENTS = 1000
MAX_SHARED_BYTES = 4_194_304
#: How long a request may wait behind others while the database responds.
MAX_WAIT_S = 30.0


class Unit:
    """The drafts of one request: published together or not at all."""

    __slots__ = ("alone", "batch", "done", "drafts", "keyed", "since", "size")

    def __init__(self, drafts: Sequence[Draft], batch: bool) -> None:
        loop = asyncio.get_running_loop()
        self.drafts = drafts
        self.batch = batch
        self.keyed = sum(draft.key is not None for draft in drafts)
        """How many of the drafts have an idempotency key."""
        self.size = sum(len(draft.payload) + len(draft.headers or "") for draft in drafts)
        self.since = loop.time()
        self.alone = False
        """Whether it gets a commit of its own, because a shared one failed."""
        self.done: asyncio.Future[list[Published]] = loop.create_future()

    def fail(self, error: Exception) -> None:
        """Let the request fail, if its client is still there."""
        if not self.done.done():
            self.done.set_exception(error)


class Lane:
    """The requests that wait, in order, and a task that writes them as long as there are any.

    A request waits here until a connection is in hand for it. So until its statement is sent, it can be dropped without
    a trace: if its client leaves, or if it has waited for too long.
    """

    def __init__(self, write: Callable[[Lane], Awaitable[None]], patience: float) -> None:
        self._write = write
        self._patience = patience
        self.waiting: OrderedDict[Unit, None] = OrderedDict()
        self.worker: asyncio.Task[None] | None = None
        self.is_connecting = False
        """Whether the worker waits for a connection, and holds no request."""
        self._answered_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    async def publish(self, unit: Unit) -> list[Published]:
        """Hand a request in and wait for its outcome. If the caller is cancelled before it is sent, it is dropped."""
        self.waiting[unit] = None
        if self.worker is None or self.worker.cancelling():
            self.worker = asyncio.create_task(self._work())
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(self._expiry(unit), self._expire)
        try:
            return await unit.done
        except asyncio.CancelledError:
            self.waiting.pop(unit, None)
            self._rest()
            raise

    def take(self) -> list[Unit]:
        """Remove from the queue what goes into one commit."""
        if not self.waiting:
            return []
        units = [self.waiting.popitem(last=False)[0]]
        count, size = len(units[0].drafts), units[0].size
        while self.waiting and not units[0].alone:
            unit = next(iter(self.waiting))
            count, size = count + len(unit.drafts), size + unit.size
            if unit.alone or count > MAX_SHARED_EVENTS or size > MAX_SHARED_BYTES:
                break
            del self.waiting[unit]
            units.append(unit)
        return units

    def try_one_by_one(self, units: Sequence[Unit]) -> None:
        """Put requests back, ahead of the others, each for a commit of its own."""
        for unit in reversed(units):
            if not unit.done.done():
                unit.alone = True
                self.waiting[unit] = None
                self.waiting.move_to_end(unit, last=False)
        if self._timer is not None:
            self._timer.cancel()  # it may be set for a request that came later
        self._expire()

    def answered(self) -> None:
        """Note that the database has responded: what waits is not kept waiting by an outage."""
        self._answered_at = asyncio.get_running_loop().time()

    def fail(self, error: Exception) -> None:
        """Fail everything that waits."""
        waiting, self.waiting = self.waiting, OrderedDict()
        for unit in waiting:
            unit.fail(fresh(error))

    async def _work(self) -> None:
        try:
            while self.waiting:
                await self._write(self)
        finally:
            if self.worker is asyncio.current_task():
                self.worker = None

    def _rest(self) -> None:
        """End the worker if all that it waits for a connection for is gone."""
        if not self.waiting and self.is_connecting and self.worker is not None:
            self.worker.cancel()

    def _expiry(self, unit: Unit) -> float:
        """Return when a request fails, if it is still waiting then.

        If the database responds, but more slowly than requests come, they may wait for longer than in an outage.
        """
        return min(max(unit.since, self._answered_at) + self._patience, unit.since + max(self._patience, MAX_WAIT_S))

    def _expire(self) -> None:
        """Fail what has waited for too long, all of it at once, and set the timer for the next one."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        while self.waiting:
            unit = next(iter(self.waiting))
            if (expiry := self._expiry(unit)) > now:
                self._timer = loop.call_at(expiry, self._expire)
                break
            del self.waiting[unit]
            unit.fail(BusUnavailable(f"the request waited for {now - unit.since:.1f} s and was not sent"))
        self._rest()
