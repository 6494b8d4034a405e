"""What the hub was handed, cut to what each group gets of it. Each form of the bytes is made once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import Envelope
from sse_pg.core.event import AnyEvent
from sse_pg.core.framing import Framing
from sse_pg.core.ring import Entry
from sse_pg.delivery.stream import Mark


class Delivery:
    """Events, or a gap event for all live streams, from when the hub has them until every stream has them."""

    __slots__ = (
        "_batches",
        "_entries",
        "before",
        "deliveries",
        "erased",
        "gap",
        "log",
        "number",
        "position",
        "reason",
        "released",
    )

    def __init__(
        self,
        number: int,
        log: int,
        before: Cursor,
        position: Cursor,
        released: Sequence[tuple[AnyEvent, Cursor]] = (),
        entries: Mapping[str, list[Entry]] | None = None,
        gap: tuple[str, bytes] | None = None,
    ) -> None:
        """``entries`` are those of the released events that have their payload, by channel.

        ``gap`` is the reason of a gap event and its block.
        ``before`` and ``log`` are the position of a stream that was not sent it, and the log of that position;
        ``position`` is that of a stream that was.
        """
        self.number = number
        self.log = log
        self.before = before
        self.position = position
        self.released = released
        self.reason: str | None
        self.reason, self.gap = gap or (None, b"")
        self.deliveries = 0
        """Writes of events to streams so far."""
        self.erased = False
        """Whether one of the events was erased since."""
        self._entries = entries or {}
        self._batches: dict[tuple[str | None, Envelope | None], Batch] = {}

    @property
    def channels(self) -> Collection[str] | None:
        """The channels of the events; None for a gap event, which all streams get."""
        return None if self.reason is not None else self._entries.keys()

    def batch(self, channels: frozenset[str], envelope: Envelope | None) -> Batch | None:
        """Return what streams with these channels get of it, or None if that is nothing.

        Groups that get the same share one batch: nearly always they get the events of one channel, or all.
        """
        name: str | None = None
        if self.reason is None:
            if len(channels) < len(self._entries):
                wanted = [channel for channel in channels if channel in self._entries]
            else:
                wanted = [channel for channel in self._entries if channel in channels]
            if not wanted:
                return None
            if len(wanted) == 1:
                name = wanted[0]
            elif len(wanted) < len(self._entries):
                return self._batch([entry for channel in wanted for entry in self._entries[channel]], envelope)
        found = self._batches.get((name, envelope))
        if found is None:
            names = self._entries if name is None else (name,)
            found = self._batch([entry for each in names for entry in self._entries[each]], envelope)
            self._batches[name, envelope] = found
        return found

    def forget_batches(self) -> None:
        """Let go of what was made for the groups. The batches know this object: as a circle all would stay for long."""
        self._batches = {}
        self._entries = {}

    def _batch(self, entries: list[Entry], envelope: Envelope | None) -> Batch:
        entries.sort(key=_turn)
        blocks = [entry.frame(envelope) for entry in entries] if self.reason is None else [self.gap]
        return Batch(self, blocks, len(entries))


class Batch:
    """What the streams of a group get of a delivery."""

    __slots__ = ("_alone", "blocks", "delivery", "events", "number")

    def __init__(self, delivery: Delivery, blocks: list[bytes], events: int) -> None:
        self.delivery = delivery
        self.number = delivery.number
        self.blocks = blocks
        """Not joined here: for streams that lack more than one write may have, that would be in vain."""
        self.events = events
        self._alone: dict[Framing, Missing] = {}

    def alone(self, framing: Framing, now: float) -> Missing:
        """Return what a stream is written that lacks this batch and no other."""
        found = self._alone.get(framing)
        if found is None:
            found = self._alone[framing] = Missing((self,), framing, now)
        return found


class Missing:
    """What some streams of a group were not sent yet, joined once for all that lack the same."""

    __slots__ = (
        "_blocks",
        "_data",
        "_deliveries",
        "_framing",
        "before",
        "delivery",
        "events",
        "log",
        "mark",
        "reasons",
        "size",
    )

    def __init__(self, batches: Sequence[Batch], framing: Framing, now: float) -> None:
        self._blocks = [block for batch in batches for block in batch.blocks]
        self._deliveries = [batch.delivery for batch in batches]
        self._framing = framing
        self._data: bytes | None = None
        self.size = sum(map(len, self._blocks))
        """Bytes of all blocks, before they are framed."""
        self.events = sum(batch.events for batch in batches)
        first, last = batches[0].delivery, batches[-1].delivery
        self.before = first.before
        self.log = first.log
        self.delivery = last
        """The delivery that counts the writes."""
        self.mark = Mark(last.number, last.position, now)
        self.reasons = [batch.delivery.reason for batch in batches if batch.delivery.reason is not None]
        """Those of the gap events in it."""

    @property
    def has_erased(self) -> bool:
        """Whether one of its events was erased since."""
        return any(delivery.erased for delivery in self._deliveries)

    @property
    def data(self) -> bytes:
        """What is written."""
        if self._data is None:
            self._data = self._framing.batch(b"".join(self._blocks))
        return self._data


def _turn(entry: Entry) -> int:
    return entry.turn
