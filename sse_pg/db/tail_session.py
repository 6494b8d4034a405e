"""The tail's session: every statement that it runs on the connection that LISTENs. The tail decides when."""

from __future__ import annotations

from typing import NamedTuple

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import Event
from sse_pg.core.ranges import Ranges
from sse_pg.db.connection import Connection
from sse_pg.db.queries import query


class Publishers(NamedTuple):
    """The publishers in flight."""

    last: int
    """The last id drawn."""
    alive: Ranges
    """The ids that may still come."""
    least_bound: int | None
    """The least of their lower bounds: a publisher can hold only ids above its own. None if nobody is in flight."""

    @property
    def start(self) -> Cursor:
        """The position below everything that may still come."""
        return Cursor(min(self.last, self.alive.spans[0][0] - 1) if self.alive else self.last)

    def all_began_after(self, last: int) -> bool:
        """Return whether every publisher took its lock after ``last`` was the last id drawn."""
        return self.least_bound is None or self.least_bound > last


async def listen(conn: Connection) -> None:
    """Set up the session, and LISTEN to the bell and to the control channel."""
    await conn.execute(query("tail_session"))
    await conn.execute(query("listen"))


async def check_epoch(conn: Connection) -> None:
    """Begin an epoch if the log is not the one that a server last noted."""
    await conn.execute(query("check_epoch"))


async def fall_asleep(conn: Connection, *, was_awake: bool) -> None:
    """Show publishers "asleep", and only then stop showing "awake"."""
    await conn.execute(query("sleep_begin"))
    if was_awake:
        await conn.execute(query("wake_end"))


async def wake_up(conn: Connection) -> None:
    """Show publishers "awake", and only then stop showing "asleep". A publisher in between sees both, and rings."""
    await conn.execute(query("wake_begin"))
    await conn.execute(query("sleep_end"))


async def publishers(conn: Connection) -> Publishers:
    """Read which publishers are in flight."""
    cursor = await conn.execute(query("publishers"), prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    last, least_bound, first_ids, last_ids = row
    return Publishers(last, Ranges(zip(first_ids, last_ids, strict=True)), least_bound)


async def events(conn: Connection, seen: int, missing: Ranges, limit: int) -> list[Event]:
    """Read the events above ``seen``, and those of the missing ids that have become visible, ascending."""
    params: dict[str, object] = {"seen": seen, "limit": limit}
    name = "tail_read_above"
    if missing:
        name = "tail_read"
        params |= _spans(missing)
    cursor = await conn.execute(query(name), params, prepare=True, binary=True)
    return [Event(*row) for row in await cursor.fetchall()]


async def epochs(conn: Connection) -> list[tuple[int, int]]:
    """Read, for each epoch, up to where the log before it is settled, and where the epoch starts."""
    return [(settled_to, starts_at) for settled_to, starts_at in await (await conn.execute(query("epochs"))).fetchall()]


async def purged_to(conn: Connection) -> int:
    """Read up to which id events were purged."""
    ((last,),) = await (await conn.execute(query("purged_to"))).fetchall()
    return int(last)


async def queue_usage(conn: Connection) -> float:
    """Read how full PostgreSQL's notification queue is, from 0 to 1."""
    ((usage,),) = await (await conn.execute(query("notification_queue"))).fetchall()
    return float(usage)


async def note_settled(conn: Connection, high: int, missing: Ranges) -> None:
    """Write down, for position(), up to where the log is settled."""
    await conn.execute(query("settled"), {"high": high, **_spans(missing)})


def _spans(missing: Ranges) -> dict[str, list[int]]:
    return {"first": [first for first, _ in missing], "last": [last for _, last in missing]}
