"""Turns of the event loop: long work is cut into slices, and others get their turns in between."""

from __future__ import annotations

import asyncio
import time

#: Time that a step over many streams takes before other tasks get a turn of the event loop.
SLICE_S = 0.001
#: A turn of the event loop that took less had nothing to do.
IDLE_TURN_S = 0.00005


class Turns:
    """Cuts a loop over many things into slices: ``await turns.pause()`` in each round."""

    def __init__(self) -> None:
        self._until = time.monotonic() + SLICE_S

    async def pause(self) -> None:
        """Let others have their turns if the slice is over."""
        if time.monotonic() >= self._until:
            await others()
            self._until = time.monotonic() + SLICE_S


async def others() -> None:
    """Let other tasks have turns of the event loop: as many as they use, for as long as a slice takes.

    A request takes several turns, with one slice before each if there were only one turn between two slices.
    """
    began = time.monotonic()
    await asyncio.sleep(0)  # the event loop now sees what has become ready, behind this task in its queue ...
    before = time.monotonic()
    while True:
        await asyncio.sleep(0)  # ... which has its turn here
        now = time.monotonic()
        if now - before < IDLE_TURN_S or now - began >= SLICE_S:
            return
        before = now
