"""A task that runs for as long as the server, and is started again if it fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from random import random

log = logging.getLogger(__name__)

#: Longest pause before a failed task is started again, on average.
MAX_RESTART_PAUSE_S = 30.0
#: A task that has run for this long since its last failure counts as running again.
STABLE_S = 5.0
#: Time after which a task that should end is cancelled again.
CANCEL_RETRY_S = 0.5


class WatchedTask:
    """Runs one part of the server. ``name`` is what the log, /readyz and the metrics call it."""

    def __init__(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """``run`` is not expected to return; if it returns, that is a failure too."""
        self.name = name
        self.failures = 0
        self._run = run
        self._running = False
        self._since = 0.0
        self._attempt = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to run the part."""
        self._task = asyncio.create_task(self._watch(), name=self.name)

    @property
    def failure(self) -> str | None:
        """A message that the part has failed, until it has run for STABLE_S again; None if it runs."""
        if not self.failures or (self._running and time.monotonic() - self._since >= STABLE_S):
            return None
        return f"the {self.name} failed and is started again; the server's log has the error"

    async def _watch(self) -> None:
        while True:
            self._running, self._since = True, time.monotonic()
            error: Exception | None = None
            try:
                await self._run()
            except Exception as raised:
                error = raised
            self._running = False
            if time.monotonic() - self._since >= STABLE_S:
                self._attempt = 0
            pause = min(MAX_RESTART_PAUSE_S, 0.1 * 2**self._attempt) * (0.5 + random())  # noqa: S311 - not a secret
            self._attempt = min(self._attempt + 1, 10)
            self.failures += 1
            log.error("the %s failed; it starts again in %.1f s", self.name, pause, exc_info=error)
            await asyncio.sleep(pause)


async def end_all(watched: Iterable[WatchedTask]) -> None:
    """Cancel the tasks and wait until all have ended.

    They are cancelled repeatedly, because psycopg waits with wait_for(), which in Python 3.11 loses a cancellation that
    comes at the moment of its success.
    """
    left = {each._task for each in watched if each._task is not None}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_RETRY_S)
