"""The place of a worker: its sockets, and the process that has them now."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from sse_pg.either import either
from sse_pg.errors import WorkerError
from sse_pg.workers.process import Process

log = logging.getLogger(__name__)

#: A worker that lived for so many seconds had started well.
SETTLED = 10.0
#: Seconds until a place is filled again whose last workers died at once: the first, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0


class Place:
    """One of the workers, whichever process it is now."""

    def __init__(self, number: int, spawn: Callable[[Place], Awaitable[Process]]) -> None:
        self.number = number
        self.sockets: list[socket.socket] = []
        self.process: Process
        self._spawn = spawn
        self._swapped = asyncio.Event()
        self._lock = asyncio.Lock()

    async def fill(self) -> None:
        """Start a process for this place."""
        self.process = await self._spawn(self)
        log.info("worker %d is process %d", self.number, self.process.pid)

    async def keep(self) -> None:
        """Start the next process whenever one dies, until cancelled; at once, unless they die young."""
        young = 0
        while True:
            process = self.process
            await either(self._swapped, process.gone)
            self._swapped.clear()
            if self.process is not process or not process.gone.done():
                continue
            young = young + 1 if process.age < SETTLED else 0
            pause = min(FIRST_PAUSE * 2.0 ** (young - 1), LONGEST_PAUSE) if young else 0.0
            log.error(
                "worker %d (process %d) ended: %s; the next one starts %s",
                self.number, process.pid, process.gone.result(), f"in {pause:g} s" if pause else "now",
            )  # fmt: skip
            if young > 1:
                self.close()  # nobody waits here while the other workers could serve
            while self.process is process:
                await asyncio.sleep(pause)
                pause = LONGEST_PAUSE
                await self._refill(process)

    async def renew(self) -> Process | None:
        """Put a new process beside the one that is here; return the old one once the new one is ready."""
        async with self._lock:
            try:
                new = await self._spawn(self)
                await new.is_ready()
            except (OSError, WorkerError) as error:
                log.warning("worker %d is not renewed: %s", self.number, error)
                return None
            old, self.process = self.process, new
            self._swapped.set()
            log.info("worker %d is process %d, after process %d", self.number, new.pid, old.pid)
            return old

    def close(self) -> None:
        """Close the sockets here; who waits on them for a worker has to come again."""
        for each in self.sockets:
            each.close()
        self.sockets = []

    async def _refill(self, dead: Process) -> None:
        async with self._lock:
            if self.process is dead:
                try:
                    await self.fill()
                except OSError as error:
                    log.warning("worker %d cannot be started: %s", self.number, error)
