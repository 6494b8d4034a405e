"""What the hub was handed, cut to what each group gets of it. Each form of the bytes is made once."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

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
        "_only",
        "before",
        "deliveries",
        "erased",
        "gap",
        "log",
        "mark",
        "number",
        "reason",
        "released",
    )

    def __init__(
        self,
        number: int,
        log: int,
        before: Cursor,
        position: Cursor,
        now: float,
        released: Sequence[tuple[AnyEvent, Cursor]] = (),
        entries: dict[str, list[Entry]] | None = None,
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
        self.mark = Mark(number, position, now)
        """That of the streams that were sent it."""
        self.released = released
        self.reason: str | None
        self.reason, self.gap = gap or (None, b"")
        self.deliveries = 0
        """Writes of events to streams so far."""
        self.erased = False
        """Whether one of the events was erased after it was handed on."""
        self._entries = entries or {}
        self._only = next(iter(self._entries)) if len(self._entries) == 1 else None
        """The channel of all events, if they have one in common. Looking it up is a part of the price of a write."""
        self._batches: dict[tuple[str | None, Envelope | None], Batch] = {}

    @property
    def channels(self) -> Collection[str] | None:
        """The channels of the events; None for a gap event, which all streams get."""
        return None if self.reason is not None else self._entries.keys()

    def batch(self, channels: frozenset[str], envelope: Envelope | None) -> Batch | None:
        """Return what streams with these channels get of it, or None if that is nothing.

        Groups that get the same share one batch: nearly always they get the events of one channel, or all.
        """
        name = self._only
        if name is not None:
            if name not in channels:
                return None
        elif self.reason is None:
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

    def erase(self, ids: Set[int]) -> None:
        """Note that events were erased: what is made for the groups from here on says so if it has one of them."""
        if any(event.id in ids for event, _ in self.released):
            self.erased = True
            self._batches.clear()

    def forget_batches(self) -> None:
        """Let go of what was made for the groups. The batches know this object: as a circle all would stay for long."""
        self._batches.clear()
        self._entries.clear()
        self._only = None

    def _batch(self, entries: list[Entry], envelope: Envelope | None) -> Batch:
        if self.reason is not None:
            return Batch((self,), [self.gap], 0)
        if len(entries) > 1:
            entries.sort(key=_turn)
        return Batch((self,), [entry.frame(envelope) for entry in entries], len(entries))


class Batch:
    """What some streams get of a delivery, or of several that they lack: joined once for all of them."""

    __slots__ = ("_blocks", "_framed", "deliveries", "events", "has_erased", "size")

    def __init__(self, deliveries: tuple[Delivery, ...], blocks: list[bytes], events: int) -> None:
        self.deliveries = deliveries
        """The oldest first. The last one counts the writes, and has the mark of the streams that were sent this."""
        self.events = events
        self.size = sum(map(len, blocks))
        """Bytes of all blocks, before they are framed."""
        self.has_erased = any(delivery.erased for delivery in deliveries)
        """Whether one of its events was erased before it was made."""
        self._blocks = blocks
        self._framed: dict[Framing, bytes] = {}

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Return what streams get that lack all of these."""
        return cls(
            tuple([delivery for batch in batches for delivery in batch.deliveries]),
            [block for batch in batches for block in batch._blocks],
            sum([batch.events for batch in batches]),
        )

    def framed(self, framing: Framing) -> bytes:
        """Return what is written. Not made before: streams that lack more than one write may have do not need it."""
        found = self._framed.get(framing)
        if found is None:
            found = self._framed[framing] = framing.batch(b"".join(self._blocks))
        return found


def _turn(entry: Entry) -> int:
    return entry.turn
