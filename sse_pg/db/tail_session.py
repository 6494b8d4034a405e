"""The tail's session: every statement that it runs on the connection that LISTENs. The tail decides when."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, NamedTuple

import msgspec
import psycopg

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor, trimmed
from sse_pg.core.epoch import Epoch
from sse_pg.core.event import AnyEvent, Event, Unfollowed
from sse_pg.core.followed import hash_text
from sse_pg.core.ranges import Ranges
from sse_pg.db.connection import Connection
from sse_pg.db.hosts import Hosts
from sse_pg.db.queries import query
from sse_pg.errors import BusUnavailable, LogUnreadable, one_line

log = logging.getLogger(__name__)

#: A text whose hash shows that the database hashes channels as this process does.
PROBE = "sse_pg.channel/1"
#: How often it is tried to show "asleep": a publisher that asks is in the way for a moment.
SLEEP_ATTEMPTS = 10
#: Seconds between two attempts.
SLEEP_PAUSE_S = 0.005
#: A read ends after the event with which its payloads have so many bytes, whatever its limit in events is.
READ_BYTES = 4_194_304
#: How often, and with which pause, a server looks whether a deletion has ended that began before it was registered. One
#: takes a fraction of a second. A session that only holds its lock must not keep the server from starting.
DELETION_LOOKS = 100
DELETION_PAUSE_S = 0.02


class Publishers(NamedTuple):
    """The publishers in flight."""

    last: int
    """The last id drawn."""
    alive: Ranges
    """The ids that may still come."""
    least_bound: int | None
    """The least of their lower bounds: a publisher can hold only ids above its own. None if nobody is in flight."""

    def all_began_after(self, last: int) -> bool:
        """Return whether every publisher took its lock after ``last`` was the last id drawn."""
        return self.least_bound is None or self.least_bound > last


class Read(NamedTuple):
    """What one read of the log found, from one snapshot."""

    events: list[AnyEvent]
    """Ascending by id."""
    purged_to: int
    """Every id up to this one may have been purged."""
    more: bool
    """Whether the read ended at one of its limits, so that nothing is known above its last event."""
    publishers: Publishers | None
    """Who was in flight before the read; None if that was not asked for."""
    fault: str | None = None
    """Why the event after the last one cannot be delivered; None if there is no such event."""


async def set_up(conn: Connection) -> bool:
    """Set up the session. Returns whether the database can leave out the payloads of channels that nobody follows.

    Its hash has to be the one that makes the filter. It is another one on a machine whose highest byte comes first, and
    for names in another encoding.
    """
    row = await (await conn.execute(query("tail_session"), (PROBE,))).fetchone()
    assert row is not None
    *_, hashed, encoding = row
    return _filters_alike(hashed, encoding)


async def can_filter(conn: Connection) -> bool:
    """Return what ``set_up`` returns, and set nothing."""
    ((hashed, encoding),) = await (await conn.execute(query("hash_probe"), (PROBE,))).fetchall()
    return _filters_alike(hashed, encoding)


def _filters_alike(hashed: int, encoding: str) -> bool:
    return hashed & 0xFFFFFFFF == hash_text(PROBE) and encoding == "UTF8"


async def listen(conn: Connection) -> None:
    """LISTEN to the bell and to the control channel."""
    # A session that LISTENs first goes through what is left in the queue. After a long time without listeners, that may
    # name transactions whose state PostgreSQL has forgotten, and LISTEN fails. Asking for the usage drops it.
    await queue_usage(conn)
    await conn.execute(query("listen"))


async def check_epoch(conn: Connection) -> None:
    """Begin an epoch if the log is not the one that a server last noted."""
    await conn.execute(query("check_epoch"))


async def log_identity(conn: Connection) -> str:
    """Read which log this is."""
    ((identity,),) = await (await conn.execute(query("expect_log"), (None,))).fetchall()
    return str(identity)


def is_older(here: str, known: str) -> bool:
    """Return whether a log is the one that a known log followed: the same but for a lower timeline of its cluster.

    That is an old primary that came back after its standby was promoted. Nothing is known yet if ``known`` is empty.
    """
    if not known:
        return False
    (cluster, timeline, *table), (known_cluster, known_timeline, *known_table) = here.split("/"), known.split("/")
    return (cluster, table) == (known_cluster, known_table) and timeline < known_timeline


async def log_after(conn: Connection, known: str, hosts: Hosts) -> str:
    """Return which log this is. Raises BusUnavailable if it is one that the known log followed.

    Another of the hosts is then tried first.
    """
    here = await log_identity(conn)
    if is_older(here, known):
        hosts.avoid(conn.info)
        log.warning("%s, port %s, is an old primary, or a copy", conn.info.host, conn.info.port)
        raise BusUnavailable(  # without the host: strangers see it in /readyz
            f"an old primary, or a copy: it is at timeline {here.split('/')[1]}, and this server has followed timeline "
            f"{known.split('/')[1]}; restart this server to follow it"
        )
    return here


async def fall_asleep(conn: Connection, *, was_awake: bool) -> bool:
    """Show publishers "asleep", and only then stop showing "awake". Returns False, and changes nothing, if it cannot.

    Without "asleep" publishers might not ring, so the tail must go on polling then.
    """
    for _ in range(SLEEP_ATTEMPTS):
        ((is_shown,),) = await (await conn.execute(query("sleep_begin"))).fetchall()
        if is_shown:
            if was_awake:
                await conn.execute(query("wake_end"))
            return True
        await asyncio.sleep(SLEEP_PAUSE_S)
    log.warning("another session holds the advisory lock by which this server shows that it is asleep, so it polls: %s",
                await lock_holders(conn, "tail", 1))  # fmt: skip
    return False


async def wake_up(conn: Connection, *, was_asleep: bool = True) -> None:
    """Show publishers "awake", and only then stop showing "asleep". A publisher in between sees both, and rings."""
    await conn.execute(query("wake_begin"))
    if was_asleep:
        await conn.execute(query("sleep_end"))


async def lock_holders(conn: Connection, name: str, key: int) -> str:
    """Return who else holds a lock of ours, for a log line."""
    rows = await (await conn.execute(query("lock_holders"), {"class": name, "key": key})).fetchall()
    return ", ".join(f"process {pid} of {role or 'an unknown role'}" for pid, role in rows) or "it is free again"


async def publishers(conn: Connection) -> Publishers:
    """Read which publishers are in flight."""
    cursor = await conn.execute(query("publishers"), prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    return _publishers(*row)


def _publishers(last: int, least_bound: int | None, first_ids: list[int], last_ids: list[int]) -> Publishers:
    return Publishers(last, Ranges(zip(first_ids, last_ids, strict=True)), least_bound)


async def missing(conn: Connection, ids: Ranges) -> Ranges:
    """Read which of these ids are not visible."""
    rows = await (await conn.execute(query("missing_ids"), spans(ids), binary=True)).fetchall()
    return Ranges(rows)


def require_utf8(conn: Connection) -> None:
    """Raise LogUnreadable if texts do not come in UTF-8."""
    if conn.info.encoding != "utf-8":
        raise LogUnreadable(
            f"client_encoding is {conn.info.parameter_status('client_encoding')} and must be UTF8; "
            "something between this server and the database has changed it"
        )


async def events(
    conn: Connection, seen: int, missing: Ranges, limit: int, *, asks: bool = False, followed: bytes | None = None
) -> Read:
    """Read up to ``limit`` events: those above ``seen``, and those of the missing ids that have become visible.

    ``followed``: the filter of the channels whose payloads are wanted (``core/followed.py``); None: of all.
    ``asks``: read first, in the same round trip, which publishers are in flight.
    Raises LogUnreadable if the session cannot read any event as it was published.
    """
    require_utf8(conn)
    try:
        return await _events(conn, seen, missing, limit, followed, asks=asks)
    except (psycopg.DataError, UnicodeDecodeError) as error:
        return await _events_before_fault(conn, seen, missing, limit, followed, error)


async def _events(
    conn: Connection, seen: int, missing: Ranges, limit: int, followed: bytes | None, *, asks: bool = False
) -> Read:
    name = "tail_read" if missing or asks else "tail_read_above"
    params = read_params(seen, missing, limit, followed, asks=asks)
    rows = await (await conn.execute(query(name), params, prepare=True, binary=True)).fetchall()
    return read_of(rows, limit, asks=asks)


def read_params(seen: int, missing: Ranges, limit: int, followed: bytes | None, *, asks: bool) -> dict[str, object]:
    """Return the parameters of a read, see ``events``."""
    params: dict[str, object] = {"seen": seen, "limit": limit, "octets": READ_BYTES, "followed": followed}
    return params | {"asks": asks, **spans(missing)}


def read_of(rows: list[tuple[Any, ...]], limit: int, *, asks: bool) -> Read:
    """Return what the rows of a read say."""
    in_flight = _publishers(*msgspec.json.decode(rows.pop(0)[3])) if asks else None
    if not rows or rows[0][0] != 0:
        raise LogUnreadable("the table sse_pg.log has no row")
    return read_below(rows, limit, int(rows[0][3]), in_flight)


def read_below(rows: list[tuple[Any, ...]], limit: int, purged_to: int, in_flight: Publishers | None) -> Read:
    """Return the read whose events are the rows below the first one."""
    more = len(rows) > limit
    if rows[-1][0] is None:  # not an event: says that there is more
        rows.pop()
        more = True
    events: list[AnyEvent] = []
    for row in rows[1:]:
        if row[3] is None:
            events.append(Unfollowed(row[0], row[1], row[2], row[4]))
            continue
        event = Event(*row)
        try:
            wire.check(event)
        except ValueError as error:
            return Read(events, purged_to, True, in_flight, f"event {event.id}: {error}")
        events.append(event)
    return Read(events, purged_to, more, in_flight)


async def _events_before_fault(
    conn: Connection, seen: int, missing: Ranges, limit: int, followed: bytes | None, error: Exception
) -> Read:
    """Read the events before the first that PostgreSQL cannot send as text. Its error does not say which that is."""
    read, readable, unreadable = await _events(conn, seen, missing, 0, followed), 0, limit
    while unreadable - readable > 1:
        middle = (readable + unreadable) // 2
        try:
            read, readable = await _events(conn, seen, missing, middle, followed), middle
        except (psycopg.DataError, UnicodeDecodeError):
            unreadable = middle
            continue
        if len(read.events) < middle and read.more and read.fault is None:
            return read  # what has become visible meanwhile fills a read before the fault
    after = read.events[-1].id if read.events else 0
    row = await (await conn.execute(query("tail_next_id"), {"after": after, "seen": seen, **spans(missing)})).fetchone()
    return read if read.fault else read._replace(fault=f"event {row[0] if row else '?'}: {one_line(error)}", more=True)


async def epochs(conn: Connection) -> list[Epoch]:
    """Read where epochs began, ascending."""
    rows = await (await conn.execute(query("epochs"))).fetchall()
    return [
        Epoch(trimmed(settled_to, Ranges(zip(first, last, strict=True))), starts_at)
        for settled_to, first, last, starts_at in rows
    ]


async def lost(conn: Connection, read: dict[int, int]) -> set[int]:
    """Return which of the events that were read before are not in this log, or not as they were read.

    ``read`` has the ids, each with its time. What was purged is not lost.
    """
    rows = await (await conn.execute(query("still_there"), (list(read),), binary=True)).fetchall()
    there: dict[int, int | None] = dict(rows)  # the time is NULL if the event may have been purged
    return {number for number, time in read.items() if there.get(number, time - 1) not in (time, None)}


async def in_flight(conn: Connection) -> Ranges:
    """Read which ids may still come, of those that were drawn. Those that are visible are not among them.

    A standby does not know. There, what the primary has noted as settled says it, without these ids.
    """
    try:
        ((_, first, last),) = await (await conn.execute(query("visible_position"))).fetchall()
    except psycopg.errors.FeatureNotSupported:
        return Ranges()
    return Ranges(zip(first, last, strict=True))


async def confirm_epochs(conn: Connection, read: Cursor) -> None:
    """Note that what this server has read of the log before is in this log.

    A server that reads from a standby cannot write; the others note the same.
    """
    with contextlib.suppress(psycopg.errors.ReadOnlySqlTransaction):
        await conn.execute(query("confirm_epochs"), {"high": read.high, **spans(read.gaps)})


async def deletions_ended(conn: Connection) -> None:
    """Wait for a deletion that began before this server was registered. One that begins later spares what it lacks."""
    for _ in range(DELETION_LOOKS):
        ((deleting,),) = await (await conn.execute(query("deleting"))).fetchall()
        if not deleting:
            break
        await asyncio.sleep(DELETION_PAUSE_S)


async def expired_channels(conn: Connection, after: int) -> dict[str, int]:
    """Read of which channels events above an id were deleted because of their own retention, and up to which id."""
    return dict(await (await conn.execute(query("expired_channels"), (after,))).fetchall())


async def queue_usage(conn: Connection) -> float:
    """Read how full PostgreSQL's notification queue is, from 0 to 1."""
    ((usage,),) = await (await conn.execute(query("notification_queue"))).fetchall()
    return float(usage)


