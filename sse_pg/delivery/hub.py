"""Every stream of the process, the most recent events, and the position up to which events were handed on.

Nothing here awaits, so that taking a stream in and writing to it cannot happen in the middle of each other.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import chain, islice
from typing import Literal, NamedTuple

from sse_pg.core import wire
from sse_pg.core.cursor import START, Cursor
from sse_pg.core.epoch import Epoch, certain_part
from sse_pg.core.event import AnyEvent, Event
from sse_pg.core.followed import Followed
from sse_pg.core.meter import Meter
from sse_pg.core.ring import Entry, Ring
from sse_pg.delivery.batch import Delivery
from sse_pg.delivery.end_reason import EndReason
from sse_pg.delivery.ends import Ends
from sse_pg.delivery.fan_out import FanOut
from sse_pg.delivery.group import Key
from sse_pg.delivery.ledger import Ledger
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.sweeper import Sweeper

Step = Literal["joined", "more", "behind", "ahead"]

#: Catch-ups cached for the next client with the same channels and cursor, and their bytes. Even a crowd has few
#: different ones.
MAX_CACHED_CATCH_UPS = 64
MAX_CACHED_BYTES = 4_194_304


class LogChange(NamedTuple):
    """What a server knew of a log when another one took its place."""

    end: Cursor
    """Up to where it had handed on the log."""
    kept: Cursor | None
    """Which of these ids are those of the new log too; None if none of them is."""
    start: Cursor
    """From where it reads the new log."""


class CatchUp(NamedTuple):
    """What a stream missed, or the first part of it, as it is sent."""

    framed: bytes
    reached: Cursor | None
    """The stream's cursor after a part; None if this is everything up to the hub's position."""
    events: int
    told: Cursor
    """The cursor of its last block."""


class Hub:
    """Every stream of this process, and the position up to which the live streams were served."""

    def __init__(self, ring_events: int, ring_bytes: int, max_write: int = 262144, max_unread: int = 268435456) -> None:
        """``max_write``: bytes that are written to a stream before its client has to read some.

        An event that is larger is one write all the same. ``max_unread``: bytes that all clients together may have
        unread.
        """
        self._ring_size = (ring_events, ring_bytes)
        self.position = START
        self.ring = Ring(*self._ring_size, START)
        self.streams: set[Stream] = set()
        """All streams, including those that catch up."""
        self.followed = Followed()
        """Their channels, and those of streams that ended a short time ago."""
        self.meter = Meter()
        self.ledger = Ledger(max_unread)
        self.opened = 0
        self.closed: Counter[EndReason] = Counter()
        """Streams that have ended, by reason."""
        self.replayed = 0
        """Events sent to streams from the ring."""
        self.gap_notices: Counter[str] = Counter()
        """Gap events sent, by reason."""
        self.epochs: list[Epoch] = []
        """Where logs ended, ascending."""
        self.ends = Ends()
        """What streams with ``until=end`` wait for."""
        self._log_changes: list[LogChange] = []
        """What became of the logs that this server read before this one."""
        self._catch_ups: dict[tuple[Key, Cursor], CatchUp] = {}
        self._cached_bytes = 0
        self.sweeper = Sweeper(self._slices)
        self.fan_out = FanOut(
            max_write, self.meter, self.gap_notices, self.ledger, self.sweeper.wake, self._fall_behind
        )
        self.bring_up: Callable[[Stream], None] = _nobody
        """Lets a suspended stream catch up from its cursor and join again; set by the part that opens streams."""

    @property
    def log(self) -> int:
        """The number of the log that this server reads now, among those that it has read."""
        return len(self._log_changes)

    def begin(self, position: Cursor) -> None:
        """Start at a position, with an empty ring."""
        self.position = position
        self.ring = Ring(*self._ring_size, position)
        self._forget_catch_ups()
        self.ends.forget()

    def restart(self, position: Cursor) -> None:
        """Go on in another log at ``position``. Each stream is sent a gap event: live ones after what they lack.

        A stream that catches up gets it when it goes on; its cursor belongs to the old log until then.
        """
        self._change_log(LogChange(self.position, None, position))

    def go_back(self, position: Cursor) -> None:
        """Go on in a log that follows this one, and that lacks what ``position`` lacks.

        Each stream that was offered some of that is sent a gap event, and goes on without it. So is each live stream.
        """
        self._change_log(LogChange(self.position, position, position))

    def _change_log(self, change: LogChange) -> None:
        delivery = self._gap("unknown", change.start)
        self._log_changes.append(change)
        self.begin(change.start)
        self.fan_out.hand_on(delivery)

    def expire(self, position: Cursor) -> None:
        """Skip ids that were purged before this server read them: send the live streams a gap event.

        The ring begins anew, so that a cursor from before the gap is served from the table. There, a stream that
        catches up, now or later, finds out what was purged.
        """
        delivery = self._gap("expired", position)
        self.begin(position)
        self.fan_out.hand_on(delivery)

    def erase(self, ids: Set[int]) -> None:
        """Take events out of everything that is kept for streams. What was not sent yet is made anew without them."""
        self.ring.erase(ids)
        self._catch_ups.clear()
        self.meter.forget(ids)
        self.fan_out.erase(ids)

    def expire_channels(self, up_to: Mapping[str, int]) -> list[Stream]:
        """Note that single channels are no longer retained up to an id, although this server has not read that far.

        Returns their live streams, which are suspended. Bring them up when the position has passed these ids: they find
        out from the table what they have lost.
        """
        for channel, last in up_to.items():
            self.ring.expire(channel, last)
        self._catch_ups.clear()
        concerned = [stream for stream in self.streams if stream.live and not stream.channels.isdisjoint(up_to)]
        for stream in concerned:
            self.suspend(stream)
        return concerned

    def abandon(self, position: Cursor) -> None:
        """Go on at a position after a delivery that failed: which streams were sent what is uncertain.

        The live streams end, and their clients resume from their own cursors. The ring begins anew, so that they are
        served from the table.
        """
        self.begin(position)
        self.fan_out.forget()
        for stream in [stream for stream in self.streams if stream.live]:
            stream.end(EndReason.ERROR)

    def _gap(self, reason: str, position: Cursor) -> Delivery:
        block = wire.gap(reason, self.position.text, position)
        number = self.fan_out.next_number()
        return Delivery(number, self.log, self.position, position, time.monotonic(), gap=(reason, block))

    def deliver(self, released: Sequence[tuple[AnyEvent, Cursor]], position: Cursor) -> None:
        """Hand events on to the live streams of their channels: at once if these are few, else by the sweeper.

        From here on the ring and the position have them, for streams that join. Events may be among them whose payload
        was not read, because no stream had their channel when the read began. Streams that have it by now are suspended
        first, and get these events from the table.
        """
        before = self.position
        late: list[Stream] = []
        entries: dict[str, list[Entry]] = {}
        add = self.ring.add
        try:
            for event, cursor in released:
                if isinstance(event, Event):
                    entry = add(event, cursor)
                    if event.channel in entries:
                        entries[event.channel].append(entry)
                    else:
                        entries[event.channel] = [entry]
                    continue
                self.ring.pass_over(event, cursor)
                for stream in self.fan_out.streams_of(event.channel):
                    self.suspend(stream)
                    late.append(stream)
            if position is not before:
                self.position = position
                self._forget_catch_ups()
            if released:
                number = self.fan_out.next_number()
                self.fan_out.hand_on(Delivery(number, self.log, before, position, time.monotonic(), released, entries))
            if self.ends:
                self._end_finished(self.ends.note(released))
        finally:
            for stream in late:
                self.bring_up(stream)

    def _end_finished(self, concerned: Set[Stream]) -> None:
        """End the streams whose channels are finished now: a few at once, and others when check_end() comes to them."""
        for stream in list(islice(chain(concerned, self.ends.finished - concerned), self.fan_out.max_direct)):
            self.end_if_finished(stream)

    def end_if_finished(self, stream: Stream) -> None:
        """End a live stream if each of its channels is finished, and no id can come any more below the last end.

        Its client then has a cursor without such gaps: that of the end event, or it is sent a newer position.
        """
        last = self.ends.last_of(stream.channels)
        if last is None or not _can_end(stream):
            self.ends.finished.discard(stream)
            return
        if self.position.missing_up_to(last.id):
            self.ends.finished.add(stream)
            return
        self.fan_out.write_missing(stream)
        if not _can_end(stream):
            return
        told = stream.told if stream.told.offered(last.id) else last.cursor
        if told is None or told.missing_up_to(last.id):
            stream.write_position(wire.position(self.position), self.position, time.monotonic())
        stream.end(EndReason.FINISHED)

    def check_end(self, stream: Stream) -> None:
        """Do what is left to do for a live stream with ``until=end``, from time to time."""
        if self.ends.unknown(stream.channels):
            self._fall_behind(stream)  # whoever brings it up looks up the last events again
        else:
            self.end_if_finished(stream)

    def _slices(self) -> Iterator[float]:
        return self.fan_out.slices()

    def _fall_behind(self, stream: Stream) -> None:
        self.suspend(stream)
        self.bring_up(stream)

    def last_certain(self, cursor: Cursor) -> Cursor:
        """Return the cursor or, if it belongs to a log that was lost, the part of it that belongs to this log."""
        return certain_part(cursor, self.epochs)

    def add(self, stream: Stream) -> None:
        """Open a stream. It catches up from its cursor and then joins."""
        self.streams.add(stream)
        self.followed.add(stream.channels)
        self.opened += 1
        stream.open(self.opened, self.ledger)

    def join(self, stream: Stream) -> Step:
        """Bring a stream up to date from the ring and make it live, in one step between awaits.

        "joined": the stream is live. "more": the ring has more for it than should be buffered at once; wait until the
        client has read, and call again. "behind": the ring does not reach back to its cursor. "ahead": its cursor has
        ids that this server has not handed on.
        """
        if stream.log != self.log:
            self._change_logs(stream)
        cursor = stream.cursor
        if not self.position.covers(cursor):
            return "ahead"
        key = (stream.channels, stream.envelope, stream.framing)
        catch_up = self._catch_ups.get((key, cursor))
        if catch_up is None:
            missed = self.ring.since(cursor, stream.channels)
            if missed is None:
                return "behind"
            catch_up = _catch_up(missed, stream, self.fan_out.max_write)
            if len(self._catch_ups) >= MAX_CACHED_CATCH_UPS or self._cached_bytes > MAX_CACHED_BYTES:
                self._forget_catch_ups()
            self._catch_ups[key, cursor] = catch_up
            self._cached_bytes += len(catch_up.framed)
        now = time.monotonic()
        if catch_up.framed:
            stream.push(catch_up.framed, now)
            stream.told = catch_up.told
            stream.replayed += catch_up.events
            self.replayed += catch_up.events
        if catch_up.reached is not None:
            stream.cursor = catch_up.reached
            return "more"
        self.fan_out.enter(stream, self.position, now)
        return "joined"

    def _forget_catch_ups(self) -> None:
        self._catch_ups.clear()
        self._cached_bytes = 0

    def _change_logs(self, stream: Stream) -> None:
        """Bring the cursor of a stream from an earlier log to this one. If it was offered what is lost, say so."""
        after = stream.cursor & self._log_changes[stream.log].end
        cursor = after
        for change in self._log_changes[stream.log :]:
            cursor = change.start if change.kept is None else cursor & change.kept
        stream.log = self.log
        if cursor == after:
            return
        stream.cursor = cursor
        block = wire.gap("unknown", after.text, stream.cursor)
        stream.write_position(block, stream.cursor, time.monotonic())
        self.gap_notices["unknown"] += 1

    def lacks(self, stream: Stream) -> bool:
        """Return whether a sweep has still to bring a live stream something."""
        return self.fan_out.missing(stream) is not None

    def leave(self, stream: Stream, reason: EndReason = EndReason.CLIENT) -> None:
        """Remove a stream that has ended, whether or not it was added."""
        if stream in self.streams:
            self.streams.discard(stream)
            self.followed.discard(stream.channels, time.monotonic())
            self.closed[reason] += 1
        if stream.live:
            self.fan_out.exit(stream)

    def suspend(self, stream: Stream) -> None:
        """Stop delivering to a stream. If it was live, it can catch up from what it was offered."""
        if stream.live:
            missing = self.fan_out.exit(stream)
            stream.cursor, stream.log = self.position, self.log
            if missing is not None:
                first = missing.deliveries[0]
                stream.cursor, stream.log = first.before, first.log

    def change_channels(self, stream: Stream, channels: frozenset[str]) -> None:
        """Let a stream receive other channels from here on."""
        if channels == stream.channels:
            return
        if stream in self.streams:
            self.followed.add(channels)
            self.followed.discard(stream.channels, time.monotonic())
        if stream.live:
            self.fan_out.write_missing(stream)
        if stream.live:
            self.fan_out.exit(stream)
            stream.channels = channels
            self.fan_out.enter(stream, stream.mark.position, stream.mark.at)
        else:
            stream.channels = channels
        if stream.until_end:
            self.ends.watch(stream)

    def deny(self, stream: Stream, channels: frozenset[str]) -> None:
        """Let a stream go on without some of its channels, and say so, or end it if it has no others.

        It must not be live, so that its cursor is what its client was offered.
        """
        denied = channels & stream.channels
        if not denied or stream.reason is not None:
            return
        if denied == stream.channels or stream.denied is None:
            stream.end(EndReason.REVOKED)
            return
        stream.denied |= denied
        self.change_channels(stream, stream.channels - denied)
        if stream.greeted:  # otherwise its first blocks say it
            stream.write_position(wire.denied(denied, stream.cursor), stream.cursor, time.monotonic())


def _can_end(stream: Stream) -> bool:
    """Return whether a stream is live, so that its client has everything, or is about to."""
    return stream.live and stream.reason is None


def _nobody(_stream: Stream) -> None:
    """Let nobody bring a stream up."""


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
    framed = stream.framing.batch(data) if data else data
    return CatchUp(framed, None if len(blocks) == len(missed) else cursor, len(blocks), cursor)
