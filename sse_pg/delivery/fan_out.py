"""The groups of live streams, and the writes to them: at once to a few streams, to many in slices.

A delivery that concerns many groups or many streams stays pending until a sweep has been through all of them. A group
takes its batches from the pending deliveries no later than when somebody looks at it. So the cost of a delivery does
not depend on the number of groups, and what a stream lacks is exact at any moment.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Set

from sse_pg.core.cursor import Cursor
from sse_pg.core.meter import Meter
from sse_pg.delivery.batch import Delivery, Missing
from sse_pg.delivery.group import Group, Key
from sse_pg.delivery.ledger import Ledger
from sse_pg.delivery.stream import Mark, Stream
from sse_pg.delivery.turns import SLICE_S

#: Maximum number of streams that one delivery writes to at once; the rest is left to the sweep.
MAX_DIRECT_WRITES = 256
#: Streams between two readings of the clock.
STREAMS_PER_CLOCK_READ = 16
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
        self._collect(group)
        group.streams.add(stream)
        stream.group, stream.live = group, True
        stream.events -= group.events
        stream.channels = group.channels  # the streams of a group share one set
        stream.mark = Mark(self._number, position, at)

    def exit(self, stream: Stream) -> Missing | None:
        """Take a live stream out of its group, and return what it lacks."""
        missing = self.missing(stream)
        group = stream.group
        assert isinstance(group, Group)
        stream.group, stream.live = None, False
        group.streams.discard(stream)
        stream.events += group.events - (missing.events if missing else 0)
        if group.streams:
            return missing
        del self._groups[group.key]
        for channel in group.channels:
            groups = self._by_channel[channel]
            groups.discard(group)
            if not groups:
                del self._by_channel[channel]
        return missing

    def missing(self, stream: Stream) -> Missing | None:
        """Return what a live stream was not sent yet."""
        group = stream.group
        assert isinstance(group, Group)
        self._collect(group)
        return group.missing(stream.mark.number, time.monotonic())

    def write_missing(self, stream: Stream) -> None:
        """Send a live stream what it lacks now. If that is more than one write may have, it falls behind."""
        group = stream.group
        assert isinstance(group, Group)
        self._collect(group)
        self._write(group, (stream,), time.monotonic())

    # ------------------------------------------------------------ deliveries

    def hand_on(self, delivery: Delivery) -> None:
        """Write a delivery to its streams if they are few; otherwise leave it to the sweep."""
        self._pending.append(delivery)
        groups = self._few_groups(delivery)
        if groups is None:
            self._wake()
            return
        now, left, all_written = time.monotonic(), self.max_direct, True
        for group in groups:
            if len(group.streams) > left:
                all_written = False
                continue
            left -= len(group.streams)
            self._collect(group)
            self._write(group, [*group.streams], now)
            group.drop(group.number)
        if all_written:
            self._pending.pop()
            self._count(delivery)
        else:
            self._wake()

    def forget(self) -> None:
        """Forget the pending deliveries, because all live streams end."""
        while self._pending:
            self._pending.pop().forget_batches()

    def erase(self, ids: Set[int]) -> None:
        """Mark the pending deliveries that have one of these events: their bytes are not written any more."""
        for delivery in self._pending:
            delivery.erased |= any(event.id in ids for event, _ in delivery.released)

    def slices(self) -> Iterator[float]:
        """Write what is pending. Between two slices anything may happen to the streams, and deliveries may come.

        A delivery that comes while a group is swept joins the sweep: each stream gets everything that it lacks. Each
        pause comes with how many seconds it should last at least: 0 within a sweep. A pause after a sweep lets
        publishers get on, and the next sweep has more to write at once.
        """
        now = time.monotonic()
        until = now + SLICE_S
        while self._pending:
            delivery, began = self._pending[0], now
            for group in self._groups_of(delivery):
                self._collect(group)
                number = group.number  # streams that enter later have everything up to it
                streams = () if group.has(delivery.number) else [*group.streams]
                for start in range(0, len(streams) or 1, STREAMS_PER_CLOCK_READ):
                    now = time.monotonic()
                    if now >= until:
                        yield 0.0
                        now = time.monotonic()
                        until = now + SLICE_S
                        self._collect(group)
                    self._write(group, streams[start : start + STREAMS_PER_CLOCK_READ], now)
                if streams:
                    group.drop(number)
            if self._pending and self._pending[0] is delivery:  # not before: if something fails, it is swept again
                self._pending.popleft()
                self._count(delivery)
            now = time.monotonic()
            if now - began >= MIN_SWEEP_S:
                yield min(MAX_REST_S, MIN_REST_S + REST_SHARE * (now - began))
                now = time.monotonic()
                until = now + SLICE_S

    def _collect(self, group: Group) -> None:
        """Give a group its batches of the pending deliveries that it has not seen."""
        if group.seen == self._number:
            return
        batches = []
        for delivery in reversed(self._pending):
            if delivery.number <= group.seen:
                break
            batch = delivery.batch(group.channels, group.envelope)
            if batch is not None:
                batches.append(batch)
        group.seen = self._number
        if batches:
            batches.reverse()
            group.append(batches)

    def _write(self, group: Group, streams: Iterable[Stream], now: float) -> None:
        """Send streams what they lack as members of a group that has collected its batches.

        The loop is the price of a delivery, so it does what Stream.push does without a call.
        """
        since, missing, written = -1, None, 0
        data, size, mark, is_late = b"", 0, None, False
        for stream in streams:
            if stream.group is not group:
                continue  # it has left in the meantime
            if stream.mark.number != since:
                self._note_written(missing, written)
                since, written = stream.mark.number, 0
                missing = group.missing(since, now)
                if missing is not None:
                    size, mark = missing.size, missing.mark
                    is_late = (size > self.max_write and missing.events > 1) or missing.has_erased
                    if not is_late:
                        data = missing.data
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
                written += 1
            stream.mark = mark
        self._note_written(missing, written)

    def _note_written(self, missing: Missing | None, written: int) -> None:
        if missing is not None and written:
            self._ledger.sent_bytes += len(missing.data) * written
            missing.delivery.deliveries += missing.events * written
            for reason in missing.reasons:
                self._gap_notices[reason] += written

    def _few_groups(self, delivery: Delivery) -> Collection[Group] | None:
        """Return the groups that a delivery concerns, or None if that would take long."""
        if delivery.channels is None:
            return [*self._groups.values()] if len(self._groups) <= self.max_direct else None
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