class Surroundings(NamedTuple):
    """What a tail looks at about once in a second."""

    queue_usage: float
    """How full the notification queue is, from 0 to 1."""
    is_elected: bool
    """Whether this session is the one that notes what is settled."""
    standby_is_read: bool
    """Whether a server reads from a standby."""
    log_bytes: int
    """The size of the table that the notes are in."""
    subscription: str | None
    """The subscription (logical replication) that copies events into the log."""


async def look_around(conn: Connection, *, is_elected: bool) -> Surroundings:
    """Read them, with one statement. Asks to be elected, unless this session ``is_elected`` already."""
    ((usage, elected, is_read, size, subscription),) = await (
        await conn.execute(query("look_around"), (is_elected,))
    ).fetchall()
    return Surroundings(float(usage), bool(elected), bool(is_read), int(size), subscription)


async def look(conn: Connection) -> tuple[int, float]:
    """Read, with one statement, the last id drawn and how full the notification queue is."""
    ((last, usage),) = await (await conn.execute(query("look"))).fetchall()
    return int(last), float(usage)


async def elect(conn: Connection) -> bool:
    """Return whether this session is the one that notes what is settled."""
    ((is_elected,),) = await (await conn.execute(query("elect"))).fetchall()
    return bool(is_elected)


async def note_settled(conn: Connection, high: int, missing: Ranges) -> bool:
    """Write down up to where the log is settled. Returns False if somebody holds the row, or has noted more."""
    return (await conn.execute(query("settled"), {"high": high, **spans(missing)}, prepare=True)).rowcount > 0


def spans(missing: Ranges) -> dict[str, list[int]]:
    """Return ranges as two parameters of a statement."""
    return {"first": [first for first, _ in missing], "last": [last for _, last in missing]}
