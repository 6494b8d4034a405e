"""The live streams that get the same bytes."""

from __future__ import annotations

from sse_pg.core.envelope import Envelope
from sse_pg.core.framing import Framing
from sse_pg.delivery.stream import Stream

Key = tuple[frozenset[str], Envelope | None, Framing]
"""The channels, the envelope, and how the bytes travel in the body of the response."""


class Group:
    """Live streams with the same channels and the same wire form."""

    __slots__ = ("channels", "envelope", "framing", "reached", "streams")

    def __init__(self, channels: frozenset[str], envelope: Envelope | None, framing: Framing, number: int) -> None:
        self.channels = channels
        self.envelope = envelope
        self.framing = framing
        self.streams: set[Stream] = set()
        self.reached = number
        """Every stream of the group was sent what there was for it up to the delivery with this number."""

    @property
    def key(self) -> Key:
        """What the streams of the group have in common."""
        return self.channels, self.envelope, self.framing
