"""Writes deliveries to many streams in slices, so that other tasks of the process never wait for a crowd."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from sse_pg.delivery.turns import others


class Sweeper:
    """The task that goes through the slices of the fan-out.

    A sweep waits for no client: a stream whose client does not read is ended by its own limit.
    """

    def __init__(self, slices: Callable[[], Iterator[float]]) -> None:
        """``slices`` writes what is pending, and says in between how many seconds to pause."""
        self.slices = slices
        self._asked = asyncio.Event()

    def wake(self) -> None:
        """Note that something is pending."""
        self._asked.set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            self._asked.clear()
            for pause in self.slices():
                await (asyncio.sleep(pause) if pause else others())
            await self._asked.wait()
