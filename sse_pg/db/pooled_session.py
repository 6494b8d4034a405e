"""The session of a tail that has no session: its connection may go through a transaction pooler.

The pooler gives each transaction to another backend. So every statement is a transaction of its own, which begins with
the settings and with the check that the connection still leads to the same log. All of it goes out in one round trip.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import msgspec
import psycopg

from sse_pg.core.ranges import Ranges
from sse_pg.db import tail_session
from sse_pg.db.connection import APPLICATION, PARAMETERS, Connection
from sse_pg.db.hosts import Hosts
from sse_pg.db.queries import query
from sse_pg.db.tail_session import Read
from sse_pg.errors import BusUnavailable

#: Messages of one read. If there were more, the tail assumes that anything may have been sent.
MAX_MESSAGES = 1000
#: Time between two reads after which messages may have been deleted that were not read; they are kept for an hour.
MAX_ABSENCE_S = 1800.0


class TailConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection of which each statement is a transaction of its own, set up and checked."""

    log_identity: str | None = None
    """sse_pg.log_identity() that every statement expects; None accepts any."""

    @classmethod
    async def open(cls, url: str | None, hosts: Hosts) -> Self:
        """Connect to one of the hosts. Nothing is set for the session, and no statement is prepared."""
        conn = await cls.connect(
            url or "",
            application_name=f"{APPLICATION} tail",
            prepare_threshold=None,
            **PARAMETERS,
            **hosts.parameters,
        )
        try:
            await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        except BaseException:
            await conn.close()
            raise
        return conn

    async def execute(
        self, query_: Any, params: Any = None, *, prepare: bool | None = None, binary: bool = False
    ) -> Any:
        """Run a statement in its transaction."""
        async with self.pipeline(), self.transaction():
            await super().execute(query("pooled_begin"), {"log": self.log_identity})
            return await super().execute(query_, params, prepare=prepare, binary=binary)


class Heard(NamedTuple):
    """What was sent on the control channel since an earlier snapshot."""

    snapshot: str
    """What to pass to the next read."""
    at_s: float
    """The database's time of the read, in seconds."""
    messages: list[str]
    everything: bool
    """Whether more was sent than is listed, so that anything may have been."""

    def follows(self, before: Heard) -> None:
        """Raise BusUnavailable if something may have been missed since the read before."""
        if self.at_s - before.at_s > MAX_ABSENCE_S:
            raise BusUnavailable("the log was not read for so long that revocations may have been missed")
        if _upper_end(self.snapshot) < _upper_end(before.snapshot):
            raise BusUnavailable("the database is another one than before: its transactions have lower numbers")


def _upper_end(snapshot: str) -> int:
    return int(snapshot.split(":")[1])


def _heard(snapshot: str, at_s: float, messages: list[str]) -> Heard:
    return Heard(snapshot, at_s, messages[:MAX_MESSAGES], len(messages) > MAX_MESSAGES)


async def hear(conn: Connection, since: str | None) -> Heard:
    """Read what was sent since a snapshot; None reads nothing, and returns the snapshot to begin with."""
    ((snapshot, at_s, messages),) = await (
        await conn.execute(query("pooled_hear"), {"since": since, "most": MAX_MESSAGES})
    ).fetchall()
    return _heard(snapshot, at_s, messages)


async def look(conn: Connection, since: str) -> tuple[int, Heard]:
    """Read the last id drawn, and what was sent since a snapshot."""
    ((last, snapshot, at_s, messages),) = await (
        await conn.execute(query("pooled_look"), {"since": since, "most": MAX_MESSAGES})
    ).fetchall()
    return int(last), _heard(snapshot, at_s, messages)


async def look_around(conn: Connection, server_id: int | None) -> tuple[bool, str | None]:
    """Return whether the server with this number notes what is settled, and which subscription copies events."""
    ((elected, subscription),) = await (await conn.execute(query("pooled_elect"), (server_id,))).fetchall()
    return bool(elected), subscription


async def events(
    conn: Connection, seen: int, missing: Ranges, limit: int, *, asks: bool, followed: bytes | None, since: str
) -> tuple[Read, Heard]:
    """Read events as ``tail_session.events`` does, and then, in the same transaction, what was sent since a snapshot.

    The order matters: what was revoked before one of the events was published is among the messages.
    """
    tail_session.require_utf8(conn)
    params = tail_session.read_params(seen, missing, limit, followed, asks=asks)
    params |= {"since": since, "most": MAX_MESSAGES}
    try:
        rows = await (await conn.execute(query("pooled_read"), params, binary=True)).fetchall()
    except (psycopg.DataError, UnicodeDecodeError):
        read = await tail_session.events(conn, seen, missing, limit, asks=asks, followed=followed)
        return read, await hear(conn, since)
    snapshot, at_s, messages = msgspec.json.decode(rows.pop()[3])
    return tail_session.read_of(rows, limit, asks=asks), _heard(snapshot, at_s, messages)
