"""What a tail counts: bells, reads, connections, the time in each state. The tail passes the time; no clock here."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from sse_pg.core.ranges import Ranges

State = Literal["asleep", "awake", "down", "rest"]


class TailMeter:
    """The counts of one tail. Times are seconds of one monotonic clock."""

    def __init__(self, now: float) -> None:
        self.bells = 0
        self.reads = 0
        self.connections = 0
        self.failures = 0
        self.safety_reads: Counter[bool] = Counter()
        """Safety reads, by whether they found an event."""
        self.last_id = 0
        """The last id drawn, when the tail last asked."""
        self.queue_usage = 0.0
        """The part of PostgreSQL's notification queue that is in use, from 0 to 1."""
        self.state: State = "down"
        self._seconds: dict[State, float] = {"asleep": 0.0, "awake": 0.0, "down": 0.0, "rest": 0.0}
        self._since = now
        self._oldest: tuple[int, float] | None = None

    def enter(self, state: State, now: float) -> None:
        """Note that the tail is in this state from now on."""
        self._seconds[self.state] += now - self._since
        self.state, self._since = state, now

    def seconds(self, now: float) -> dict[State, float]:
        """Return the seconds spent in each state so far."""
        return {**self._seconds, self.state: self._seconds[self.state] + now - self._since}

    def note_missing(self, missing: Ranges, now: float) -> None:
        """Note the ids that are missing after a read."""
        if not missing:
            self._oldest = None
        elif self._oldest is None or self._oldest[0] != missing.spans[0][0]:
            self._oldest = (missing.spans[0][0], now)

    def oldest_missing_s(self, now: float) -> float:
        """Return for how many seconds the lowest missing id has been missing; 0 if none is missing."""
        return now - self._oldest[1] if self._oldest is not None else 0.0
