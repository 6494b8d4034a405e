"""Reads pages from standbys, each of which may be at another place, and behind the primary."""

from __future__ import annotations

from sse_pg.core.cursor import Cursor, trimmed
from sse_pg.core.ranges import Ranges
from sse_pg.db.connection import Connection
from sse_pg.db.queries import query
from sse_pg.db.store import Store


class StandbyStore(Store):
    """The statements behind requests that only read the log."""

    async def _vouched(self, conn: Connection) -> Cursor:
        """Return what the mark and the events above it say.

        It is read before the page, on the same standby, where nothing becomes invisible again.
        """
        ((settled_to, first, last, visible),) = await (await conn.execute(query("mark"), prepare=True)).fetchall()
        gaps = Ranges(zip(first, last, strict=True))
        if not visible:
            return trimmed(settled_to, gaps)
        above = Ranges([(settled_to + 1, visible[-1])]) - Ranges((number, number) for number in visible)
        return Cursor(visible[-1], gaps | above)
