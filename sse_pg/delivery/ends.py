"""Which channels are finished, for the streams that end when each of their channels is (``until=end``).

A channel is finished if its event with the highest id is one of finish(). That event is looked up in the table once,
when a stream is brought up. From when the stream is watched, each event that is handed on is noted as well, and the
higher id counts. So what is known here covers everything that the hub has handed on, and may be ahead of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import AnyEvent
from sse_pg.core.names import END
from sse_pg.delivery.stream import Stream


class Last(NamedTuple):
    """The last event of a channel."""

    id: int
    """0 if there is none."""
    is_end: bool
    cursor: Cursor | None = None
    """The one with which it was handed on here, if it was."""


class Ends:
    """The last events of the channels of these streams. Nothing here awaits."""

    def __init__(self) -> None:
        self._watching: dict[Stream, frozenset[str]] = {}
        self._watchers: dict[str, set[Stream]] = {}
        self._last: dict[str, Last] = {}
        self._learned: set[str] = set()
        """Channels whose last event was looked up."""
        self.finished: set[Stream] = set()
        """Streams whose channels are all finished, and that did not end at once: ids may still come below the end."""
        self.log = 0
        """Grows each time that what is known is forgotten."""

    def __bool__(self) -> bool:
        return bool(self._watching)

    def watch(self, stream: Stream) -> None:
        """Note from here on what is handed on of the stream's channels. Call it again when these have changed."""
        self.unwatch(stream)
        self._watching[stream] = stream.channels
        for channel in stream.channels:
            self._watchers.setdefault(channel, set()).add(stream)

    def unwatch(self, stream: Stream) -> None:
        """Forget a stream that has ended, and what nobody needs any more."""
        self.finished.discard(stream)
        for channel in self._watching.pop(stream, ()):
            watchers = self._watchers[channel]
            watchers.discard(stream)
            if not watchers:
                del self._watchers[channel]
                self._last.pop(channel, None)
                self._learned.discard(channel)

    def forget(self) -> None:
        """Forget everything that is known: events may have been passed over, or this is another log."""
        self.log += 1
        self._last.clear()
        self._learned.clear()
        self.finished.clear()

    def unknown(self, channels: Collection[str]) -> list[str]:
        """Return the channels whose last event has to be looked up."""
        return [channel for channel in channels if channel not in self._learned]

    def learn(self, log: int, channels: Iterable[str], found: Iterable[tuple[str, int, str]]) -> None:
        """Note what was looked up, in a read that began when ``log`` was so and the channels were watched."""
        if log != self.log:
            return
        self._learned.update(channel for channel in channels if channel in self._watchers)
        for channel, number, event_type in found:
            self._note(channel, Last(number, event_type == END))

    def note(self, released: Sequence[tuple[AnyEvent, Cursor]]) -> set[Stream]:
        """Note events that are handed on; return the streams that may end because of them."""
        concerned: set[Stream] = set()
        for event, cursor in released:
            watchers = self._watchers.get(event.channel)
            if watchers is None:
                continue
            is_end = event.event_type == END
            self._note(event.channel, Last(event.id, is_end, cursor))
            if is_end:
                concerned |= watchers
        return concerned

    def _note(self, channel: str, last: Last) -> None:
        known = self._last.get(channel)
        if channel in self._watchers and (known is None or (last.id, last.cursor is not None) > (known.id, False)):
            self._last[channel] = last

    def ends_of(self, channels: Iterable[str], position: Cursor) -> list[str]:
        """Return the channels that are finished at a position, in the order in which they were."""
        last = {channel: self._last[channel] for channel in channels if channel in self._last}
        done = [channel for channel, event in last.items() if event.is_end and position.offered(event.id)]
        return sorted(done, key=lambda channel: last[channel].id)

    def last_of(self, channels: Collection[str]) -> Last | None:
        """Return the end with the highest id if all channels are finished; None if not, or if one is not known."""
        highest: Last | None = None
        for channel in channels:
            last = self._last.get(channel)
            if last is None or not last.is_end or channel not in self._learned:
                return None
            if highest is None or last.id > highest.id:
                highest = last
        return highest


def is_over(found: Collection[tuple[str, int, str]], channels: Collection[str], cursor: Cursor) -> bool:
    """Return whether a reader at a cursor was offered everything of channels, and each of them is finished.

    ``found`` is what was looked up after the cursor was found to be true.
    """
    ends = [number for _, number, event_type in found if event_type == END]
    return len(ends) == len(channels) > 0 and not cursor.missing_up_to(max(ends))
