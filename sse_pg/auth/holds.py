"""Streams that receive no events until it is decided which channels they may have."""

from __future__ import annotations

import asyncio
from collections import Counter

from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream


class Holds:
    """Takes streams out of the delivery, and lets them catch up afterwards. So nobody else waits for the decision.

    Rejected: delivery that waits for the access rule. One slow rule, or one user with many subscriptions, would then
    delay the events of all.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._held: Counter[Stream] = Counter()

    def hold(self, stream: Stream) -> None:
        """Hold a stream. Each call needs its own release()."""
        self._held[stream] += 1
        if stream.held is None:
            stream.held = asyncio.get_running_loop().create_future()
            self._hub.suspend(stream)

    def deny(self, stream: Stream, channels: frozenset[str]) -> None:
        """Take channels from a stream that is held."""
        self._hub.deny(stream, channels)

    def release(self, stream: Stream) -> None:
        """Let a stream go on. If it has ended, or somebody else holds it, it does not."""
        self._held[stream] -= 1
        if self._held[stream]:
            return
        del self._held[stream]
        held, stream.held = stream.held, None
        if held is not None and not held.done():
            held.set_result(None)
        was_live = stream.greeted and stream.task is None
        if was_live and stream.reason is None:
            self._hub.bring_up(stream)
