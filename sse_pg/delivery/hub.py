"""The fan-out: streams with the same channels form a group, and a batch of events is one write to each stream.

Small groups are written to at once, large ones by the sweeper. Nothing here awaits, so that taking a stream in and
writing to it cannot happen in the middle of each other.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from sse_pg.core import wire
from sse_pg.core.cursor import START, Cursor
from sse_pg.core.event import Event
from sse_pg.core.meter import Meter
from sse_pg.core.ring import Entry, Ring
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.group import Batch, Delivery, Group, Key
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.sweeper import Sweeper

Step = Literal["joined", "more", "behind", "ahead"]

#: Maximum number of streams that one delivery writes to at once; the rest is left to the sweeper.
MAX_DIRECT_WRITES = 256
#: Catch-ups cached for the next client with the same channels and cursor. Even a crowd has few different ones.
MAX_CACHED_CATCH_UPS = 64


class CatchUp(NamedTuple):
    """What a stream missed, or the first part of it, as it is sent."""

    framed: bytes
    reached: Cursor | None
    """The stream's cursor after a part; None if this is everything up to the hub's position."""
    events: int


class Hub:
    """Every stream of this process, and the position up to which the live streams were served."""

    def __init__(self, ring_events: int, ring_bytes: int, max_write: int = 262144) -> None:
        """``max_write``: bytes that are written to a stream before its client has to read some.

        An event that is larger is one write all the same.
        """
        self.max_write = max_write
        self._ring_size = (ring_events, ring_bytes)
        self.position = START
        self.ring = Ring(*self._ring_size, START)
        self.streams: set[Stream] = set()
        """All streams, including those that catch up."""
        self.meter = Meter()
        self.opened = 0
        self.closed: Counter[EndReason] = Counter()
        """Streams that have ended, by reason."""
        self.replayed = 0
        """Events sent to streams from the ring."""
        self.gap_notices: Counter[str] = Counter()
        """Gap events sent, by reason."""
        self._bytes_of_closed = 0
        self.epochs: list[tuple[int, int]] = []
        """Pairs of ids. A cursor whose id lies between the two belongs to a log that was lost."""
        self._groups: dict[Key, Group] = {}
        self._by_channel: dict[str, set[Group]] = {}
        self._catch_ups: dict[tuple[Key, Cursor], CatchUp] = {}
        self.max_direct = MAX_DIRECT_WRITES
        self.sweeper = Sweeper(self._write_missing, self._swept)
        self.bring_up: Callable[[Stream], None] = _nobody
        """Lets a suspended stream catch up from its cursor and join again; set by the part that opens streams."""

    def begin(self, position: Cursor) -> None:
        """Start at a position, with an empty ring."""
        self.position = position
        self.ring = Ring(*self._ring_size, position)
        self._catch_ups.clear()

    def restart(self, position: Cursor) -> None:
        """Go on in another log: send every stream a gap event, and let it go on at ``position``."""
        self._finish_sweeps()
        before = self.position
        self.begin(position)
        for stream in [stream for stream in self.streams if stream.greeted]:
            after = before if stream.live else stream.cursor & before
            stream.cursor = position
            self._write_gap(stream, "unknown", after)

    def expire(self, position: Cursor) -> None:
        """Skip ids that were purged before this server read them: send the live streams a gap event.

        The ring begins anew, so that a cursor from before the gap is served from the table. There, a stream that
        catches up, now or later, finds out what was purged.
        """
        self._finish_sweeps()
        before = self.position
        self.begin(position)
        for stream in [stream for stream in self.streams if stream.live]:
            self._write_gap(stream, "expired", before)

    def abandon(self, position: Cursor) -> None:
        """Go on at a position after a delivery that failed: which streams were sent what is uncertain.

        The live streams end, and their clients resume from their own cursors. The ring begins anew, so that they are
        served from the table.
        """
        self.begin(position)
        for group in self._groups.values():
            group.collected = []
        for stream in [stream for stream in self.streams if stream.live]:
            stream.end(EndReason.ERROR)

    def _finish_sweeps(self) -> None:
        """Write to each live stream what a sweep still owes it. A gap event that follows must come after that."""
        now = time.monotonic()
        for group in list(self._groups.values()):
            if group.batches:
                for stream in list(group.streams):
                    self._write_missing(group, stream, now)

    def _write_gap(self, stream: Stream, reason: str, after: Cursor) -> None:
        stream.write_position(wire.gap(reason, after.text, self.position), self.position, time.monotonic())
        self.gap_notices[reason] += 1

    def deliver(self, released: Sequence[tuple[Event, Cursor]], position: Cursor) -> None:
        """Hand events on to the live streams of their channels: at once to a few, the rest by the sweeper.

        From here on the ring and the position have them, for streams that join.
        """
        touched: list[Group] = []
        for event, cursor in released:
            entry = self.ring.add(event, cursor)
            for group in self._by_channel.get(event.channel, ()):
                if not group.collected:
                    touched.append(group)
                group.collected.append(entry.frame(group.envelope))
        before = self.position
        if position is not before:
            self.position = position
            self._catch_ups.clear()
        if not released:
            return
        source = Delivery(released)
        now = time.monotonic()
        left = self.max_direct
        for group in touched:
            data, events = group.take()
            if not group.batches and len(group.streams) <= left and (len(data) <= self.max_write or events == 1):
                left -= len(group.streams)
                source.deliveries += events * len(group.streams)
                framed = wire.chunk(data) if group.chunked else data
                for stream in group.streams:
                    stream.push(framed, now)
                    stream.sent_position = position
                    stream.sent_position_at = now
            else:
                if not group.batches:
                    self.sweeper.add(group)
                source.groups += 1
                group.append(Batch(data, events, before, position, source))
        if not source.groups:
            self.meter.batch(released, source.deliveries, time.time())

    def _write_missing(self, group: Group, stream: Stream, now: float) -> None:
        """Bring a live stream of a group up to date, or let it catch up if that is more than one write."""
        missing = group.missing(stream)
        if missing is None:
            return
        if len(missing.data) > self.max_write and missing.events > 1:
            # In one write each stream would buffer all of it. They read it from the ring, at their own speed.
            self.suspend(stream)
            self.bring_up(stream)
            return
        stream.push(missing.data, now)
        stream.batch = group.number
        stream.sent_position, stream.sent_position_at = missing.position, now
        group.batches[-1].source.deliveries += missing.events

    def _swept(self, group: Group, number: int) -> None:
        """Forget what all streams of a group have, and count events that are now written to every stream."""
        for batch in group.drop(number):
            source = batch.source
            source.groups -= 1
            if not source.groups:
                self.meter.batch(source.released, source.deliveries, time.time())

    def last_certain(self, cursor: Cursor) -> Cursor:
        """Return the cursor or, if it belongs to a log that was lost, the part of it that belongs to this log."""
        for settled_to, starts_at in self.epochs:
            if settled_to < cursor.high < starts_at:
                return cursor.clip(settled_to)
        return cursor

    def add(self, stream: Stream) -> int:
        """Add a stream that has opened, and return its number. It catches up from its cursor and then joins."""
        self.streams.add(stream)
        self.opened += 1
        return self.opened

    @property
    def sent_bytes(self) -> int:
        """Bytes sent to all streams, including those that have ended. This looks at every open stream."""
        return self._bytes_of_closed + sum(stream.sent_bytes for stream in self.streams)

    @property
    def group_sizes(self) -> list[int]:
        """The number of streams in each group."""
        return [len(group.streams) for group in self._groups.values()]

    def join(self, stream: Stream) -> Step:
        """Bring a stream up to date from the ring and make it live, in one step between awaits.

        "joined": the stream is live. "more": the ring has more for it than should be buffered at once; wait until the
        client has read, and call again. "behind": the ring does not reach back to its cursor. "ahead": its cursor has
        ids that this server has not handed on.
        """
        cursor = stream.cursor
        if not self.position.covers(cursor):
            return "ahead"
        key = _key(stream)
        catch_up = self._catch_ups.get((key, cursor))
        if catch_up is None:
            missed = self.ring.since(cursor, stream.channels)
            if missed is None:
                return "behind"
            catch_up = _catch_up(missed, stream, self.max_write)
            if len(self._catch_ups) >= MAX_CACHED_CATCH_UPS:
                self._catch_ups.clear()
            self._catch_ups[key, cursor] = catch_up
        now = time.monotonic()
        if catch_up.framed:
            stream.push(catch_up.framed, now)
            stream.replayed += catch_up.events
            self.replayed += catch_up.events
        if catch_up.reached is not None:
            stream.cursor = catch_up.reached
            return "more"
        stream.sent_position, stream.sent_position_at = self.position, now
        stream.live = True
        self._enter(stream, key)
        return "joined"

    def lacks(self, stream: Stream) -> bool:
        """Return whether a sweep has still to bring a live stream something."""
        return stream.batch != self._groups[_key(stream)].number

    def leave(self, stream: Stream, reason: EndReason = EndReason.CLIENT) -> None:
        """Remove a stream that has ended, whether or not it was added."""
        if stream in self.streams:
            self.streams.discard(stream)
            self.closed[reason] += 1
            self._bytes_of_closed += stream.sent_bytes
        if stream.live:
            self._exit(stream)

    def suspend(self, stream: Stream) -> None:
        """Stop delivering to a stream. If it was live, it can catch up from what it was offered."""
        if stream.live:
            missing = self._groups[_key(stream)].missing(stream)
            self._exit(stream)
            stream.live = False
            stream.cursor = self.position if missing is None else missing.before

    def change_channels(self, stream: Stream, channels: frozenset[str]) -> None:
        """Let a stream receive other channels from here on."""
        if channels == stream.channels:
            return
        if stream.live:
            self._write_missing(self._groups[_key(stream)], stream, time.monotonic())
        live = stream.live
        if live:
            self._exit(stream)
        stream.channels = channels
        if live:
            self._enter(stream, _key(stream))

    def _enter(self, stream: Stream, key: Key) -> None:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
            for channel in stream.channels:
                self._by_channel.setdefault(channel, set()).add(group)
        group.streams.add(stream)
        stream.group, stream.batch = group, group.number
        stream.events -= group.events
        stream.channels = group.channels  # the streams of a group share one set

    def _exit(self, stream: Stream) -> None:
        group, stream.group = self._groups[_key(stream)], None
        missing = group.missing(stream)
        group.streams.discard(stream)
        stream.events += group.events - (missing.events if missing else 0)
        if group.streams:
            return
        del self._groups[group.key]
        for channel in group.channels:
            groups = self._by_channel[channel]
            groups.discard(group)
            if not groups:
                del self._by_channel[channel]


def _nobody(_stream: Stream) -> None:
    """Let nobody bring a stream up."""


def _key(stream: Stream) -> Key:
    return stream.channels, stream.envelope, stream.chunked


def _catch_up(missed: list[Entry], stream: Stream, max_write: int) -> CatchUp:
    """Return what a stream missed, or the first part of it: of at most ``max_write`` bytes or one event."""
    cursor, size = stream.cursor, 0
    blocks: list[bytes] = []
    for entry in missed:
        after = cursor | entry.cursor
        # If the client comes from another server, it may have been offered ids that were gaps here at this entry.
        block = (
            entry.frame(stream.envelope)
            if after == entry.cursor
            else wire.frame(entry.event, after, envelope=stream.envelope)
        )
        if blocks and size + len(block) > max_write:
            break
        cursor = after
        size += len(block)
        blocks.append(block)
    data = b"".join(blocks)
    framed = wire.chunk(data) if data and stream.chunked else data
    return CatchUp(framed, None if len(blocks) == len(missed) else cursor, len(blocks))
