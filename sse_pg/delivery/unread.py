"""What clients have not read of what they were sent, in this process: one bound for all streams together."""

from __future__ import annotations

import asyncio
from operator import itemgetter
from typing import Protocol

from sse_pg.delivery.end_reason import EndReason

#: If all streams together have more unread than this share of the limit, some are ended ...
CUT_ABOVE = 15 / 16
#: ... until they have no more than this share.
CUT_TO = 14 / 16


class Written(Protocol):
    """A stream, as far as this needs one."""

    @property
    def transport(self) -> asyncio.Transport:
        """Its connection."""

    def end(self, reason: EndReason) -> None:
        """End it, later."""


class Unread:
    """Counts the write buffers that are not empty, and ends the streams with the largest if they are too large.

    Only streams whose client is behind are noted, when they are written to. Their buffers shrink without a word, so
    ``bytes`` is never too low but may be too high. When it reaches the limit, the buffers are measured. That looks at
    every noted stream, but only after another sixteenth of the limit was written to them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._sizes: dict[Written, int] = {}

    def note(self, stream: Written, size: int) -> None:
        """Note how much a stream's client has not read, with what is about to be written. Streams may end."""
        self.bytes += size - self._sizes.get(stream, 0)
        self._sizes[stream] = size
        if self.bytes > self.limit:
            self._measure(stream)

    def forget(self, stream: Written) -> None:
        """Note that nothing is left of what a stream was sent, or that nobody will read it."""
        self.bytes -= self._sizes.pop(stream, 0)

    def _measure(self, just_noted: Written) -> None:
        size = self._sizes[just_noted]
        self._sizes = {stream: stream.transport.get_write_buffer_size() for stream in self._sizes}
        self._sizes[just_noted] = size
        self.bytes = sum(self._sizes.values())
        if self.bytes <= CUT_ABOVE * self.limit:
            return
        for stream, size in sorted(self._sizes.items(), key=itemgetter(1), reverse=True):
            if self.bytes <= CUT_TO * self.limit:
                return
            stream.end(EndReason.SLOW)
            self.bytes -= size
            del self._sizes[stream]
