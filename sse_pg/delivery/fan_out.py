"""The groups of live streams, and the writes to them: at once to a few streams, to many in slices.

A delivery that concerns many groups or many streams stays pending until a sweep has been through all of them. The mark
of a stream says up to which delivery it was sent what there was for it. So at any moment a stream lacks exactly what
the pending deliveries above its mark have for its group.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Set

from sse_pg.core.cursor import Cursor
from sse_pg.core.meter import Meter
from sse_pg.delivery.batch import Batch, Delivery
from sse_pg.delivery.group import Group, Key
from sse_pg.delivery.ledger import Ledger
from sse_pg.delivery.stream import Mark, Stream
from sse_pg.delivery.turns import SLICE_S

#: Maximum number of streams that one delivery writes to at once; the rest is left to the sweep.
MAX_DIRECT_WRITES = 256
#: Streams between two readings of the clock.
STREAMS_PER_CLOCK_READ = 16
#: What is cached of what streams lack that lack several batches. Each of them may have as many bytes as one write.
MAX_CACHED_JOINS = 16
#: A sweep that took this long is followed by a pause: of MIN_REST_S ...
MIN_SWEEP_S = 0.002
MIN_REST_S = 0.005
#: ... and this share of the time that it took, up to MAX_REST_S.
REST_SHARE = 0.25
MAX_REST_S = 0.02


class FanOut:
    """Knows which live streams get what, and what each of them was not sent yet. Nothing here awaits."""

    def __init__(
        self,
        max_write: int,
        meter: Meter,
        gap_notices: Counter[str],
        ledger: Ledger,
        wake: Callable[[], None],
        fall_behind: Callable[[Stream], None],
    ) -> None:
        """``wake`` is called when there is something for ``slices`` to do.

        ``fall_behind`` is called with a stream that lacks more than one write may have; it has to leave its group.
        """
        self.max_write = max_write
        self.max_direct = MAX_DIRECT_WRITES
        self._meter = meter
        self._gap_notices = gap_notices
        self._ledger = ledger
        self._wake = wake
        self._fall_behind = fall_behind
        self._number = 0
        self._groups: dict[Key, Group] = {}
        self._by_channel: dict[str, set[Group]] = {}
        self._pending: deque[Delivery] = deque()
        """Deliveries that a sweep has not been through, the oldest first."""
        self._joined: dict[tuple[Batch, ...], Batch] = {}
        """What streams get that lack several batches, by these; until there are others to lack."""

    @property
    def group_sizes(self) -> list[int]:
        """The number of streams in each group."""
        return [len(group.streams) for group in self._groups.values()]

    @property
    def backlog(self) -> int:
        """The length of the payloads and headers of all events that a sweep has not brought to every stream."""
        return sum(event.chars for delivery in self._pending for event, _ in delivery.released)

    def next_number(self) -> int:
        """Return the number of a new delivery."""
        self._number += 1
        return self._number

    # ------------------------------------------------------------ streams

    def streams_of(self, channel: str) -> list[Stream]:
        """Return the live streams that have a channel."""
        return [stream for group in self._by_channel.get(channel, ()) for stream in group.streams]

    def enter(self, stream: Stream, position: Cursor, at: float) -> None:
        """Make a stream live that has everything up to now; it was sent ``position`` at a time."""
        key = (stream.channels, stream.envelope, stream.framing)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key, self._number)
            for channel in stream.channels:
                self._by_channel.setdefault(channel, set()).add(group)
        group.streams.add(stream)
        stream.group, stream.live = group, True
        stream.channels = group.channels  # the streams of a group share one set
        stream.mark = Mark(self._number, position, at)

    def exit(self, stream: Stream) -> Batch | None:
        """Take a live stream out of its group, and return what it lacks."""
        missing = self.missing(stream)
        group = stream.group
        assert isinstance(group, Group)
        stream.group, stream.live = None, False
        group.streams.discard(stream)
        if group.streams:
            return missing
        del self._groups[group.key]
        for channel in group.channels:
            groups = self._by_channel[channel]
            groups.discard(group)
            if not groups:
                del self._by_channel[channel]
        return missing

    def missing(self, stream: Stream) -> Batch | None:
        """Return what a live stream was not sent yet."""
        group = stream.group
        assert isinstance(group, Group)
        return self._missing(group, stream.mark.number)

    def write_missing(self, stream: Stream) -> None:
        """Send a live stream what it lacks now. If that is more than one write may have, it falls behind."""
        group = stream.group
        assert isinstance(group, Group)
        self._write(group, (stream,))

    # ------------------------------------------------------------ deliveries

    def hand_on(self, delivery: Delivery) -> None:
        """Write a delivery to its streams if they are few; otherwise leave it to the sweep."""
        self._pending.append(delivery)
        self._joined.clear()
        groups = self._few_groups(delivery)
        if groups is None:
            self._wake()
            return
        left, all_written = self.max_direct, True
        for group in groups:
            streams = [*group.streams]
            if len(streams) > left:
                all_written = False
                continue
            left -= len(streams)
            self._write(group, streams)
            group.reached = delivery.number
        if all_written:
            self._pending.pop()
            self._count(delivery)
        else:
            self._wake()

    def forget(self) -> None:
        """Forget the pending deliveries, because all live streams end."""
        self._joined.clear()
        while self._pending:
            self._pending.pop().forget_batches()

    def erase(self, ids: Set[int]) -> None:
        """Mark the pending deliveries that have one of these events: their bytes are not written any more."""
        self._joined.clear()
        for delivery in self._pending:
            delivery.erase(ids)

    def slices(self) -> Iterator[float]:
        """Write what is pending. Between two slices anything may happen to the streams, and deliveries may come.

        A delivery that comes while a group is swept joins the sweep: each stream gets everything that it lacks. Each
        pause comes with how many seconds it should last at least: 0 within a sweep. A pause after a sweep lets
        publishers get on, and the next sweep has more to write at once.
        """
        now = time.monotonic()
        until = now + SLICE_S
        unclocked = STREAMS_PER_CLOCK_READ  # streams, and groups that have nothing to do, since the clock was read
        while self._pending:
            delivery, began = self._pending[0], now
            for group in self._groups_of(delivery):
                number = self._number  # streams that enter later have everything up to it
                streams = [*group.streams] if group.reached < delivery.number else []
                for part in _parts(streams):
                    if unclocked >= STREAMS_PER_CLOCK_READ:
                        unclocked, now = 0, time.monotonic()
                        if now >= until:
                            yield 0.0
                            until = time.monotonic() + SLICE_S
                    unclocked += len(part) or 1
                    self._write(group, part)
                if streams:
                    group.reached = number
            if self._pending and self._pending[0] is delivery:  # not before: if something fails, it is swept again
                self._pending.popleft()
                self._joined.clear()
                self._count(delivery)
            now = time.monotonic()
            if now - began >= MIN_SWEEP_S:
                yield min(MAX_REST_S, MIN_REST_S + REST_SHARE * (now - began))
                now = time.monotonic()
                until = now + SLICE_S

    def _missing(self, group: Group, number: int) -> Batch | None:
        """Return what a stream of a group lacks that was sent everything up to a delivery."""
        pending = self._pending
        if len(pending) == 1:
            delivery = pending[0]
            return delivery.batch(group.channels, group.envelope) if delivery.number > number else None
        lacked = [
            batch
            for delivery in pending
            if delivery.number > number and (batch := delivery.batch(group.channels, group.envelope)) is not None
        ]
        if len(lacked) < 2:
            return lacked[0] if lacked else None
        key = tuple(lacked)
        joined = self._joined.get(key)
        if joined is None:
            if len(self._joined) >= MAX_CACHED_JOINS:
                self._joined.clear()
            joined = self._joined[key] = Batch.join(lacked)
        return joined

    def _write(self, group: Group, streams: Iterable[Stream]) -> None:
        """Send streams what they lack as members of a group.

        The loop is the price of a delivery, so it does what Stream.push does without a call.
        """
        since, missing, written = -1, None, 0
        data, size, events, mark, is_late = b"", 0, 0, None, False
        for stream in streams:
            if stream.group is not group:
                continue  # it has left in the meantime
            if stream.mark.number != since:
                if written and missing is not None:
                    self._note_written(missing, size * written, written)
                since, written = stream.mark.number, 0
                missing = self._missing(group, since)
                if missing is not None:
                    mark, events = missing.deliveries[-1].mark, missing.events
                    is_late = (missing.size > self.max_write and events > 1) or missing.has_erased
                    if not is_late:
                        data = missing.framed(group.framing)
                        size = len(data)
            if missing is None:
                continue
            if is_late:
                # In one write each stream would buffer all of it. They read it from the ring, at their own speed, and
                # the ring has no erased event.
                self._fall_behind(stream)
                continue
            assert mark is not None
            if stream.reason is None and not (stream.paused and stream.too_slow(size)):
                stream.transport.write(data)
                stream.sent_bytes += size
                stream.events += events
                written += 1
            stream.mark = mark
        if written and missing is not None:
            self._note_written(missing, size * written, written)

    def _note_written(self, batch: Batch, size: int, written: int) -> None:
        self._ledger.sent_bytes += size
        batch.deliveries[-1].deliveries += batch.events * written
        for delivery in batch.deliveries:
            if delivery.reason is not None:
                self._gap_notices[delivery.reason] += written

    def _few_groups(self, delivery: Delivery) -> Collection[Group] | None:
        """Return the groups that a delivery concerns, or None if that would take long."""
        if delivery.channels is None:
            return [*self._groups.values()] if len(self._groups) <= self.max_direct else None
        if len(delivery.channels) == 1:
            (channel,) = delivery.channels
            concerned = self._by_channel.get(channel, ())
            return [*concerned] if len(concerned) <= self.max_direct else None
        groups: set[Group] = set()
        for channel in delivery.channels:
            found = self._by_channel.get(channel)
            if found is not None:
                if len(found) > self.max_direct:
                    return None
                groups |= found
                if len(groups) > self.max_direct:
                    return None
        return groups

    def _groups_of(self, delivery: Delivery) -> Iterator[Group]:
        """Go through the groups that a delivery concerns. Groups that are made meanwhile have it."""
        if delivery.channels is None:
            yield from [*self._groups.values()]
            return
        for channel in delivery.channels:
            yield from [*self._by_channel.get(channel, ())]

    def _count(self, delivery: Delivery) -> None:
        delivery.forget_batches()
        if delivery.released:
            self._meter.batch(delivery.released, delivery.deliveries, time.time())


def _parts(streams: list[Stream]) -> Iterable[list[Stream]]:
    """Cut a list into what is written between two readings of the clock. A list that is empty is one part."""
    if len(streams) <= STREAMS_PER_CLOCK_READ:
        return (streams,)
    starts = range(0, len(streams), STREAMS_PER_CLOCK_READ)
    return [streams[start : start + STREAMS_PER_CLOCK_READ] for start in starts]
