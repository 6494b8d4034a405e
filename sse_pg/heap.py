"""Keeps the pauses of Python's garbage collector short, however many streams are open."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

#: Time between two looks at the number of streams.
LOOK_INTERVAL_S = 0.25
#: Streams that open between two freezes.
STREAMS_PER_FREEZE = 250
#: The collector looks at everything again when so few of the streams of the last freeze are left ...
SHARE_LEFT = 0.1
#: ... at this many looks in a row.
LOOKS_LEFT = 40


class Heap:
    """Takes the objects of open streams out of what the collector looks at.

    A full collection looks at every object, 10 µs for each open stream, and while thousands of streams open there are
    many. The objects of a stream live as long as the stream, and are freed when it ends, without the collector. What is
    frozen together with them and turns out to be garbage in a circle waits until most of the streams have ended. Then
    one full collection takes as long as it does in a server without streams, some 40 ms.
    """

    def __init__(self, streams: Callable[[], int]) -> None:
        """``streams`` returns how many streams are open."""
        self._streams = streams
        self._frozen_at = 0
        self._looks_left = LOOKS_LEFT

    async def run(self) -> None:
        """Freeze and unfreeze, until cancelled."""
        gc.freeze()  # modules and what they have made
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            self.look()

    def look(self) -> None:
        """Freeze what exists if many streams have opened; look at everything again if most have ended."""
        streams = self._streams()
        if streams >= self._frozen_at + STREAMS_PER_FREEZE:
            gc.collect(1)  # what is garbage already is not frozen
            gc.freeze()
            self._frozen_at = streams
        if not self._frozen_at or streams > self._frozen_at * SHARE_LEFT:
            self._looks_left = LOOKS_LEFT
            return
        self._looks_left -= 1
        if not self._looks_left:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            self._frozen_at = streams
