"""The session of a tail that reads from a standby, and that of the connection to the primary that such a server has.

A standby knows neither who is in flight nor how far the sequence is. It knows the mark: what a server on the primary
has noted of it, which is in the same snapshot as the events.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import psycopg

from sse_pg.core.ranges import Ranges
from sse_pg.db import tail_session
from sse_pg.db.connection import Connection
from sse_pg.db.queries import query
from sse_pg.db.tail_session import Publishers, Read
from sse_pg.errors import LogUnreadable

#: Messages of one read. If there were more, anything may have been sent. read_marked() in sql/schema.sql has it too.
MAX_MESSAGES = 1000


class Marked(NamedTuple):
    """What one read of a standby found, all from one snapshot but for ``replayed``."""

    read: Read
    """``publishers`` are those in flight as the mark has them: its id is the last one that is known."""
    epochs: int
    """How many epochs there are."""
    replayed: int
    """Everything that was written to the WAL up to here is in the snapshot."""
    oldest_running: int
    """Every transaction below this one had ended."""
    messages: list[tuple[int, str]]
    """What was sent on the control channel, each with its transaction."""
    expired: dict[str, int]
    """Channels of which keep() has deleted events beyond what was read, and up to which id."""


async def copy_identity(conn: Connection) -> str:
    """Read which log this is. A primary and its standbys return the same."""
    ((identity,),) = await (await conn.execute(query("expect_copy"), (None,))).fetchall()
    return str(identity)


async def noted_identity(conn: Connection) -> str:
    """Read which log a server has noted this one to be; empty if none has yet."""
    row = await (await conn.execute(query("noted_identity"))).fetchone()
    return str(row[0]) if row is not None else ""


async def events(
    conn: Connection, seen: int, missing: Ranges, limit: int, *, since: int | None, followed: bytes | None
) -> Marked | Read:
    """Read as ``tail_session.events`` does, and the mark with it.

    ``since``: the first transaction whose messages are wanted; None: there are none. If an event cannot be read, this
    returns what comes before it, without a mark.
    """
    params = {
        "seen": seen,
        "limit": limit,
        "octets": tail_session.READ_BYTES,
        "since": None if since is None else str(since),
        "followed": followed,
        **tail_session.spans(missing),
    }
    try:
        cursor = await conn.execute(query("marked_read"), params, prepare=True, binary=True)
        rows = await cursor.fetchall()
    except (psycopg.DataError, UnicodeDecodeError):
        return await tail_session.events(conn, seen, missing, limit, followed=followed)
    if not rows or rows[0][0] != 0:
        raise LogUnreadable("the table sse_pg.log has no row")
    purged_to, settled_to, first, last, epochs, replayed, oldest, messages, expired = msgspec.json.decode(rows[0][3])
    mark = Publishers(settled_to, Ranges(zip(first, last, strict=True)), None)
    return Marked(
        tail_session.read_below(rows, limit, purged_to, mark),
        epochs,
        replayed,
        oldest,
        [(transaction, message) for transaction, message in messages or ()],
        expired or {},
    )


async def copying_subscription(conn: Connection) -> str | None:
    """Return the subscription (logical replication) that copies events into the primary's log, as replayed here."""
    ((subscription,),) = await (await conn.execute(query("copying_subscription"))).fetchall()
    return None if subscription is None else str(subscription)


# ------------------------------------------------------------ the connection to the primary


async def listen_to_control(conn: Connection) -> None:
    """LISTEN to the control channel alone."""
    await tail_session.queue_usage(conn)
    await conn.execute(query("control_listen"))


async def show_standby_is_read(conn: Connection) -> None:
    """Hold a lock by which the server that notes what is settled sees that its notes are read at a standby."""
    await conn.execute(query("standby_is_read"))


async def look(conn: Connection) -> tuple[int, int]:
    """Read the last id drawn, and up to where the WAL is written."""
    ((last, written),) = await (await conn.execute(query("primary_look"))).fetchall()
    return int(last), int(written)


async def read_elsewhere(conn: Connection, server_id: int | None) -> int:
    """Return the highest id that a server other than this one has handed on."""
    ((number,),) = await (await conn.execute(query("read_elsewhere"), (server_id,))).fetchall()
    return int(number)


async def write_mark(conn: Connection) -> bool | None:
    """Note what is settled. Returns None if nothing has changed, and False if somebody holds the row."""
    ((is_written,),) = await (await conn.execute(query("write_mark"))).fetchall()
    return None if is_written is None else bool(is_written)
