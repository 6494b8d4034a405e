"""A slot: the sockets of one worker, and the process that serves them now."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from sse_pg.either import either
from sse_pg.errors import WorkerError
from sse_pg.workers.process import Process

log = logging.getLogger(__name__)

#: A worker that lived for so long had started successfully.
MIN_LIFETIME_S = 10.0
#: Pause before a worker is started after others in its slot died early. It doubles from the first to the last value.
MIN_RESTART_PAUSE_S, MAX_RESTART_PAUSE_S = 0.5, 15.0


class Slot:
    """The place of one worker. Its process changes when it dies or is renewed."""

    def __init__(self, number: int, spawn: Callable[[Slot], Awaitable[Process]]) -> None:
        self.number = number
        self.sockets: list[socket.socket] = []
        self.process: Process
        self._spawn = spawn
        self._swapped = asyncio.Event()
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Start a process in this slot."""
        self.process = await self._spawn(self)
        log.info("worker %d is process %d", self.number, self.process.pid)

    async def keep_running(self) -> None:
        """Start another process whenever one dies, until cancelled: at once, or after a pause if it died early."""
        early_deaths = 0
        while True:
            process = self.process
            await either(self._swapped, process.ended)
            self._swapped.clear()
            if self.process is not process or not process.ended.done():
                continue
            early_deaths = early_deaths + 1 if process.lifetime < MIN_LIFETIME_S else 0
            pause = min(MIN_RESTART_PAUSE_S * 2.0 ** (early_deaths - 1), MAX_RESTART_PAUSE_S) if early_deaths else 0.0
            log.error(
                "worker %d (process %d) ended: %s; the next one starts %s",
                self.number, process.pid, process.ended.result(), f"in {pause:g} s" if pause else "now",
            )  # fmt: skip
            if early_deaths > 1:
                self.close()  # so that no client waits here while the other workers could serve it
            while self.process is process:
                await asyncio.sleep(pause)
                pause = MAX_RESTART_PAUSE_S
                await self._restart(process)

    async def renew(self) -> Process | None:
        """Start a new process beside the current one, and return the old one once the new one is ready."""
        async with self._lock:
            try:
                new = await self._spawn(self)
                await new.wait_until_ready()
            except (OSError, WorkerError) as error:
                log.warning("worker %d is not renewed: %s", self.number, error)
                return None
            old, self.process = self.process, new
            self._swapped.set()
            log.info("worker %d is process %d, after process %d", self.number, new.pid, old.pid)
            return old

    def close(self) -> None:
        """Close the sockets. Clients that wait on them to be accepted have to connect again."""
        for each in self.sockets:
            each.close()
        self.sockets = []

    async def _restart(self, dead: Process) -> None:
        async with self._lock:
            if self.process is dead:
                try:
                    await self.start()
                except OSError as error:
                    log.warning("worker %d cannot be started: %s", self.number, error)
