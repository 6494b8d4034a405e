"""Writes batches to large groups in slices, so that other tasks of the process never wait for a crowd."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator

from sse_pg.delivery.group import Group
from sse_pg.delivery.stream import Stream

#: Time that a sweep takes before other tasks get a turn of the event loop.
SLICE_S = 0.002
#: Streams between two readings of the clock.
STREAMS_PER_CLOCK_READ = 16


class Sweeper:
    """Goes round the streams of the groups that have batches.

    Each stream gets, in one write, everything that it lacks. A batch that comes while a sweep is on its way joins it,
    so that writes are joined as far as the load demands, whether one client publishes or many do. A sweep waits for no
    client: a stream whose client does not read is ended by its own limit.
    """

    def __init__(self, write: Callable[[Group, Stream, float], None], swept: Callable[[Group, int], None]) -> None:
        """``write`` brings one stream of a group up to date; ``swept`` hears up to which number all streams are."""
        self._write = write
        self._swept = swept
        self._queue: deque[Group] = deque()
        self._asked = asyncio.Event()

    def add(self, group: Group) -> None:
        """Have a group swept. It is not in the queue yet."""
        self._queue.append(group)
        self._asked.set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            self._asked.clear()
            for _ in self.slices():
                await asyncio.sleep(0)
            await self._asked.wait()

    def slices(self) -> Iterator[None]:
        """Sweep everything in the queue. Between two slices others may do what they want with the streams."""
        now = time.monotonic()
        until, count = now + SLICE_S, 0
        while self._queue:
            group = self._queue[0]
            number = group.number  # streams that enter later have everything up to it
            for stream in list(group.streams):
                count += 1
                if count % STREAMS_PER_CLOCK_READ == 0:
                    now = time.monotonic()
                    if now >= until:
                        yield
                        now = time.monotonic()
                        until = now + SLICE_S
                if stream.group is group:
                    self._write(group, stream, now)
            self._queue.popleft()  # not before: if something fails, the sweep of the group begins anew
            self._swept(group, number)
            if group.batches:
                self._queue.append(group)
