"""Heartbeats on silent streams, and a newer position on quiet streams from time to time."""

from __future__ import annotations

import asyncio
import time

from sse_pg.core import wire
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.turns import Turns


class Heartbeat:
    """Checks every stream several times in each heartbeat interval."""

    def __init__(self, hub: Hub, heartbeat: float, position_refresh: float) -> None:
        """Both intervals are in seconds."""
        self._hub = hub
        self._heartbeat = heartbeat
        self._refresh = position_refresh

    async def run(self) -> None:
        """Keep quiet streams alive, until cancelled."""
        pause = min(1.0, self._heartbeat / 4, self._refresh / 4)
        while True:
            await asyncio.sleep(pause)
            turns = Turns()
            for stream in list(self._hub.streams):
                self._check(stream, time.monotonic())
                await turns.pause()

    def _check(self, stream: Stream, now: float) -> None:
        if stream.until_end and stream.live:
            self._hub.check_end(stream)
        position = self._hub.position
        mark = stream.mark
        quiet = stream.live and now - mark.at >= self._refresh and mark.position != position
        if quiet and not self._hub.lacks(stream):
            stream.write_position(wire.position(position), position, now)
        elif now - stream.last_write_at >= self._heartbeat:
            stream.write(wire.HEARTBEAT, now)
