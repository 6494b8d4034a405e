"""The session of a named consumer: every statement that the loop of ``sse_pg.client`` runs. The loop decides when.

It is a session of the user's program. So values are converted as psycopg does by default, and settings are changed only
where the loop depends on them. Without LISTEN nothing is set for the session, and no statement is prepared: a
transaction pooler gives each transaction to another backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from sse_pg.db import hosts, pooler, tail_session
from sse_pg.db.connection import (
    APPLICATION,
    PARAMETERS,
    RESPONSE_DEADLINE_S,
    Connection,
    deadline,
    is_unavailable,
    summary,
)
from sse_pg.db.queries import query
from sse_pg.errors import ClientError

__all__ = ["ConsumerSession", "is_temporary", "summary"]

#: How long one attempt waits for another taker of the same name.
TAKE_LOCK_TIMEOUT = "10s"


def is_temporary(error: BaseException) -> bool:
    """Return whether the same may succeed later: the database is unavailable, or other transactions were in the way."""
    if isinstance(error, OSError) or is_unavailable(error):
        return True
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith("40")


class ConsumerSession:
    """A connection that takes batches, one transaction each."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.last_id = 0
        """The last id drawn, in any channel, when events were last asked for."""

    @classmethod
    async def connect(cls, dsn: str, heard: Callable[[psycopg.Notify], None] | None) -> ConsumerSession:
        """Open a session that LISTENs, and calls ``heard`` for each notification. With None, it does not listen.

        Raises ClientError if it listens and a transaction pooler is in between.
        """
        parameters = {name: value for name, value in PARAMETERS.items() if name != "context"}
        if heard is None:
            parameters["prepare_threshold"] = None  # then prepare=True does nothing
        conn = await psycopg.AsyncConnection[tuple[Any, ...]].connect(
            dsn, **({"application_name": f"{APPLICATION} consumer"} | parameters | hosts.parameters(dsn))
        )
        if heard is None:
            return cls(conn)
        try:
            with deadline(conn, RESPONSE_DEADLINE_S):
                await _refuse_pooler(dsn, conn)
                await conn.execute(query("consumer_session"))
                conn.add_notify_handler(heard)
                await conn.execute(query("consumer_listen"))
        except BaseException:
            await conn.close()
            raise
        return cls(conn)

    async def take(self, consumer: str, channels: list[str], most: int) -> list[tuple[Any, ...]]:
        """Begin a transaction and take events in it. Without events, there is none. Another taker is waited for."""
        conn = self.conn
        params = {"consumer": consumer, "channels": channels, "most": most}
        with deadline(conn, RESPONSE_DEADLINE_S):
            answer = await conn.execute(query("consumer_has_work"), [consumer, channels], prepare=True)
            ((has_work, self.last_id),) = await answer.fetchall()
            if not has_work:
                return []
            try:
                async with conn.pipeline():
                    await conn.execute(query("consume_begin"))
                    await conn.execute(query("consume_lock_timeout"), [TAKE_LOCK_TIMEOUT])
                    cursor = await conn.execute(query("consume"), params, prepare=True)
                    await conn.execute(query("consume_own_lock_timeout"))
                rows = await cursor.fetchall()
            except psycopg.errors.LockNotAvailable:
                await conn.rollback()
                return []
            if not rows:
                await conn.commit()
        return rows

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended, whatever the last error says.

        If a backend ends, a pooler reports that and its own farewell, of which psycopg makes an InternalError.
        """
        return self.conn.broken

    async def commit(self) -> None:
        """Commit the batch. Raises ClientError, and rolls back, if a statement of the transaction has failed."""
        with deadline(self.conn, RESPONSE_DEADLINE_S):
            if self.conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
                await self.conn.rollback()
                raise ClientError(
                    "the batch was rolled back: a statement on its connection failed, and the program went on"
                )
            await self.conn.commit()

    async def show_asleep(self, *, was_awake: bool) -> int | None:
        """Show "asleep"; return the last id drawn before that was seen. None if another session holds the lock.

        A publisher that did not see it has a bound up to this id, see docs/guarantee.md.
        """
        with deadline(self.conn, RESPONSE_DEADLINE_S):
            if not await tail_session.fall_asleep(self.conn, was_awake=was_awake):
                return None
            return (await tail_session.publishers(self.conn)).last

    async def show_awake(self, *, was_asleep: bool) -> None:
        """Show "awake": publishers need not ring for this session."""
        with deadline(self.conn, RESPONSE_DEADLINE_S):
            await tail_session.wake_up(self.conn, was_asleep=was_asleep)

    async def all_ring(self, last: int) -> bool:
        """Return whether nobody is in flight any more who may not have seen "asleep", shown after this id was drawn."""
        with deadline(self.conn, RESPONSE_DEADLINE_S):
            return (await tail_session.publishers(self.conn)).all_began_after(last)


async def _refuse_pooler(dsn: str, conn: Connection) -> None:
    if await pooler.shares_backends(dsn, conn):
        raise ClientError(
            "the connection goes through a transaction pooler, which loses LISTEN: connect to PostgreSQL itself, or to "
            "a pooler with pool_mode = session, or pass listen=False, and the loop polls (docs/poolers.md)"
        )
