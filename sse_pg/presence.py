"""This server among the servers of the database: its row, the lock that shows it is up, its count of streams."""

from __future__ import annotations

import asyncio
import logging
import os
import time

from sse_pg.database import Connection, summary
from sse_pg.errors import BusUnavailable
from sse_pg.hub import Hub
from sse_pg.queries import query
from sse_pg.store import Store
from sse_pg.version import VERSION

log = logging.getLogger(__name__)

#: Seconds between looks at the count.
INTERVAL = 0.25
#: Seconds between updates where only the position has moved: others look at it, nothing depends on it.
POSITION_INTERVAL = 2.0


class Presence:
    """Shows the number of streams, and the position, to the other servers, at most four times a second."""

    def __init__(self, hub: Hub, store: Store, name: str, pid: int) -> None:
        self._hub = hub
        self._store = store
        self._name = name
        self._pid = pid
        self.server_id: int | None = None

    async def register(self, conn: Connection) -> None:
        """Take a row and its lock on the LISTEN connection; the lock goes with the connection."""
        await conn.execute(query("servers_sweep"))
        if self.server_id is not None:
            # After a minute without the lock another server may have swept the row away.
            cursor = await conn.execute(
                query("server_update"), (len(self._hub.streams), self._hub.position.high, self.server_id)
            )
            if cursor.rowcount == 0:
                self.server_id = None
        if self.server_id is None:
            cursor = await conn.execute(query("server_insert"), (self._name, self._pid, VERSION))
            row = await cursor.fetchone()
            assert row is not None
            self.server_id = row[0]
        await conn.execute(query("server_lock"), (self.server_id,))

    async def run(self) -> None:
        """Keep the count in the row up to date, until cancelled."""
        shown: tuple[int | None, int] = (None, 0)
        shown_position, shown_at = 0, 0.0
        while True:
            now, position = (self.server_id, len(self._hub.streams)), self._hub.position.high
            moved = position != shown_position and time.monotonic() - shown_at >= POSITION_INTERVAL
            if (now != shown or moved) and self.server_id is not None:
                try:
                    await self._store.update_server(self.server_id, now[1], position)
                    shown, shown_position, shown_at = now, position, time.monotonic()
                except BusUnavailable as error:
                    log.debug("the count of streams could not be written: %s", summary(error))
            await asyncio.sleep(INTERVAL)

    async def unregister(self) -> None:
        """Take the row away, when the server stops in good order."""
        if self.server_id is not None:
            try:
                await self._store.remove_server(self.server_id)
            except BusUnavailable as error:
                log.debug("the server's row stays until it is swept: %s", summary(error))


def server_identity(name: str | None) -> tuple[str, int]:
    """Return the name and the process id under which a server shows itself."""
    return name or os.uname().nodename, os.getpid()
