"""Publishing for requests: those that arrive while a commit is under way share the next one.

One statement, one round trip and one commit serve all of them. Each request gets its own ids or its own error.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import psycopg_pool

from sse_pg.db.connection import is_unavailable, summary
from sse_pg.db.draft import Draft, Published
from sse_pg.db.pool import Pool, lend
from sse_pg.db.publish_lane import Lane, Unit
from sse_pg.db.queries import query
from sse_pg.errors import BusUnavailable, EventRefused, KeyHeld, KeyReused, OutcomeUnknown, PayloadTooLarge, fresh

#: How long a shared commit waits for another transaction that has published with one of its idempotency keys ...
SHARED_LOCK_TIMEOUT = "100ms"
#: ... and how long each of its requests does when they are then tried one by one. Both are PostgreSQL's lock_timeout.
SINGLE_LOCK_TIMEOUT = "10ms"


class _Collided(BusUnavailable):
    """A deadlock or a serialization failure: everything was rolled back, and a second attempt is worthwhile."""


class _NoConnection(BusUnavailable):
    """No connection became free within the pool's time-out."""


#: Called once a connection is in hand; returns the drafts to be sent, and PostgreSQL's lock_timeout for them.
Take = Callable[[], tuple[Sequence[Draft], str]]


class Publisher:
    """Writes drafts in the order in which they come, requests with and without idempotency keys side by side.

    A request with a key may have to wait for another transaction that has published with the key and is still open. So
    that the others do not wait with it, requests with keys have commits of their own, and a wait is short: after it the
    request fails with KeyHeld. Nothing was published then, and the client can safely repeat the request.
    """

    def __init__(self, pool: Pool, committed: Callable[[], None] = lambda: None) -> None:
        """``committed`` is called after each commit."""
        self._pool = pool
        self._committed = committed
        self._plain = Lane(self._write, pool.timeout)
        self._keyed = Lane(self._write, pool.timeout)
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
        BusUnavailable if the drafts were not sent within the pool's time-out or the database is unavailable, and
        OutcomeUnknown if the connection was lost during the commit. If the caller is cancelled, its drafts are not
        published, unless they were sent before.
        """
        unit = Unit(drafts, batch)
        return await (self._keyed if unit.keyed else self._plain).publish(unit)

    async def finish(self, channel: str) -> int:
        """Finish a channel; return the id of the event that says so. Raises what ``publish`` raises."""
        sent = False
        try:
            async with lend(self._pool) as conn:
                sent = True
                rows = await (await conn.execute(query("finish"), (channel,), binary=True)).fetchall()
        except psycopg_pool.PoolTimeout as error:
            raise _NoConnection(str(error)) from error
        except psycopg.Error as error:
            raise _meaning(error, sent) from error
        if rows[0][0] is None:
            raise EventRefused("a trigger on sse_pg.events discarded the event")
        self.commits += 1
        self.published[False, False] += 1
        self._committed()
        return int(rows[0][0])

    async def close(self) -> None:
        """Wait until every request that was handed in is published or has failed."""
        while workers := [lane.worker for lane in (self._plain, self._keyed) if lane.worker is not None]:
            await asyncio.wait(workers)

    async def _write(self, lane: Lane) -> None:
        """Publish waiting requests in one commit. If the database refuses it, each gets a commit of its own."""
        units: list[Unit] = []

        def take() -> tuple[Sequence[Draft], str]:
            lane.is_connecting = False
            if not units:  # otherwise this is the second attempt
                units.extend(lane.take())
            if len(units) == 1:
                return units[0].drafts, SINGLE_LOCK_TIMEOUT if units[0].alone else SHARED_LOCK_TIMEOUT
            return [draft for unit in units for draft in unit.drafts], SHARED_LOCK_TIMEOUT

        lane.is_connecting = True
        try:
            written = await self._commit(take)
        except Exception as error:
            if not isinstance(error, BusUnavailable) or isinstance(error, KeyHeld):
                lane.answered()
            if not units:
                if not isinstance(error, _NoConnection):  # what waits for too long expires by itself
                    lane.fail(error)
            elif len(units) > 1 and _may_concern_one(error):
                lane.try_one_by_one(units)  # the shared commit was rolled back as a whole
            elif isinstance(error, EventRefused | KeyHeld):
                await self._refuse(units[0], error)
            else:
                for unit in units:
                    unit.fail(fresh(error))
        else:
            lane.answered()
            self._succeed(units, written)
        finally:
            lane.is_connecting = False

    def _succeed(self, units: list[Unit], written: list[Published]) -> None:
        """Hand each request its part of what one commit has returned."""
        if units:
            self.commits += 1
            self._committed()
        start = 0
        for unit in units:
            end = start + len(unit.drafts)
            self.published[unit.batch, True] += unit.keyed
            self.published[unit.batch, False] += len(unit.drafts) - unit.keyed
            if not unit.done.done():
                unit.done.set_result(written[start:end])
            start = end

    async def _refuse(self, unit: Unit, error: EventRefused | KeyHeld) -> None:
        if isinstance(error, EventRefused):
            error.index = await self._locate(unit.drafts, error)
        unit.fail(error)

    async def _commit(self, take: Take) -> list[Published]:
        try:
            return await self._send(take)
        except _Collided:
            return await self._send(take)  # the other transaction is over, or about to be

    async def _send(self, take: Take, *, rehearse: bool = False) -> list[Published]:
        """Publish what ``take`` returns; ``rehearse`` rolls back what it has published."""
        sent = False
        try:
            async with lend(self._pool) as conn:
                drafts, lock_timeout = take()
                if not drafts:
                    return []
                sent = True
                name, parameters = _statement(drafts, lock_timeout)
                if not rehearse:
                    return await (await conn.execute(query(name), parameters, binary=True)).fetchall()
                async with conn.transaction(force_rollback=True):
                    return await (await conn.execute(query(name), parameters, binary=True)).fetchall()
        except psycopg_pool.PoolTimeout as error:
            raise _NoConnection(str(error)) from error
        except psycopg.Error as error:
            raise _meaning(error, sent) from error

    async def _rehearse(self, drafts: Sequence[Draft]) -> None:
        await self._send(lambda: (drafts, SINGLE_LOCK_TIMEOUT), rehearse=True)

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
                    await self._rehearse(drafts[low:middle])
                except EventRefused:
                    high = middle
                else:
                    low = middle
            if len(drafts) > 1:
                await self._rehearse(drafts[low:high])
                return None  # it takes several of them together
        except EventRefused:
            pass
        except (BusUnavailable, psycopg.Error):
            return None
        return low


def _statement(drafts: Sequence[Draft], lock_timeout: str) -> tuple[str, dict[str, Any]]:
    """Return the name of the statement that publishes drafts, and its parameters."""
    parameters: dict[str, Any] = {
        "channels": "\n".join([draft.channel for draft in drafts]),
        "event_types": "\n".join([draft.event_type for draft in drafts]),
        "payloads": "\x01".join([draft.payload for draft in drafts]),
        "headers": None,
    }
    if any(draft.headers is not None for draft in drafts):
        parameters["headers"] = "\x01".join([draft.headers or "" for draft in drafts])
    if all(draft.key is None for draft in drafts):
        return "publish_many", parameters
    return "publish_keyed", {**parameters, "keys": [draft.key for draft in drafts], "lock_timeout": lock_timeout}


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
    if state == "23505" and error.diag.schema_name == "sse_pg" and (error.diag.constraint_name or "").endswith("_pkey"):
        return BusUnavailable("events were copied into the log with ids that the sequence has not drawn yet")
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
