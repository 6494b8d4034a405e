"""The fan-out: streams in groups of one set of channels, a batch of events written once per stream.

All of it runs between awaits of the event loop, so that joining a stream and delivering to it cannot interleave.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from sse_pg.core import wire
from sse_pg.core.cursor import START, Cursor
from sse_pg.core.event import Event
from sse_pg.core.meter import Meter
from sse_pg.core.ring import Entry, Ring
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.stream import Stream

Key = tuple[frozenset[str], bool, bool]
Step = Literal["joined", "more", "behind", "ahead"]

#: Bytes that are written to a stream before its client has to read some.
AT_ONCE = 262144
#: Catch-ups kept for the next client with the same channels and cursor: a crowd has few of them.
REMEMBERED = 64


class Group:
    """The live streams with the same channels and the same wire form."""

    __slots__ = ("batch", "channels", "chunked", "envelope", "events", "streams")

    def __init__(self, channels: frozenset[str], envelope: bool, chunked: bool) -> None:
        self.channels = channels
        self.envelope = envelope
        self.chunked = chunked
        self.streams: set[Stream] = set()
        self.batch: list[bytes] = []
        self.events = 0
        """Events that it was sent so far: a stream notes it when it enters, and again when it leaves."""


class Hub:
    """Every stream of this process, and the position up to which the live ones were served."""

    def __init__(self, ring_events: int, ring_bytes: int) -> None:
        self._ring_size = (ring_events, ring_bytes)
        self.position = START
        self.ring = Ring(*self._ring_size, START)
        self.streams: set[Stream] = set()
        """All, those that catch up included."""
        self.meter = Meter()
        self.opened = 0
        self.closed: Counter[EndReason] = Counter()
        """Streams that have ended, by reason."""
        self.replayed = 0
        """Events that streams were sent from the ring."""
        self.gap_notices: Counter[str] = Counter()
        """Streams that were told of a gap, by its reason."""
        self._bytes_of_closed = 0
        self.epochs: list[tuple[int, int]] = []
        """Pairs of ids; a cursor between the two is of a log that was lost."""
        self._groups: dict[Key, Group] = {}
        self._by_channel: dict[str, set[Group]] = {}
        self._catch_ups: dict[tuple[Key, Cursor], tuple[bytes, Cursor | None, int]] = {}

    def begin(self, position: Cursor) -> None:
        """Start at a position, with nothing behind it."""
        self.position = position
        self.ring = Ring(*self._ring_size, position)
        self._catch_ups.clear()

    def restart(self, position: Cursor, reason: str = "unknown") -> None:
        """Go on at a position that does not follow from the one before: every stream is told of the gap, and why."""
        before, now = self.position, time.monotonic()
        self.begin(position)
        for stream in [stream for stream in self.streams if stream.greeted]:
            after = before if stream.live else stream.cursor & before
            stream.cursor = position
            stream.tell(wire.gap(reason, after.text, position), position, now)
            self.gap_notices[reason] += 1

    def deliver(self, released: Sequence[tuple[Event, Cursor]], position: Cursor) -> None:
        """Hand events on to the live streams of their channels; afterwards all were offered ``position``."""
        touched: list[Group] = []
        deliveries = 0
        for event, cursor in released:
            entry = self.ring.add(event, cursor)
            for group in self._by_channel.get(event.channel, ()):
                if not group.batch:
                    touched.append(group)
                group.batch.append(entry.frame(group.envelope))
        if position is not self.position:
            self.position = position
            self._catch_ups.clear()
        now = time.monotonic()
        for group in touched:
            data = b"".join(group.batch)
            deliveries += len(group.batch) * len(group.streams)
            group.events += len(group.batch)
            group.batch = []
            framed = wire.chunk(data) if group.chunked else data
            for stream in group.streams:
                stream.push(framed, now)
                stream.told = position
                stream.told_at = now
        if released:
            self.meter.batch(released, deliveries, time.time())

    def last_certain(self, cursor: Cursor) -> Cursor:
        """Return the cursor, or the part of it that is of this log where it comes from one that was lost."""
        for settled_to, starts_at in self.epochs:
            if settled_to < cursor.high < starts_at:
                return cursor.clip(settled_to)
        return cursor

    def add(self, stream: Stream) -> int:
        """Count a stream that has opened, and return its number; it catches up from its cursor and then joins."""
        self.streams.add(stream)
        self.opened += 1
        return self.opened

    @property
    def sent_bytes(self) -> int:
        """Bytes of all streams, those that have ended included. Looks at every open one."""
        return self._bytes_of_closed + sum(stream.sent_bytes for stream in self.streams)

    @property
    def group_sizes(self) -> list[int]:
        """How many streams each group has."""
        return [len(group.streams) for group in self._groups.values()]

    def join(self, stream: Stream) -> Step:
        """Bring a stream up to date from the ring and make it live, in one step between awaits.

        "joined": it is live. "more": the ring has more for it than should be buffered at once; wait until it has read,
        and call again. "behind": the ring does not reach back to its cursor. "ahead": the cursor has what this
        server has not read yet.
        """
        cursor = stream.cursor
        if not self.position.covers(cursor):
            return "ahead"
        key = _key(stream)
        known = self._catch_ups.get((key, cursor))
        if known is None:
            missed = self.ring.since(cursor, stream.channels)
            if missed is None:
                return "behind"
            known = _joined(missed, stream)
            if len(self._catch_ups) >= REMEMBERED:
                self._catch_ups.clear()
            self._catch_ups[key, cursor] = known
        data, reached, events = known
        now = time.monotonic()
        if data:
            stream.push(data, now)
            stream.replayed += events
            self.replayed += events
        if reached is not None:
            stream.cursor = reached
            return "more"
        stream.told, stream.told_at = self.position, now
        stream.live = True
        self._enter(stream, key)
        return "joined"

    def leave(self, stream: Stream, reason: EndReason = EndReason.CLIENT) -> None:
        """Forget a stream that has ended, and was added or not."""
        if stream in self.streams:
            self.streams.discard(stream)
            self.closed[reason] += 1
            self._bytes_of_closed += stream.sent_bytes
        if stream.live:
            self._exit(stream)

    def change_channels(self, stream: Stream, channels: frozenset[str]) -> None:
        """Let a stream follow other channels from here on."""
        if channels == stream.channels:
            return
        if stream.live:
            self._exit(stream)
        stream.channels = channels
        if stream.live:
            self._enter(stream, _key(stream))

    def _enter(self, stream: Stream, key: Key) -> None:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
            for channel in stream.channels:
                self._by_channel.setdefault(channel, set()).add(group)
        group.streams.add(stream)
        stream.events -= group.events
        stream.channels = group.channels  # one set in memory for all of them

    def _exit(self, stream: Stream) -> None:
        key = _key(stream)
        group = self._groups[key]
        group.streams.discard(stream)
        stream.events += group.events
        if group.streams:
            return
        del self._groups[key]
        for channel in stream.channels:
            groups = self._by_channel[channel]
            groups.discard(group)
            if not groups:
                del self._by_channel[channel]


def _key(stream: Stream) -> Key:
    return stream.channels, stream.envelope, stream.chunked


def _joined(missed: list[Entry], stream: Stream) -> tuple[bytes, Cursor | None, int]:
    """Return the framed blocks of what a stream missed, up to AT_ONCE bytes.

    With them its cursor, if they are a part, and how many they are.
    """
    cursor, size = stream.cursor, 0
    blocks: list[bytes] = []
    for entry in missed:
        if size > AT_ONCE:
            break
        after = cursor | entry.cursor
        # A client that comes from another server may have been offered what lay in a gap here when this went out.
        block = (
            entry.frame(stream.envelope)
            if after == entry.cursor
            else wire.frame(entry.event, after, envelope=stream.envelope)
        )
        cursor = after
        size += len(block)
        blocks.append(block)
    data = b"".join(blocks)
    framed = wire.chunk(data) if data and stream.chunked else data
    return framed, None if len(blocks) == len(missed) else cursor, len(blocks)
