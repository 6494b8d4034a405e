"""What one process knows about the log: what it has read, which ids may still come, what it has handed on.

The tail reads, and this object decides. It does no I/O and reads no clock. docs/guarantee.md has the argument.

* A missing id below one that was read is *open*: its transaction may still commit.
* ``settle`` removes the open ids that no publisher in flight can hold. The publishers must be read before the rows.
* An open id that was noticed less than ``wait`` seconds ago holds back the events above it, so that they go out in the
  order of their ids. An older one holds back nothing: it becomes a gap in the cursor, and comes when it commits.
* Events of more than MAX_HELD_CHARS are not held back: the order is worth a short wait, not any amount of memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sse_pg.core.cursor import Cursor, trimmed
from sse_pg.core.event import AnyEvent
from sse_pg.core.ranges import Ranges
from sse_pg.core.recent import Recent

#: Maximum length of the payloads and headers of all events that are held back.
MAX_HELD_CHARS = 4_194_304


@dataclass(slots=True)
class GapCounts:
    """How many ids were missing when a higher one was read (``opened``), and how they ended.

    ``came`` counts ids that were committed later, ``dead`` ids that can no longer come."""

    opened: int = 0
    came: int = 0
    dead: int = 0


class Frontier:
    """One reader's view of the log, from a start position onwards.

    ``wait`` is in seconds. The times that the methods take are seconds of one monotonic clock.
    """

    def __init__(self, start: Cursor, wait: float, counts: GapCounts | None = None) -> None:
        self.wait = wait
        self.counts = counts or GapCounts()
        self.position = start
        """What was handed on. Every live stream was offered exactly this in its channels."""
        self.seen = start.high
        """The highest id that was read or is known to be settled."""
        self.open = start.gaps
        """The ids up to ``seen`` that are missing and may still come."""
        self._fresh: list[tuple[int, float]] = []
        """The gaps that hold events back, as pairs (first open id, time at which it was noticed), ascending in both."""
        self._held: list[AnyEvent] = []
        """Events that were read and are not handed on yet, ascending by id."""
        self._held_chars = 0
        self.recent = Recent(start.high)
        """The events that were read last."""

    def feed(self, rows: Iterable[AnyEvent], now: float) -> None:
        """Take the rows of one read: the ids in ``open`` and the ids above ``seen``, ascending, from one snapshot."""
        behind = len(self._held)
        for event in rows:
            if event.id > self.seen:
                if event.id > self.seen + 1:
                    self.open = self.open.and_span(self.seen + 1, event.id - 1)
                    self._fresh.append((self.seen + 1, now))
                    self.counts.opened += event.id - self.seen - 1
                self.seen = event.id
            elif event.id in self.open:
                self.open = self.open.without(event.id)
                self.counts.came += 1
            else:
                continue  # read before: a retry after a lost connection may repeat a read
            self._held.append(event)
            self._held_chars += event.chars
        self.recent.add(self._held[behind:])
        if behind:
            self._held.sort(key=_by_id)

    def settle(self, last: int, alive: Ranges) -> None:
        """Remove the open ids up to ``last`` that lie in no window of a publisher in flight.

        ``last`` is the last id drawn, ``alive`` the ids that publishers in flight may hold. Both must be read, in this
        order, before the rows that were fed last. Call this only after a complete read: a read that was cut off by its
        limit has not seen everything up to ``last``.
        """
        dead = self.open.up_to(last) - alive
        if dead:
            self.counts.dead += len(dead)
            self.open = self.open - dead
            if self.position.gaps:
                self.position = Cursor(self.position.high, self.position.gaps - dead)
        floor = min(last, alive.spans[0][0] - 1) if alive else last
        self.seen = max(self.seen, floor)

    def expire(self, purged_to: int) -> None:
        """Give up the missing ids up to ``purged_to``: their events may have been purged before they were read.

        Call this after ``feed``, if ``misses_up_to(purged_to)``; ``purged_to`` must come from the snapshot of the rows.
        Afterwards ``position`` covers the ids that were given up, so the streams need a gap event.
        """
        self.counts.dead += len(self.open.up_to(purged_to))
        self.open = self.open.above(purged_to)
        self.seen = max(self.seen, purged_to)
        held = Ranges((event.id, event.id) for event in self._held)
        self.position = trimmed(max(self.position.high, purged_to), self.open | held)

    def lose(self, lost: Ranges) -> bool:
        """Take back that ids were read or are dead: their events are not in the log that follows this one, or not yet.

        Returns whether what was handed on covers any of them.
        """
        self._held = [event for event in self._held if event.id not in lost]
        self._held_chars = sum(event.chars for event in self._held)
        self.open = self.open | lost
        self.recent.drop(lost)
        covers_some = bool(lost.up_to(self.position.high) - self.position.gaps)
        if covers_some:
            self.position = trimmed(self.position.high, self.position.gaps | lost)
        return covers_some

    def release(self, now: float) -> list[tuple[AnyEvent, Cursor]]:
        """Move ``position`` as far as it can go now; return the events passed, ascending, each with its position."""
        barrier = self._barrier(now)
        out: list[tuple[AnyEvent, Cursor]] = []
        position = self.position
        missing = self.open
        for event in self._held:
            number = event.id
            if barrier is not None and number > barrier:
                break
            if number > position.high:
                gaps = position.gaps
                if missing:
                    gaps = gaps | missing.above(position.high).up_to(number)
                position = Cursor(number, gaps)
            else:
                position = Cursor(position.high, position.gaps.without(number))
            out.append((event, position))
        if len(out) == len(self._held):
            self._held.clear()
            self._held_chars = 0
        else:
            del self._held[: len(out)]
            self._held_chars -= sum(event.chars for event, _ in out)
        # The position also covers what is settled or open above the last event.
        reach = self.seen if barrier is None else barrier - 1
        if self._held:
            reach = min(reach, self._held[0].id - 1)
        if reach > position.high:
            position = Cursor(reach, position.gaps | self.open.above(position.high).up_to(reach))
        self.position = position
        return out

    def _barrier(self, now: float) -> int | None:
        """Return the lowest open id that still holds events back, or None."""
        if self._held_chars > MAX_HELD_CHARS:
            self._fresh.clear()
        while self._fresh:
            first, noticed = self._fresh[0]
            rest = self.open.above(first - 1)
            # The next pair starts higher: every open id below it was noticed at the time of this one.
            end = self._fresh[1][0] if len(self._fresh) > 1 else self.seen + 1
            if now - noticed < self.wait and rest and rest.spans[0][0] < end:
                return rest.spans[0][0]
            self._fresh.pop(0)
        return None

    def misses_up_to(self, number: int) -> bool:
        """Return whether an id up to ``number`` was not read and may have been committed, or may still be."""
        return number > self.seen or bool(self.open.up_to(number))

    def holds_up_to(self, number: int) -> bool:
        """Return whether an event with this id or a lower one is held back."""
        return bool(self._held) and self._held[0].id <= number

    @property
    def holding(self) -> bool:
        """Whether events are held back by a fresh gap. The tail then reads again soon."""
        return bool(self._held)


def _by_id(event: AnyEvent) -> int:
    return event.id
