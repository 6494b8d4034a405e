"""The server registry: this server's row in the database, and what shows that the server is up.

That is a lock on the LISTEN connection. A server that polls has no such connection; its row says until when it counts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

from sse_pg.core.cursor import Cursor
from sse_pg.db.connection import Connection, summary
from sse_pg.db.migrate import missing
from sse_pg.db.pool import connection
from sse_pg.db.queries import migrations, query
from sse_pg.db.store import Store, read_to
from sse_pg.db.tail_session import lock_holders
from sse_pg.errors import BusUnavailable, MigrationError
from sse_pg.version import VERSION

log = logging.getLogger(__name__)

#: Seconds between checks of whether the number of streams has changed.
CHECK_INTERVAL_S = 0.25
#: Seconds between updates if only the position has moved.
POSITION_INTERVAL_S = 2.0
#: Seconds between updates of a server that polls. Its row counts for ten seconds after each.
RENEWAL_INTERVAL_S = 2.0
#: Rows that a server inserts until the lock of one is free.
MAX_INSERTS = 10


class Registry:
    """Shows the other servers how many streams this one has, and its position, at most four times a second."""

    def __init__(
        self,
        store: Store,
        name: str,
        pid: int,
        *,
        streams: Callable[[], int],
        position: Callable[[], Cursor],
        polls: bool = False,
    ) -> None:
        """``streams`` returns how many streams are open, ``position`` what was delivered.

        ``polls``: there is no connection that could hold a lock.
        """
        self._store = store
        self._polls = polls
        self._streams = streams
        self._position = position
        self._name = name
        self._pid = pid
        self.server_id: int | None = None

    async def register(self, conn: Connection) -> None:
        """Take a row, and its lock if this is the LISTEN connection. The lock ends with the connection."""
        await conn.execute(query("servers_sweep"))
        if self.server_id is not None:
            # Another server deletes the row if it has been without its lock for a minute.
            position = self._position()
            cursor = await conn.execute(
                query("server_update"), (self._streams(), position.high, read_to(position), self.server_id)
            )
            if not await cursor.fetchall():
                self.server_id = None
        if self.server_id is None or not (self._polls or await _lock(conn, self.server_id)):
            self.server_id = await self._insert(conn)
        # After the lock: a post step looks for the lock when it is done, so one of the two sees the other.
        cursor = await conn.execute(query("migration_table"))
        try:
            lacking = missing(dict(await cursor.fetchall()), post=False)
        except MigrationError as error:
            raise BusUnavailable(str(error)) from error
        if lacking:
            raise BusUnavailable(f"migration {lacking[0]} is missing: run sse-pg migrate")

    async def _insert(self, conn: Connection) -> int:
        """Insert rows until the lock of one is free, and return its id."""
        number, knows = 0, migrations()[-1].number
        insert = query("server_insert_polling" if self._polls else "server_insert")
        for _ in range(MAX_INSERTS):
            cursor = await conn.execute(insert, (self._name, self._pid, VERSION, knows))
            ((number,),) = await cursor.fetchall()
            if self._polls or await _lock(conn, number):
                return int(number)
            await conn.execute(query("server_delete"), (number,))
        holders = await lock_holders(conn, "server", number)
        raise BusUnavailable(f"others hold the advisory locks by which servers show that they are up: {holders}")

    async def run(self) -> None:
        """Keep the row up to date until cancelled."""
        shown: tuple[int | None, int] = (None, 0)
        shown_position, shown_at = Cursor(0), 0.0
        while True:
            now, position = (self.server_id, self._streams()), self._position()
            age = time.monotonic() - shown_at
            moved = position != shown_position and age >= POSITION_INTERVAL_S
            is_due = self._polls and age >= RENEWAL_INTERVAL_S
            if (now != shown or moved or is_due) and self.server_id is not None:
                try:
                    is_there = await self._store.update_server(self.server_id, now[1], position)
                    shown, shown_position, shown_at = now, position, time.monotonic()
                    if not is_there and self._polls:  # it was frozen for long, and another server has deleted the row
                        async with connection(self._store.pool, upkeep=True) as conn:
                            await self.register(conn)
                except BusUnavailable as error:
                    log.debug("the number of streams could not be written: %s", summary(error))
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def let_go(self, conn: Connection) -> None:
        """Delete the row over the LISTEN connection, which is about to be closed. Another row is taken upon return."""
        number, self.server_id = self.server_id, None
        if number is not None:
            await conn.execute(query("server_delete"), (number,))

    async def unregister(self) -> None:
        """Delete the row when the server stops in an orderly way."""
        if self.server_id is not None:
            try:
                await self._store.remove_server(self.server_id)
            except BusUnavailable as error:
                log.debug("the server's row stays until another server deletes it: %s", summary(error))


async def _lock(conn: Connection, server_id: int) -> bool:
    ((is_held,),) = await (await conn.execute(query("server_lock"), (server_id,))).fetchall()
    return bool(is_held)


def server_identity(name: str | None) -> tuple[str, int]:
    """Return the name and the process id under which a server shows itself."""
    return name or os.uname().nodename, os.getpid()
