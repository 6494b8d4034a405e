"""What ``Hub.deliver`` and a sweep cost without sockets: the processor time of one thread, the least of many calls."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any, cast

from bench.table import Result
from sse_pg.core.cursor import Cursor
from sse_pg.core.event import POSTGRES_EPOCH_S, Event
from sse_pg.core.framing import Framing
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream

#: what, streams, whether each has a channel of its own besides, events of a delivery
CASES = (
    ("one event to one stream", 1, False, 1),
    ("20 events to one stream", 1, False, 20),
    ("one event to 200 streams", 200, False, 1),
    ("one event to 200 streams, each with a channel of its own besides", 200, True, 1),
    ("one event to 5,000 streams", 5000, False, 1),
    ("one event to 5,000 streams, each with a channel of its own besides", 5000, True, 1),
)
PAYLOAD = '{"message": "Hello from the server!", "priority": "high"}'


class Nowhere:
    """A transport that drops what is written."""

    def write(self, data: bytes) -> None:
        """Drop it."""


def run(rounds: int = 3) -> Result:
    """Measure."""
    result = Result("deliver", "Processor time of a delivery without sockets, µs")
    asyncio.run(_measure(result, rounds))
    return result


async def _measure(result: Result, rounds: int) -> None:
    for what, streams, own, events in CASES:
        least = min(_least(streams, own, events) for _ in range(rounds))
        result.add(what, f"{least:.2f}; {least / streams / events:.2f} for each event and stream")


def _least(streams: int, own: bool, events: int) -> float:
    """Return the microseconds of the fastest of many deliveries."""
    hub = Hub(10_000, 67_108_864)
    hub.begin(Cursor(0))
    for number in range(streams):
        channels = frozenset(["bench", f"own{number}"] if own else ["bench"])
        stream = Stream(
            cast(Any, Nowhere()), lambda _: None, channels=channels, cursor=Cursor(0), envelope=None,
            framing=Framing.CHUNKED, buffer_limit=1_048_576, now=0.0,
        )  # fmt: skip
        hub.add(stream)
        hub.join(stream)
    made_at = int((time.time() - POSTGRES_EPOCH_S) * 1_000_000)
    last, least = 0, float("inf")
    at_once = max(1, 50 // (streams * events))  # reading the clock takes time itself
    gc.collect()
    gc.disable()
    try:
        for _ in range(max(10, 20_000 // (streams * events * at_once))):
            deliveries = []
            for _ in range(at_once):
                numbers = range(last + 1, last + events + 1)
                last += events
                deliveries.append([(Event(n, "bench", "message", PAYLOAD, made_at), Cursor(n)) for n in numbers])
            started = time.thread_time()
            for released in deliveries:
                hub.deliver(released, released[-1][1])
            for _ in hub.sweeper.slices():
                pass
            least = min(least, (time.thread_time() - started) / at_once)
    finally:
        gc.enable()
    return least * 1e6
