"""The bell: what ends a tail's wait, be it a notification or a request of this process."""

from __future__ import annotations

import asyncio
import time

import psycopg

from sse_pg.core.tail_meter import TailMeter
from sse_pg.db.connection import Connection
from sse_pg.delivery.control_listener import ControlListener


class Bell:
    """One bell for all connections of a tail: a notification on a connection that was lost still asks for a read."""

    def __init__(self, control: ControlListener, meter: TailMeter) -> None:
        self._control = control
        self._meter = meter
        self._wake = asyncio.Event()
        self._rung = False
        self._is_asked = False
        """Whether ``ring`` was called, or something came on the control channel, since ``wait_for_others``."""

    def ring(self) -> None:
        """End the current wait, or the next one."""
        self._is_asked = True
        self._wake.set()

    def heard(self, notify: psycopg.Notify) -> None:
        """Note a notification. psycopg also calls this for notifications that arrive with the result of a statement."""
        self._rung = True
        if notify.channel == "sse_pg_control":
            self._is_asked = True
            self._control.heard(notify.payload)
        else:
            self._meter.bells += 1

    async def pause(self, seconds: float) -> bool:
        """Wait between polls; return True if ``ring`` ended the wait, False after ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def wait(self, conn: Connection, seconds: float) -> bool:
        """Wait for a notification, the end of the connection, or ``ring``; return False if none came in ``seconds``.

        psycopg's own generator of notifications is not used, because it occupies the connection while it waits.
        """
        woken = False
        self._take_pending(conn)
        if not self._rung:
            loop = asyncio.get_running_loop()
            descriptor = conn.fileno()
            loop.add_reader(descriptor, self._wake.set)
            try:
                woken = await self.pause(seconds)
            finally:
                loop.remove_reader(descriptor)
            # The read that follows covers what has arrived by now. What arrives during that read asks for another.
            conn.pgconn.consume_input()
            self._take_pending(conn)
        rung, self._rung = self._rung, False
        return rung or woken

    async def wait_for_others(self, conn: Connection, seconds: float) -> bool:
        """Wait as ``wait`` does, but for everything except the bell of new events."""
        loop, until = asyncio.get_running_loop(), time.monotonic() + seconds
        descriptor = conn.fileno()
        self._take_pending(conn)
        loop.add_reader(descriptor, self._wake.set)
        try:
            while not self._is_asked and (left := until - time.monotonic()) > 0:
                await self.pause(left)
                conn.pgconn.consume_input()
                self._take_pending(conn)
        finally:
            loop.remove_reader(descriptor)
        asked, self._is_asked, self._rung = self._is_asked, False, False
        return asked

    def _take_pending(self, conn: Connection) -> None:
        """Note the notifications that have arrived."""
        while (pending := conn.pgconn.notifies()) is not None:
            self.heard(psycopg.Notify(pending.relname.decode(), pending.extra.decode(), pending.be_pid))
