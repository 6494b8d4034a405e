"""Heartbeats on silent streams, and a newer position on quiet streams from time to time."""

from __future__ import annotations

import asyncio
import time

from sse_pg.core import wire
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream

#: Streams that are checked before other tasks get a turn of the event loop.
STREAMS_PER_STEP = 500


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
            for count, stream in enumerate(list(self._hub.streams), 1):
                self._check(stream, time.monotonic())
                if count % STREAMS_PER_STEP == 0:
                    await asyncio.sleep(0)

    def _check(self, stream: Stream, now: float) -> None:
        position = self._hub.position
        quiet = stream.live and now - stream.sent_position_at >= self._refresh and stream.sent_position != position
        if quiet and not self._hub.lacks(stream):
            stream.write_position(wire.position(position), position, now)
        elif now - stream.written_at >= self._heartbeat:
            stream.write(wire.HEARTBEAT, now)
