"""``consume``: a loop over the events of a named consumer, in transactions of the program that runs it.

The loop needs a connection to the database, unlike the rest of the client. What it needs of the package is imported
when it connects, so that a program that follows streams does not load a database driver.

While it waits, the loop shows publishers "asleep" with the lock that a server's tail takes, so that they ring. If bells
come as often as polling would read, it polls, as a tail does, and shows "awake".

Behind a transaction pooler a loop can neither LISTEN nor hold a lock. With ``listen=False`` it only polls, and needs
nothing that outlives a transaction: the cursor is a row, and its lock ends with the batch.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sse_pg.client.backoff import Backoff
from sse_pg.client.events import Gap, Reconnect

if TYPE_CHECKING:
    import psycopg

    from sse_pg.db.consumer_session import ConsumerSession

    Connection = psycopg.AsyncConnection[tuple[Any, ...]]

_log = logging.getLogger("sse_pg.client")

#: Seconds between reads while the log is busy.
POLL_S = 0.005
#: The loop polls when this many bells came within twice the time of as many polls ...
BELLS_TO_WAKE = 10
#: ... and waits for the bell again when this many polls in a row found nothing.
POLLS_TO_SLEEP = 25
#: Seconds between reads after it fell asleep, while a publisher is in flight that may not ring for it.
IN_FLIGHT_POLL_S = 0.025
#: Seconds between reads without a bell: a transaction that was prepared does not ring.
SAFETY_READ_S = 1.0
#: Seconds until it is tried again to show "asleep", if another session holds the lock.
SLEEP_RETRY_S = 10.0
#: A loop that does not listen waits for this share of the time since its last batch, ...
IDLE_SHARE = 0.05
#: ... but at most for so many seconds.
MAX_IDLE_POLL_S = 0.1


class _Bell:
    """Counts notifications. Only this is known to the connection: a loop that was left must be collected at once."""

    def __init__(self) -> None:
        self._count = 0

    def heard(self, _: psycopg.Notify) -> None:
        """Note a bell. psycopg calls this for one that arrives with the result of a statement."""
        self._count += 1

    def take(self) -> int:
        """Return how often the bell rang since the last call."""
        count, self._count = self._count, 0
        return count

    async def wait(self, conn: Connection, seconds: float) -> None:
        """Wait for a bell or the end of the connection. A bell that was not taken yet counts."""
        self._count_pending(conn)
        if self._count:
            return
        wake = asyncio.Event()
        loop = asyncio.get_running_loop()
        descriptor = conn.fileno()
        loop.add_reader(descriptor, wake.set)
        try:
            async with asyncio.timeout(seconds):
                await wake.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(descriptor)
        conn.pgconn.consume_input()
        self._count_pending(conn)

    def _count_pending(self, conn: Connection) -> None:
        while conn.pgconn.notifies() is not None:
            self._count += 1


class StoredEvent(NamedTuple):
    """An event as it is in the log."""

    id: int
    channel: str
    event_type: str
    payload: Any
    headers: dict[str, Any] | None
    created_at: datetime
    cursor: str
    """The consumer's cursor after this event. A stream can be opened with it."""


