"""Publishing for requests: those that arrive while a commit is under way share the next one.

One statement, one round trip and one commit serve all of them. Each request gets its own ids or its own error.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import psycopg

from sse_pg.db.connection import is_unavailable, summary
from sse_pg.db.pool import Pool, lend
from sse_pg.db.queries import query
from sse_pg.errors import BusUnavailable, EventRefused, KeyHeld, KeyReused, OutcomeUnknown, PayloadTooLarge

#: Events of one shared commit. A single request may have more.
MAX_SHARED_EVENTS = 1000
#: How long a shared commit waits for another transaction that has published with one of its idempotency keys ...
SHARED_LOCK_TIMEOUT = "100ms"
#: ... and how long each of its requests does when they are then tried one by one. Both are PostgreSQL's lock_timeout.
SINGLE_LOCK_TIMEOUT = "10ms"

#: (id, created at in microseconds since 2000)
Published = tuple[int, int | None]


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event to be published. ``payload`` and ``headers`` are JSON text."""

    channel: str
    event_type: str
    payload: str
    key: str | None = None
    headers: str | None = None


class _Unit:
    """The drafts of one request: published together or not at all."""

    __slots__ = ("batch", "done", "drafts", "keyed")

    def __init__(self, drafts: Sequence[Draft], batch: bool) -> None:
        self.drafts = drafts
        self.batch = batch
        self.keyed = sum(draft.key is not None for draft in drafts)
        """How many of the drafts have an idempotency key."""
        self.done: asyncio.Future[list[Published]] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class _Collided(BusUnavailable):
    """A deadlock or a serialization failure: everything was rolled back, and a second attempt is worthwhile."""


class _Lane:
    """A queue of requests, and a task that writes them in order as long as there are any."""

    def __init__(self, write: Callable[[list[_Unit]], Awaitable[None]]) -> None:
        self._write = write
        self.waiting: deque[_Unit] = deque()
        self.worker: asyncio.Task[None] | None = None

    def put(self, unit: _Unit) -> None:
        self.waiting.append(unit)
        if self.worker is None:
            self.worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self.waiting:
                await self._write(self._take())
        finally:
            self.worker = None

    def _take(self) -> list[_Unit]:
        """Remove from the queue what goes into one commit."""
        units = [self.waiting.popleft()]
        count = len(units[0].drafts)
        while self.waiting and count + len(self.waiting[0].drafts) <= MAX_SHARED_EVENTS:
            units.append(self.waiting.popleft())
            count += len(units[-1].drafts)
        return units


