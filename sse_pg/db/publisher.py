"""Publishing over HTTP: requests that arrive while one commit is under way share the next.

One statement, one round trip, one commit for all of them, and each gets its own ids or its own error.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg

from sse_pg.db.connection import RESPONSE_DEADLINE_S, Pool, connection, deadline, is_unavailable, lend, summary
from sse_pg.db.queries import query
from sse_pg.errors import BusUnavailable, EventRefused, KeyReused, OutcomeUnknown, PayloadTooLarge

#: Events of one shared commit; a single request may be larger.
MAX_SHARED_EVENTS = 1000
#: How long a commit with idempotency keys waits for another transaction that holds one, before its requests are tried
#: one by one, as PostgreSQL's lock_timeout ...
KEY_WAIT = "100ms"
#: ... and seconds after which a request is refused whose key is held all that time.
KEY_PATIENCE = 20.0

#: (id, created at in microseconds since 2000)
Published = tuple[int, int | None]


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event to be published. ``payload`` is JSON text."""

    channel: str
    event_type: str
    payload: str
    key: str | None = None


class _Unit:
    """The drafts of one request: published together or not at all."""

    __slots__ = ("batch", "done", "drafts", "keys", "since")

    def __init__(self, drafts: Sequence[Draft], batch: bool) -> None:
        self.drafts = drafts
        self.batch = batch
        self.keys = {draft.key for draft in drafts if draft.key is not None}
        self.since = time.monotonic()
        self.done: asyncio.Future[list[Published]] = asyncio.get_running_loop().create_future()


class _Collided(BusUnavailable):
    """A deadlock or a serialization failure: rolled back, and worth another try."""


class _Held(BusUnavailable):
    """Another transaction holds a key for longer than KEY_WAIT; rolled back."""