class Consumer:
    """An async iterator of batches: ``async for batch, conn in consume(dsn, name, channels)``.

    A batch is a list of StoredEvent, ``conn`` the connection whose transaction the batch was taken in. What the body of
    the loop writes with ``conn`` is committed together with the consumer's cursor, when the body ends. If the body
    raises, both are rolled back, and the events come again.

    A body that is left by ``break`` has not ended: call ``await conn.commit()`` before, or use the consumer as an async
    context manager, which commits if its own body ends without an error.
    """

    def __init__(
        self,
        dsn: str,
        name: str,
        channels: Iterable[str],
        *,
        most: int = 100,
        listen: bool = True,
        on_gap: Callable[[Gap, Connection], object] | None = None,
        on_reconnect: Callable[[Reconnect], object] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """Prepare to consume ``channels`` under a name. Nothing is done before the first batch is asked for.

        :param dsn: a connection string or URL of PostgreSQL, as psycopg takes it.
        :param name: of the consumer. Loops with the same name share its events; a new name begins at the oldest event.
        :param channels: names. The channels of a consumer cannot change.
        :param most: maximum number of events in a batch.
        :param listen: False if the connection goes through a transaction pooler, which loses LISTEN: the loop then
            polls, and an event waits for up to 0.1 s.
        :param on_gap: called with a Gap and the connection if events were purged before they were consumed, or if the
            log was restored or failed over; awaited if it is async. It runs in the transaction of the batch. By default
            a warning is logged.
        :param on_reconnect: called before each wait for the next attempt to connect, likewise; logs a warning by
            default.

        If the database is unavailable, the loop connects again. Everything else that the database refuses is raised,
        and so is every error of the body.
        """
        self._dsn = dsn
        self._name = name
        self._channels = [channels] if isinstance(channels, str) else sorted(set(channels))
        self._most = most
        self._listens = listen
        self._on_gap = on_gap or _log_gap
        self._on_reconnect = on_reconnect or _log_reconnect
        self._backoff = backoff or Backoff(0.2, 10.0)
        self._session: ConsumerSession | None = None
        self._busy = False
        self._closed = False
        self._is_out = False
        """Whether events were taken that are not committed."""
        self._is_awake = False
        self._fell_asleep_at: int | None = None
        self._awake_until = 0.0
        self._idle = 0
        self._found_at = 0.0
        self._bell = _Bell()
        self._busy_bells: list[float] = []

    def __aiter__(self) -> Consumer:
        return self

    async def __anext__(self) -> tuple[list[StoredEvent], Connection]:
        if self._busy:
            raise RuntimeError("a consumer can be iterated by only one task at a time")
        self._busy = True
        try:
            return await self._next()
        except BaseException:
            # The exception may be kept for long, and this object with it. A transaction that was begun ends now.
            self._forget()
            raise
        finally:
            self._busy = False

    async def __aenter__(self) -> Consumer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._is_out and self._session is not None:
                self._is_out = False
                await self._session.commit()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connection; a batch that is not committed is rolled back. No task may wait for a batch then."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.conn.close()

    def __del__(self) -> None:
        # The loop was left by break or by an error: the batch is rolled back now, not when the program ends.
        if getattr(self, "_session", None) is not None:
            self._forget()

    def _forget(self) -> None:
        """Cut the connection, without waiting. The next batch is taken on a new one."""
        session, self._session = self._session, None
        if session is not None:
            session.conn.pgconn.finish()

    async def _next(self) -> tuple[list[StoredEvent], Connection]:
        from sse_pg.db.consumer_session import is_temporary, summary

        while not self._closed:
            try:
                session, batch, gaps = await self._try()
            except Exception as error:
                if not is_temporary(error) and not (self._session is not None and self._session.is_lost):
                    raise
                reason = summary(error)
                # psycopg's connect() refers to the error that it raises, and the error's traceback to this frame. With
                # such a cycle, a consumer that is left by an error of the body would be collected late, and its batch
                # stay locked until then.
                error.__traceback__ = None
            else:
                for gap in gaps:
                    await _call(self._on_gap, gap, session.conn)
                if batch:
                    return batch, session.conn
                continue
            await self._drop()
            delay = self._backoff.next_delay()
            await _call(self._on_reconnect, Reconnect(reason, delay, None))
            await asyncio.sleep(delay)
        raise StopAsyncIteration

    async def _try(self) -> tuple[ConsumerSession, list[StoredEvent], list[Gap]]:
        """Commit the last batch, and take the next one, or wait once and return nothing."""
        session = self._session
        if session is None:
            session = await self._connect()
        if self._is_out:
            self._is_out = False
            await session.commit()
        if not self._is_awake and self._is_busy():
            await session.show_awake(was_asleep=True)
            self._is_awake, self._fell_asleep_at = True, None
        last_id = session.last_id
        rows = await session.take(self._name, self._channels, self._most)
        self._is_out = bool(rows)
        self._backoff.reset()
        if session.last_id != last_id:
            self._idle = 0  # as a tail, it stays awake while the log is busy, whatever the channels are
        if rows:
            self._found_at = asyncio.get_running_loop().time()
        else:
            await self._rest(session)
        batch = [StoredEvent(*row) for row in rows if row[2] != "sse-pg.gap"]
        return session, batch, [msgspec.convert(row[3], Gap) for row in rows if row[2] == "sse-pg.gap"]

    async def _connect(self) -> ConsumerSession:
        from sse_pg.db.consumer_session import ConsumerSession

        self._is_out = self._is_awake = False
        self._busy_bells.clear()
        heard = self._bell.heard if self._listens else None
        session = self._session = await ConsumerSession.connect(self._dsn, heard)
        if self._listens:
            await self._fall_asleep(session)
        else:
            self._found_at = asyncio.get_running_loop().time()
        return session

    async def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.conn.close()

    # ------------------------------------------------------------ waiting

    async def _rest(self, session: ConsumerSession) -> None:
        """Wait until it may be worth reading again."""
        if not self._listens:
            idle_s = asyncio.get_running_loop().time() - self._found_at
            await asyncio.sleep(min(MAX_IDLE_POLL_S, max(POLL_S, IDLE_SHARE * idle_s)))
            return
        if self._is_awake:
            self._idle += 1
            await asyncio.sleep(POLL_S)
            if self._idle >= POLLS_TO_SLEEP and asyncio.get_running_loop().time() >= self._awake_until:
                await self._fall_asleep(session)
            return
        await self._bell.wait(session.conn, SAFETY_READ_S if self._fell_asleep_at is None else IN_FLIGHT_POLL_S)
        if self._fell_asleep_at is not None and await session.all_ring(self._fell_asleep_at):
            self._fell_asleep_at = None

    async def _fall_asleep(self, session: ConsumerSession) -> None:
        """Show "asleep". Publishers that may not have seen it are polled for until they have ended."""
        self._fell_asleep_at = await session.show_asleep(was_awake=self._is_awake)
        if self._fell_asleep_at is not None:
            self._is_awake = False
            return
        self._awake_until = asyncio.get_running_loop().time() + SLEEP_RETRY_S
        if not self._is_awake:
            await session.show_awake(was_asleep=False)
            self._is_awake = True

    def _is_busy(self) -> bool:
        """Return whether the bell rings about as often as polling would read. Whom it rings for does not matter."""
        now = asyncio.get_running_loop().time()
        self._busy_bells = [*self._busy_bells, *[now] * self._bell.take()][-BELLS_TO_WAKE:]
        return (
            len(self._busy_bells) == BELLS_TO_WAKE
            and self._busy_bells[-1] - self._busy_bells[0] < 2 * BELLS_TO_WAKE * POLL_S
        )


async def _call(callback: Callable[..., object], *arguments: object) -> None:
    result = callback(*arguments)
    if inspect.isawaitable(result):
        await result


def _log_gap(gap: Gap, _: Connection) -> None:
    _log.warning("the events after %s and up to %s were not consumed: %s", gap.after, gap.before, gap.reason)


def _log_reconnect(lost: Reconnect) -> None:
    _log.warning("the consumer's connection was lost (%s); the next attempt is in %.1f s", lost.reason, lost.delay)
