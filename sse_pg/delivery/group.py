"""The live streams that get the same bytes, and the batches that some of them have still to be sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sse_pg.core.envelope import Envelope
from sse_pg.core.framing import Framing
from sse_pg.delivery.batch import Batch, Missing
from sse_pg.delivery.stream import Stream

Key = tuple[frozenset[str], Envelope | None, Framing]
"""The channels, the envelope, and how the bytes travel in the body of the response."""


class Group:
    """Live streams with the same channels and the same wire form.

    Each delivery of the process has a number. The mark of a stream says up to which number the stream was sent what
    there was for its group; ``seen`` says up to which number the group has its batches.
    """

    __slots__ = ("_missing", "batches", "channels", "envelope", "events", "framing", "number", "seen", "streams")

    def __init__(self, channels: frozenset[str], envelope: Envelope | None, framing: Framing, number: int) -> None:
        self.channels = channels
        self.envelope = envelope
        self.framing = framing
        self.streams: set[Stream] = set()
        self.events = 0
        """Events in all batches so far. Streams compare it when they enter and when they leave."""
        self.seen = number
        self.number = number
        """The number of the last batch."""
        self.batches: deque[Batch] = deque()
        self._missing: dict[int, Missing] = {}

    @property
    def key(self) -> Key:
        """What the streams of the group have in common."""
        return self.channels, self.envelope, self.framing

    def has(self, number: int) -> bool:
        """Return whether all streams of the group were sent everything up to a number."""
        return self.seen >= number and not (self.batches and self.batches[0].number <= number)

    def append(self, batches: Sequence[Batch]) -> None:
        """Add batches to be written."""
        self.batches.extend(batches)
        self.number = batches[-1].number
        self.events += sum(batch.events for batch in batches)
        self._missing.clear()

    def missing(self, number: int, now: float) -> Missing | None:
        """Return what a stream of the group lacks that was sent everything up to a number."""
        if number >= self.number:
            return None
        found = self._missing.get(number)
        if found is None:
            batches = [batch for batch in self.batches if batch.number > number]
            found = batches[0].alone(self.framing, now) if len(batches) == 1 else Missing(batches, self.framing, now)
            self._missing[number] = found
        return found

    def drop(self, number: int) -> None:
        """Forget the batches up to a number, which every stream has."""
        while self.batches and self.batches[0].number <= number:
            self.batches.popleft()
        self._missing.clear()