class Publisher:
    """Writes drafts in the order in which they come.

    But for those with an idempotency key: they may have to wait for another transaction that publishes with the key,
    and the others are not to wait with them. One that has to wait is taken out of the shared commits of the keyed ones,
    too, and tried again until KEY_PATIENCE is over.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: deque[_Unit] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._keyed: deque[_Unit] = deque()
        self._keyed_worker: asyncio.Task[None] | None = None
        self._held: deque[_Unit] = deque()
        self._held_worker: asyncio.Task[None] | None = None
        self._closing = False
        self.published: Counter[tuple[bool, bool]] = Counter()
        """Events that were committed, by whether they came in a batch, and had a key."""
        self.commits = 0

    @property
    def waiting(self) -> int:
        """Requests that no commit has taken up."""
        return len(self._waiting) + len(self._keyed) + len(self._held)

    async def publish(self, drafts: Sequence[Draft], *, batch: bool = False) -> list[Published]:
        """Publish the drafts in one transaction; return (id, created at) of each, in order.

        ``batch`` is for the count alone: whether the request was one for many.

        Raises EventRefused (or a subclass) where the database refuses one, BusUnavailable where it is away, and
        OutcomeUnknown where it went away during the commit. A caller that is cancelled is not waited for; its
        drafts are published all the same.
        """
        unit = _Unit(drafts, batch)
        self._waiting.append(unit)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await unit.done

    def hurry(self) -> None:
        """From now on refuse what would have to wait for another transaction's key."""
        self._closing = True

    async def close(self) -> None:
        """Wait until everything that was handed in is written or refused."""
        self.hurry()
        while workers := {self._worker, self._keyed_worker, self._held_worker} - {None}:
            await asyncio.wait(worker for worker in workers if worker is not None)

    async def _work(self) -> None:
        try:
            while self._waiting:
                units = _take(self._waiting)
                self._keyed += [unit for unit in units if unit.keys]
                if self._keyed and self._keyed_worker is None:
                    self._keyed_worker = asyncio.create_task(self._work_keyed())
                if plain := [unit for unit in units if not unit.keys]:
                    await self._write(plain)
        finally:
            self._worker = None

    async def _work_keyed(self) -> None:
        try:
            while self._keyed:
                if units := self._free(_take(self._keyed)):
                    await self._write(units)
        finally:
            self._keyed_worker = None

    async def _work_held(self) -> None:
        """Try again, one request at a time: waiting takes a single connection, however many wait."""
        try:
            while self._held:
                await self._write([self._held[0]])
                self._held.popleft()
        finally:
            self._held_worker = None

    def _hold(self, unit: _Unit) -> None:
        """Put a request with a key that another transaction holds among those that are tried again."""
        if self._closing or time.monotonic() - unit.since > KEY_PATIENCE:
            _fail(unit, BusUnavailable("another transaction that is still open holds the idempotency key"))
            return
        self._held.append(unit)
        if self._held_worker is None:
            self._held_worker = asyncio.create_task(self._work_held())

    def _free(self, units: list[_Unit]) -> list[_Unit]:
        """Return the requests none of whose keys is known to be held; the others wait behind those that have them."""
        free = []
        for unit in units:
            if any(not unit.keys.isdisjoint(held.keys) for held in self._held):
                self._hold(unit)
            else:
                free.append(unit)
        return free

    async def _write(self, units: list[_Unit]) -> None:
        drafts = [draft for unit in units for draft in unit.drafts]
        try:
            try:
                written = await self._send(drafts)
            except _Collided:
                written = await self._send(drafts)  # the other transaction went on; it is over or about to be
        except (EventRefused, _Held) as refused:
            if len(units) > 1:
                for unit in units:  # nothing of the shared commit is there: each by itself
                    if self._free([unit]):
                        await self._write([unit])
            elif isinstance(refused, _Held):
                self._hold(units[0])
            else:
                _fail(units[0], await self._locate(units[0].drafts, refused))
        except Exception as error:
            for unit in units:
                _fail(unit, error)
        else:
            at = 0
            self.commits += 1
            for unit in units:
                keyed = sum(draft.key is not None for draft in unit.drafts) if unit.keys else 0
                self.published[unit.batch, True] += keyed
                self.published[unit.batch, False] += len(unit.drafts) - keyed
                if not unit.done.done():
                    unit.done.set_result(written[at : at + len(unit.drafts)])
                at += len(unit.drafts)

    async def _send(self, drafts: Sequence[Draft]) -> list[Published]:
        name = "publish_many"
        parameters: dict[str, Any] = {
            "channels": "\n".join([draft.channel for draft in drafts]),
            "event_types": "\n".join([draft.event_type for draft in drafts]),
            "payloads": "\x01".join([draft.payload for draft in drafts]),
        }
        if any(draft.key is not None for draft in drafts):
            name = "publish_keyed"
            parameters |= {"keys": [draft.key for draft in drafts], "wait": KEY_WAIT}
        sent = False
        try:
            async with lend(self._pool) as conn:
                sent = True
                with deadline(conn, RESPONSE_DEADLINE_S):
                    cursor = await conn.execute(query(name), parameters, binary=True)
                    return await cursor.fetchall()
        except psycopg.Error as error:
            raise _meaning(error, sent) from error

    async def _locate(self, drafts: Sequence[Draft], refused: EventRefused) -> EventRefused:
        """Find which draft of a request the database refuses; its place stays unknown where no payload is at fault."""
        if isinstance(refused, KeyReused):
            refused.index = next((place for place, draft in enumerate(drafts) if draft.key == refused.key), None)
            return refused
        if not await self._refuses(drafts):
            return refused
        low, high = 0, len(drafts)
        while high - low > 1:  # by halves, without publishing any
            middle = (low + high) // 2
            if await self._refuses(drafts[low:middle]):
                high = middle
            else:
                low = middle
        refused.index = low
        return refused

    async def _refuses(self, drafts: Sequence[Draft]) -> bool:
        try:
            async with connection(self._pool) as conn:
                await conn.execute(query("check_payloads"), ([draft.payload for draft in drafts],))
        except psycopg.Error:
            return True
        return False


def _take(waiting: deque[_Unit]) -> list[_Unit]:
    """Take from a queue what goes into one commit."""
    units = [waiting.popleft()]
    count = len(units[0].drafts)
    while waiting and count + len(waiting[0].drafts) <= MAX_SHARED_EVENTS:
        units.append(waiting.popleft())
        count += len(units[-1].drafts)
    return units


def _fail(unit: _Unit, error: Exception) -> None:
    if not unit.done.done():
        unit.done.set_exception(error)


def _meaning(error: psycopg.Error, sent: bool) -> Exception:
    """Say what a database error means for the events that were being published."""
    message = (error.diag.message_primary or summary(error)).strip()
    state = error.sqlstate or ""
    if state == "SP409":
        return KeyReused(message, key=error.diag.message_detail or "")
    if state == "23514" and error.diag.constraint_name == "events_payload":
        return PayloadTooLarge("the payload is larger than the table takes")
    if state == "54000" and error.diag.source_file == "async.c":
        return BusUnavailable(message)  # the queue of notifications is full
    if state.startswith(("22", "23", "54")):
        detail = error.diag.message_detail
        return EventRefused(f"{message}: {detail}" if detail and state.startswith("22") else message)
    if state == "55P03":
        return _Held(message)
    if state.startswith("40"):
        return _Collided(message)
    if not is_unavailable(error):
        return error
    # An error with a code of its own has rolled the transaction back. A connection that ended while the statement was
    # under way (no code, or the server's own shutdown) says nothing about the commit.
    if sent and (not state or state.startswith(("08", "57P0"))):
        return OutcomeUnknown(message)
    return BusUnavailable(message)
