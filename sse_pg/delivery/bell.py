"""The bell, as the tail hears it: what ends a wait, be it a notification or somebody of this process."""

from __future__ import annotations

import asyncio

import psycopg

from sse_pg.core.tail_meter import TailMeter
from sse_pg.db.connection import Connection
from sse_pg.delivery.control_listener import ControlListener


class Bell:
    """One for all connections of a tail: what was heard on one that is lost still asks for a read."""

    def __init__(self, control: ControlListener, meter: TailMeter) -> None:
        self._control = control
        self._meter = meter
        self._wake = asyncio.Event()
        self._rung = False

    def ring(self) -> None:
        """End the wait that is going on, or the next one."""
        self._wake.set()

    def heard(self, notify: psycopg.Notify) -> None:
        """Note a notification. psycopg calls this for those that come with the answer to a statement, too."""
        self._rung = True
        if notify.channel == "sse_pg_control":
            self._control.heard(notify.payload)
        else:
            self._meter.bells += 1

    async def pause(self, seconds: float) -> bool:
        """Wait between polls; True when somebody asked for a read."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def wait(self, conn: Connection, seconds: float) -> bool:
        """Wait until the connection has something to read (the bell, or its end), or somebody asks for a read.

        psycopg's own generator of notifications is not used: it keeps the connection to itself while it waits.
        """
        woken = False
        self._take_in(conn)
        if not self._rung:
            loop = asyncio.get_running_loop()
            descriptor = conn.fileno()
            loop.add_reader(descriptor, self._wake.set)
            try:
                woken = await self.pause(seconds)
            finally:
                loop.remove_reader(descriptor)
            # What is heard before the read that follows needs no other; what comes with its answer may.
            conn.pgconn.consume_input()
            self._take_in(conn)
        rung, self._rung = self._rung, False
        return rung or woken

    def _take_in(self, conn: Connection) -> None:
        """Take in the notifications that have arrived."""
        while (pending := conn.pgconn.notifies()) is not None:
            self.heard(psycopg.Notify(pending.relname.decode(), pending.extra.decode(), pending.be_pid))
