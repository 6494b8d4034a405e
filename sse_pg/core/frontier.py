"""What one process knows of the log: what it has read, what may still come, what it has handed on.

No input or output and no clock here: the tail reads, this object decides (docs/guarantee.md has the argument):

* An id that is missing below one that was read is *open*: its transaction may commit yet.
* ``settle`` buries the open ids that no publisher in flight can hold, provided those were read before the rows.
* An open id younger than ``wait`` holds the events above it back, so that they go out in the order of ids. Older
  ones hold nothing back: they go into the cursor as gaps, and come when they commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import Event
from sse_pg.core.ranges import Ranges


@dataclass(slots=True)
class GapCounts:
    """Ids that were missing when a higher one was read, and what became of them."""

    opened: int = 0
    came: int = 0
    dead: int = 0


class Frontier:
    """One reader's view of the log, from a start position onwards.

    ``wait`` is in seconds; the times given to the methods are seconds of one monotonic clock.
    """

    def __init__(self, start: Cursor, wait: float, counts: GapCounts | None = None) -> None:
        self.wait = wait
        self._counts = counts or GapCounts()
        self.position = start
        """What was handed on. Every live stream was offered exactly this, in its channels."""
        self.seen = start.high
        """The highest id that was read or is known to be settled."""
        self.open = start.gaps
        """The ids up to ``seen`` that are missing and may still come."""
        self._fresh: list[tuple[int, float]] = []
        """(first open id, moment it was noticed) of the gaps that hold events back, ascending in both."""
        self._held: list[Event] = []
        """Events that were read and not handed on, ascending by id."""

    def feed(self, rows: Iterable[Event], now: float) -> None:
        """Take the rows of one read: those in ``open`` and those above ``seen``, ascending, from one snapshot."""
        behind = bool(self._held)
        for event in rows:
            if event.id > self.seen:
                if event.id > self.seen + 1:
                    self.open = self.open.and_span(self.seen + 1, event.id - 1)
                    self._fresh.append((self.seen + 1, now))
                    self._counts.opened += event.id - self.seen - 1
                self.seen = event.id
            elif event.id in self.open:
                self.open = self.open.without(event.id)
                self._counts.came += 1
            else:
                continue  # read before: a retry after a lost connection may repeat a read
            self._held.append(event)
        if behind:
            self._held.sort(key=_by_id)

    def settle(self, last: int, alive: Ranges) -> None:
        """Bury what is missing up to ``last`` and lies in no window of a publisher in flight.

        Both were read, in this order, before the rows that were fed last. Only after a read that was complete: one
        that was cut off by its limit has not seen everything up to ``last``.
        """
        dead = self.open.up_to(last) - alive
        if dead:
            self._counts.dead += len(dead)
            self.open = self.open - dead
            if self.position.gaps:
                self.position = Cursor(self.position.high, self.position.gaps - dead)
        floor = min(last, alive.spans[0][0] - 1) if alive else last
        self.seen = max(self.seen, floor)

    def release(self, now: float) -> list[tuple[Event, Cursor]]:
        """Return the events to hand on now, ascending, each with the position after it."""
        barrier = self._barrier(now)
        out: list[tuple[Event, Cursor]] = []
        position = self.position
        count = 0
        for event in self._held:
            if barrier is not None and event.id > barrier:
                break
            count += 1
            if event.id > position.high:
                gaps = position.gaps
                if self.open:
                    gaps = gaps | (self.open.above(position.high).up_to(event.id))
                position = Cursor(event.id, gaps)
            else:
                position = Cursor(position.high, position.gaps.without(event.id))
            out.append((event, position))
        del self._held[:count]
        # What is settled or open above the last event belongs to the position too.
        reach = self.seen if barrier is None else barrier - 1
        if self._held:
            reach = min(reach, self._held[0].id - 1)
        if reach > position.high:
            position = Cursor(reach, position.gaps | self.open.above(position.high).up_to(reach))
        self.position = position
        return out

    def _barrier(self, now: float) -> int | None:
        """Return the lowest open id that still holds events back."""
        while self._fresh:
            first, noticed = self._fresh[0]
            rest = self.open.above(first - 1)
            # A later notice starts above: what is open below it is as old as this one.
            end = self._fresh[1][0] if len(self._fresh) > 1 else self.seen + 1
            if now - noticed < self.wait and rest and rest.spans[0][0] < end:
                return rest.spans[0][0]
            self._fresh.pop(0)
        return None

    def holds_up_to(self, number: int) -> bool:
        """Tell whether an event with this id or a lower one waits for a fresh gap."""
        return bool(self._held) and self._held[0].id <= number

    @property
    def holding(self) -> bool:
        """Tell whether events wait for a fresh gap; the tail looks again soon then."""
        return bool(self._held)


def _by_id(event: Event) -> int:
    return event.id
