"""What this process hands on, counted: totals since the start, the last minutes by the second, the busiest channels.

One call a batch, however many streams there are. No input or output and no clock: the hub says what time it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import EPOCH, Event

#: Upper ends of the histogram of delays, in seconds; one more bucket is for what took longer.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: Seconds that are remembered one by one.
SECONDS = 300
#: Channels that are remembered; the ones that were quiet for longest are forgotten.
CHANNELS = 1000
#: Seconds over which a channel's rate is averaged: what lies so far back weighs about a third.
RATE_OVER = 10.0


@dataclass(slots=True)
class Second:
    """What was handed on in one second."""

    at: int
    """Unix time."""
    events: int = 0
    deliveries: int = 0
    """Events times the streams they went to."""
    delays: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """How many events fell into each bucket of BOUNDS."""

    def delay(self, share: float) -> float | None:
        """Return the delay in seconds that a share of the events (0 to 1) stayed below, or None without events.

        Within a bucket the events are taken to lie evenly.
        """
        wanted, below = share * self.events, 0
        for place, count in enumerate(self.delays):
            if count and below + count >= wanted:
                low = BOUNDS[place - 1] if place else 0.0
                high = BOUNDS[place] if place < len(BOUNDS) else low
                return low + (high - low) * (wanted - below) / count
            below += count
        return None


@dataclass(slots=True)
class ChannelMeter:
    """A channel's traffic, as far as this process has seen it."""

    last: Event
    at: float
    events: int = 0
    _rate: float = 0.0

    def add(self, count: int, last: Event, now: float) -> None:
        """Take in some events."""
        self._rate = self.rate(now) + count / RATE_OVER
        self.at = max(now, self.at)
        self.last = last
        self.events += count

    def rate(self, now: float) -> float:
        """Return the events per second of late."""
        return self._rate * exp(min(0.0, self.at - now) / RATE_OVER)


class Meter:
    """Counts what the hub hands on. All but ``recent`` and ``channels`` only ever grows."""

    def __init__(self) -> None:
        self.events = 0
        self.deliveries = 0
        self.delay_sum = 0.0
        """Seconds from created_at to the socket, over all events; the clocks are the database's and this machine's."""
        self.delays = [0] * (len(BOUNDS) + 1)
        self.recent: deque[Second] = deque(maxlen=SECONDS)
        self.channels: OrderedDict[str, ChannelMeter] = OrderedDict()
        """By name; the one that was active last stands last."""

    def batch(self, released: Sequence[tuple[Event, Cursor]], deliveries: int, now: float) -> None:
        """Count events that are handed on now (Unix time), and how often they were written to a stream."""
        second = self._second(int(now))
        by_channel: dict[str, list[Event]] = {}
        for event, _ in released:
            delay = max(0.0, now - EPOCH - event.created_at / 1_000_000)
            bucket = bisect_left(BOUNDS, delay)
            self.delays[bucket] += 1
            second.delays[bucket] += 1
            self.delay_sum += delay
            by_channel.setdefault(event.channel, []).append(event)
        self.events += len(released)
        self.deliveries += deliveries
        second.events += len(released)
        second.deliveries += deliveries
        for name, events in by_channel.items():
            channel = self.channels.pop(name, None) or ChannelMeter(events[-1], now)
            channel.add(len(events), events[-1], now)
            self.channels[name] = channel
        while len(self.channels) > CHANNELS:
            self.channels.popitem(last=False)

    def _second(self, at: int) -> Second:
        if not self.recent or self.recent[-1].at < at:
            self.recent.append(Second(at))
        return self.recent[-1]