class Publisher:
    """Writes drafts in the order in which they come, requests with and without idempotency keys side by side.

    A request with a key may have to wait for another transaction that has published with the key and is still open. So
    that the others do not wait with it, requests with keys have commits of their own, and a wait is short: after it the
    request fails with KeyHeld. Nothing was published then, and the client can safely repeat the request.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._plain = _Lane(self._write)
        self._keyed = _Lane(self._write)
        self.published: Counter[tuple[bool, bool]] = Counter()
        """Events that were committed, by whether they came in a batch, and had a key."""
        self.commits = 0

    @property
    def waiting(self) -> int:
        """Requests that are not part of a commit yet."""
        return len(self._plain.waiting) + len(self._keyed.waiting)

    async def publish(self, drafts: Sequence[Draft], *, batch: bool = False) -> list[Published]:
        """Publish the drafts in one transaction; return (id, created at) of each, in order.

        ``batch`` only matters for the count: whether the request may have many events.

        Raises EventRefused (or a subclass) if the database refuses a draft, KeyHeld if another transaction holds a key,
        BusUnavailable if the database is unavailable, and OutcomeUnknown if the connection was lost during the commit.
        If the caller is cancelled, its drafts are published all the same.
        """
        unit = _Unit(drafts, batch)
        (self._keyed if unit.keyed else self._plain).put(unit)
        return await unit.done

    async def close(self) -> None:
        """Wait until every request that was handed in is published or has failed."""
        while workers := [lane.worker for lane in (self._plain, self._keyed) if lane.worker is not None]:
            await asyncio.wait(workers)

    async def _write(self, units: list[_Unit]) -> None:
        """Publish requests in one commit; if the database refuses it, publish each of them in a commit of its own."""
        try:
            written = await self._commit([draft for unit in units for draft in unit.drafts], SHARED_LOCK_TIMEOUT)
        except Exception as error:
            if len(units) > 1 and _may_concern_one(error):
                for unit in units:  # the shared commit was rolled back as a whole
                    await self._write_one(unit)
            elif isinstance(error, EventRefused | KeyHeld):
                await self._refuse(units[0], error)
            else:
                for unit in units:
                    unit.fail(error)
        else:
            self._succeed(units, written)

    async def _write_one(self, unit: _Unit) -> None:
        try:
            written = await self._commit(unit.drafts, SINGLE_LOCK_TIMEOUT)
        except (EventRefused, KeyHeld) as refused:
            await self._refuse(unit, refused)
        except Exception as error:
            unit.fail(error)
        else:
            self._succeed([unit], written)

    def _succeed(self, units: list[_Unit], written: list[Published]) -> None:
        """Hand each request its part of what one commit has returned."""
        self.commits += 1
        start = 0
        for unit in units:
            end = start + len(unit.drafts)
            self.published[unit.batch, True] += unit.keyed
            self.published[unit.batch, False] += len(unit.drafts) - unit.keyed
            if not unit.done.done():
                unit.done.set_result(written[start:end])
            start = end

    async def _refuse(self, unit: _Unit, error: EventRefused | KeyHeld) -> None:
        if isinstance(error, EventRefused):
            error.index = await self._locate(unit.drafts, error)
        unit.fail(error)

    async def _commit(self, drafts: Sequence[Draft], lock_timeout: str) -> list[Published]:
        try:
            return await self._send(drafts, lock_timeout)
        except _Collided:
            return await self._send(drafts, lock_timeout)  # the other transaction is over, or about to be

    async def _send(self, drafts: Sequence[Draft], lock_timeout: str, *, rehearse: bool = False) -> list[Published]:
        """Publish drafts; ``rehearse`` rolls back what it has published."""
        name = "publish_many"
        parameters: dict[str, Any] = {
            "channels": "\n".join([draft.channel for draft in drafts]),
            "event_types": "\n".join([draft.event_type for draft in drafts]),
            "payloads": "\x01".join([draft.payload for draft in drafts]),
            "headers": None,
        }
        if any(draft.headers is not None for draft in drafts):
            parameters["headers"] = "\x01".join([draft.headers or "" for draft in drafts])
        if any(draft.key is not None for draft in drafts):
            name = "publish_keyed"
            parameters |= {"keys": [draft.key for draft in drafts], "lock_timeout": lock_timeout}
        sent = False
        try:
            async with lend(self._pool) as conn:
                sent = True
                if not rehearse:
                    return await (await conn.execute(query(name), parameters, binary=True)).fetchall()
                async with conn.transaction(force_rollback=True):
                    return await (await conn.execute(query(name), parameters, binary=True)).fetchall()
        except psycopg.Error as error:
            raise _meaning(error, sent) from error

    async def _locate(self, drafts: Sequence[Draft], refused: EventRefused) -> int | None:
        """Return which draft of a request the database refuses, or None if that cannot be found out.

        By halves, each published in a transaction that is rolled back: only the table with its constraints and triggers
        knows what it refuses.
        """
        if isinstance(refused, KeyReused):
            return next((index for index, draft in enumerate(drafts) if draft.key == refused.key), None)
        low, high = 0, len(drafts)
        try:
            while high - low > 1:
                middle = (low + high) // 2
                try:
                    await self._send(drafts[low:middle], SINGLE_LOCK_TIMEOUT, rehearse=True)
                except EventRefused:
                    high = middle
                else:
                    low = middle
            if len(drafts) > 1:
                await self._send(drafts[low:high], SINGLE_LOCK_TIMEOUT, rehearse=True)
                return None  # it takes several of them together
        except EventRefused:
            pass
        except (BusUnavailable, psycopg.Error):
            return None
        return low


def _may_concern_one(error: Exception) -> bool:
    """Return whether a commit failed as a whole for a reason that may lie in one of its requests.

    That includes errors that nobody expects: a trigger of the user can fail in any way.
    """
    if isinstance(error, psycopg.Error):
        return error.sqlstate is not None
    return isinstance(error, EventRefused | KeyHeld)


def _meaning(error: psycopg.Error, sent: bool) -> Exception:
    """Return what a database error means for the events that were being published."""
    message = (error.diag.message_primary or summary(error)).strip()
    state = error.sqlstate or ""
    if state == "SP409":
        return KeyReused(message, key=error.diag.message_detail or "")
    if state == "23514" and error.diag.constraint_name == "events_payload":
        return PayloadTooLarge("the payload is larger than the table allows")
    if state == "54000" and error.diag.source_file == "async.c":
        return BusUnavailable(message)  # the notification queue is full
    if state == "SP422":
        return EventRefused(message)  # a trigger discarded events
    if state.startswith(("0A", "22", "23", "54", "P0")):  # 0A: a rule replaces the INSERT; P0: a trigger raises
        detail = error.diag.message_detail
        return EventRefused(f"{message}: {detail}" if detail and state.startswith("22") else message)
    if state == "55P03":
        return KeyHeld("another transaction that is still open holds the idempotency key, or a lock on the table")
    if state.startswith("40"):
        return _Collided(message)
    if not is_unavailable(error):
        return error
    # An error with a code of its own has rolled the transaction back. A connection that ended while the statement was
    # under way (without a code, or by a shutdown of the server) says nothing about the commit.
    if sent and (not state or state.startswith(("08", "57P0"))):
        return OutcomeUnknown(message)
    return BusUnavailable(message)
