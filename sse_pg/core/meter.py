"""Counts what this process delivers: totals since the start, the last minutes second by second, the recent channels.

The hub makes one call for each batch, however many streams there are. There is no I/O and no clock here: the hub passes
the time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from math import exp
from typing import NamedTuple

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import POSTGRES_EPOCH_S, AnyEvent, Event

#: Upper bounds of the histogram of delays, in seconds. One more bucket counts the delays above the last bound.
DELAY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: How far back there are counts for each second.
HISTORY_S = 300
#: Number of channels with counts. The one that has been quiet for longest is dropped first.
MAX_CHANNELS = 1000
#: Time constant of a channel's rate: an event of so long ago counts about a third of one of now.
RATE_WINDOW_S = 10.0


@dataclass(slots=True)
class Second:
    """What was delivered in one second."""

    at: int
    """Unix time."""
    events: int = 0
    deliveries: int = 0
    """The sum, over the events, of the streams that each went to."""
    delays: list[int] = field(default_factory=lambda: [0] * (len(DELAY_BOUNDS_S) + 1))
    """How many of the events that streams follow are in each bucket of DELAY_BOUNDS_S."""

    def delay(self, share: float) -> float | None:
        """Return the delay in seconds below which a share (0 to 1) of the events stayed, or None if there were none.

        Events are assumed to be spread evenly within a bucket.
        """
        wanted, below = share * sum(self.delays), 0
        for place, count in enumerate(self.delays):
            if count and below + count >= wanted:
                low = DELAY_BOUNDS_S[place - 1] if place else 0.0
                high = DELAY_BOUNDS_S[place] if place < len(DELAY_BOUNDS_S) else low
                return low + (high - low) * (wanted - below) / count
            below += count
        return None


class LastEvent(NamedTuple):
    """What is shown of an event. The event itself would keep its payload in memory, one for each channel."""

    id: int
    event_type: str
    created_at: int


@dataclass(slots=True)
class ChannelMeter:
    """A channel's traffic, as this process has seen it. ``at`` is the Unix time of the last batch."""

    last: LastEvent
    at: float
    events: int = 0
    _rate: float = 0.0

    def add(self, count: int, last: LastEvent, now: float) -> None:
        """Count some events; ``last`` is the newest, ``now`` is Unix time."""
        self._rate = self.rate(now) + count / RATE_WINDOW_S
        self.at = max(now, self.at)
        self.last = last
        self.events += count

    def rate(self, now: float) -> float:
        """Return the recent rate in events per second."""
        return self._rate * exp(min(0.0, self.at - now) / RATE_WINDOW_S)


class Meter:
    """Counts what the hub delivers. Everything except ``recent`` and ``channels`` only grows."""

    def __init__(self) -> None:
        self.events = 0
        self.deliveries = 0
        self.delay_sum = 0.0
        """Seconds from created_at (the database's clock) to the socket (this machine's), added up over all events."""
        self.delays = [0] * (len(DELAY_BOUNDS_S) + 1)
        self.recent: deque[Second] = deque(maxlen=HISTORY_S)
        self.channels: OrderedDict[str, ChannelMeter] = OrderedDict()
        """By name; the most recently active channel is last."""

    def batch(self, released: Sequence[tuple[AnyEvent, Cursor]], deliveries: int, now: float) -> None:
        """Count events that are delivered at ``now`` (Unix time), and how many writes to streams that took."""
        second = self._second(int(now))
        by_channel: dict[str, list[AnyEvent]] = {}
        for event, _ in released:
            if isinstance(event, Event):  # nobody waits for the others, so it does not matter when they are read
                delay = max(0.0, now - POSTGRES_EPOCH_S - event.created_at / 1_000_000)
                bucket = bisect_left(DELAY_BOUNDS_S, delay)
                self.delays[bucket] += 1
                second.delays[bucket] += 1
                self.delay_sum += delay
            by_channel.setdefault(event.channel, []).append(event)
        self.events += len(released)
        self.deliveries += deliveries
        second.events += len(released)
        second.deliveries += deliveries
        for name, events in by_channel.items():
            last = LastEvent(events[-1].id, events[-1].event_type, events[-1].created_at)
            channel = self.channels.pop(name, None) or ChannelMeter(last, now)
            channel.add(len(events), last, now)
            self.channels[name] = channel
        while len(self.channels) > MAX_CHANNELS:
            self.channels.popitem(last=False)

    def forget(self, ids: Set[int]) -> None:
        """Drop the channels whose last event is one of these."""
        for name in [name for name, channel in self.channels.items() if channel.last.id in ids]:
            del self.channels[name]

    def _second(self, at: int) -> Second:
        if not self.recent or self.recent[-1].at < at:
            self.recent.append(Second(at))
        return self.recent[-1]
