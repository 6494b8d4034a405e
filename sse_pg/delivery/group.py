"""The live streams that get the same bytes, and the batches that a sweep has still to write to some of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import Envelope
from sse_pg.core.event import Event
from sse_pg.delivery.stream import Stream

Key = tuple[frozenset[str], Envelope | None, bool]
"""The channels, the envelope, and whether the connection has chunks around its data."""


class Delivery:
    """Events that the hub was handed, until they are written to every stream that was live then."""

    __slots__ = ("deliveries", "groups", "released")

    def __init__(self, released: Sequence[tuple[Event, Cursor]]) -> None:
        self.released = released
        self.deliveries = 0
        """Writes of events to streams so far."""
        self.groups = 0
        """Groups that a sweep has not been through."""


class Batch(NamedTuple):
    """Events that a sweep brings to a group."""

    data: bytes
    events: int
    before: Cursor
    """The position of the streams that were not sent it yet."""
    position: Cursor
    """The position of the streams that were sent it."""
    source: Delivery


class Missing(NamedTuple):
    """What a stream of the group was not sent yet."""

    data: bytes
    events: int
    before: Cursor
    position: Cursor


class Group:
    """Live streams with the same channels and the same wire form.

    Batches are numbered. A stream carries the number of the last one that it was sent, or that was handed on before it
    entered; ``number`` is that of the newest. Batches up to the lowest number of all streams are dropped by the sweep.
    """

    __slots__ = ("_missing", "batches", "channels", "chunked", "collected", "envelope", "events", "number", "streams")

    def __init__(self, channels: frozenset[str], envelope: Envelope | None, chunked: bool) -> None:
        self.channels = channels
        self.envelope = envelope
        self.chunked = chunked
        self.streams: set[Stream] = set()
        self.collected: list[bytes] = []
        """Blocks of the batch that is being made."""
        self.events = 0
        """Events in all batches so far. Streams compare it when they enter and when they leave."""
        self.number = 0
        self.batches: deque[Batch] = deque()
        self._missing: dict[int, Missing] = {}

    @property
    def key(self) -> Key:
        """What the streams of the group have in common."""
        return self.channels, self.envelope, self.chunked

    def take(self) -> tuple[bytes, int]:
        """Return the blocks that were collected, joined, and how many events they are."""
        data, events = b"".join(self.collected), len(self.collected)
        self.collected = []
        self.events += events
        return data, events

    def append(self, batch: Batch) -> None:
        """Add a batch for a sweep to write."""
        self.number += 1
        self.batches.append(batch)
        self._missing.clear()

    def missing(self, stream: Stream) -> Missing | None:
        """Return what a stream of the group was not sent yet, joined once for all that lack the same."""
        lacks = self.number - stream.batch
        if not lacks:
            return None
        found = self._missing.get(lacks)
        if found is None:
            batches = list(self.batches)[-lacks:]
            data = b"".join([batch.data for batch in batches])
            found = self._missing[lacks] = Missing(
                wire.chunk(data) if self.chunked else data,
                sum(batch.events for batch in batches),
                batches[0].before,
                batches[-1].position,
            )
        return found

    def drop(self, number: int) -> list[Batch]:
        """Forget the batches up to a number, which every stream has, and return them."""
        dropped = [self.batches.popleft() for _ in range(len(self.batches) - (self.number - number))]
        self._missing.clear()
        return dropped
