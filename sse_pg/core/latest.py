"""The last events of each channel at a position, and the cursors of a stream that begins with them.

Such a stream is one that resumes: its first cursor is the position without these events, so it is sent them as what it
has missed. Many of them may be scattered below the others: if one channel is quiet and another is busy, the events of
the quiet one are older than some events of the busy one that are not wanted. These *scattered* events are read one by
one. Everything that the channels have from ``base`` on is wanted, so from there on the stream is like every other.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from sse_pg.core.cursor import MAX_TEXT_BYTES, Cursor, trimmed
from sse_pg.core.ranges import Ranges

#: Ranges of ids that a cursor here has for events which are still to be sent. A printed cursor has no room for more.
MAX_SPANS = MAX_TEXT_BYTES // 2


class Latest:
    """What a stream that begins with the last events of its channels is still to be sent one by one."""

    def __init__(self, position: Cursor, newest: Mapping[str, Sequence[int]], most: int) -> None:
        """``newest``: of each channel the ids of its last events that ``position`` has, at most ``most``, descending.

        A channel with fewer has no others.
        """
        ids = sorted((number, channel) for channel, numbers in newest.items() for number in numbers)
        cut_off = [numbers[-1] for numbers in newest.values() if len(numbers) >= most]
        floor = max(cut_off) if cut_off else ids[0][0] if ids else position.high + 1
        self.base = position.clip(floor - 1)
        """The cursor after the scattered events."""
        scattered = ids[: bisect_left(ids, (floor, ""))]
        names = {channel: place for place, channel in enumerate(dict.fromkeys(channel for _, channel in scattered))}
        self._names = list(names)
        self._channels = array("I", (names[channel] for _, channel in scattered))
        self._ids = array("q", (number for number, _ in scattered))
        self._spans = Ranges((number, number) for number in self._ids).spans
        self._sent = 0

    @property
    def is_done(self) -> bool:
        """Whether all scattered events were sent."""
        return self._sent == len(self._ids)

    @property
    def cursor(self) -> Cursor:
        """The stream's cursor now."""
        return self.after(self._ids[self._sent - 1] if self._sent else 0)

    def next(self, most: int) -> tuple[list[str], Ranges]:
        """Return the ids of the next scattered events, and the channels that have them."""
        part = slice(self._sent, self._sent + most)
        channels = sorted({self._names[place] for place in self._channels[part]})
        return channels, Ranges((number, number) for number in self._ids[part])

    def note_sent(self, number: int) -> None:
        """Note that the scattered events up to an id were sent, or are no longer there."""
        self._sent = bisect_right(self._ids, number)

    def after(self, number: int) -> Cursor:
        """Return the cursor of a stream that was sent the scattered events up to an id.

        If too many are left, it is lowered as it would be for printing: then it also lacks events that are not wanted.
        """
        at = bisect_right(self._spans, number, key=_last)
        left = self._spans[at : at + MAX_SPANS]
        gaps = Ranges(left).above(number)
        high = self._spans[at + MAX_SPANS][0] - 1 if at + MAX_SPANS < len(self._spans) else self.base.high
        return trimmed(high, self.base.gaps | gaps)


def _last(span: tuple[int, int]) -> int:
    return span[1]
