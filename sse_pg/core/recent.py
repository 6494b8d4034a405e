"""Which events were read last: enough to find out whether another log has them too."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import AnyEvent
from sse_pg.core.ranges import Ranges

#: Events that are remembered, 16 bytes each. A standby that is behind by more has surely lost some of them.
KEPT_EVENTS = 65_536


class Recent:
    """The ids of the events that were read last, and their times: an id alone may have been given to another event."""

    def __init__(self, start: int) -> None:
        self.forgotten_to = start
        """Nothing is remembered of the events up to this id that were read long ago."""
        self._ids = array("q")
        self._times = array("q")

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, events: Collection[AnyEvent]) -> None:
        """Remember events. From time to time, the oldest are forgotten."""
        self._ids.extend([event.id for event in events])
        self._times.extend([event.created_at for event in events])
        if len(self._ids) > 2 * KEPT_EVENTS:
            self.forgotten_to = max(self.forgotten_to, *self._ids[:-KEPT_EVENTS])
            del self._ids[:-KEPT_EVENTS], self._times[:-KEPT_EVENTS]

    def beyond(self, certain: Cursor, position: Cursor) -> dict[int, int] | None:
        """Return what was read and is not certain, each id with its time; None if that is not remembered.

        ``position`` is what was handed on.
        """
        read = {number: time for number, time in self._pairs() if not certain.offered(number)}
        unknown = certain.missing(position).up_to(self.forgotten_to)
        if len(unknown) > len(read) or any(n not in read for first, last in unknown for n in range(first, last + 1)):
            return None
        return read

    def drop(self, ids: Ranges) -> None:
        """Forget single events."""
        left = [(number, time) for number, time in self._pairs() if number not in ids]
        self._ids = array("q", [number for number, _ in left])
        self._times = array("q", [time for _, time in left])

    def _pairs(self) -> Iterable[tuple[int, int]]:
        return zip(self._ids, self._times, strict=True)
