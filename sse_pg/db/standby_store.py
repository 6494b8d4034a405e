"""Reads pages from standbys, each of which may be at another place, and behind the primary."""

from __future__ import annotations

from sse_pg.core.cursor import Cursor, trimmed
from sse_pg.core.ranges import Ranges
from sse_pg.db.connection import Connection
from sse_pg.db.queries import query
from sse_pg.db.store import Store

#: Visible events that the mark does not know of yet, which one read adds to it.
MAX_VISIBLE = 1000


class StandbyStore(Store):
    """The statements behind requests that only read the log."""

    async def _vouched(self, conn: Connection) -> Cursor:
        """Return what the mark and the events above it say.

        It is read before the page, on the same standby, where nothing becomes invisible again.
        """
        cursor = await conn.execute(query("mark"), {"most": MAX_VISIBLE}, prepare=True)
        ((settled_to, first, last, visible),) = await cursor.fetchall()
        gaps = Ranges(zip(first, last, strict=True))
        if not visible or len(visible) == MAX_VISIBLE:
            # All of them or none: with a part, events of one transaction would go out in two parts and in any order.
            return trimmed(settled_to, gaps)
        high = max(settled_to, *visible)
        return trimmed(high, gaps.and_span(settled_to + 1, high) - Ranges((number, number) for number in visible))
