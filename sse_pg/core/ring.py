"""The most recent events in memory, so that many clients that reconnect at once are served without the database."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Set
from typing import NamedTuple

from sse_pg.core import wire
from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import Envelope
from sse_pg.core.event import Event, Unfollowed

#: Bytes of the objects of an event, without its payload, its headers and its blocks.
ENTRY_BYTES = 600
#: Bytes of the objects of a note that says up to where a channel is not here, without the channel's name ...
NOTE_BYTES = 400
#: ... and of all these notes together: some ten thousand channels.
MAX_NOTES_BYTES = 4_194_304


class Held:
    """The bytes that the entries of a ring take."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Entry:
    """An event that was handed on, the position after it, and its bytes, each form made once."""

    __slots__ = ("_enveloped", "_plain", "cursor", "event", "held", "size", "turn")

    def __init__(self, event: Event, cursor: Cursor, turn: int, held: Held) -> None:
        self.event = event
        self.cursor = cursor
        self.turn = turn
        # A text has up to four bytes a character in memory.
        self.size = ENTRY_BYTES + sys.getsizeof(event.payload)
        if event.headers is not None:
            self.size += sys.getsizeof(event.headers)
        self.held: Held | None = held
        """Where its bytes are counted while the ring has it."""
        held.bytes += self.size
        self._plain: bytes | None = None
        self._enveloped: dict[Envelope, bytes] | None = None

    def frame(self, envelope: Envelope | None) -> bytes:
        """Return the event's block for the wire, with the whole event as its data if there is an envelope."""
        if envelope is not None:
            if self._enveloped is None:
                self._enveloped = {}
            made = self._enveloped.get(envelope)
            if made is None:
                made = self._enveloped[envelope] = wire.frame(self.event, self.cursor, envelope=envelope)
                self._grow(len(made))
            return made
        if self._plain is None:
            self._plain = wire.frame(self.event, self.cursor)
            self._grow(len(self._plain))
        return self._plain

    def _grow(self, size: int) -> None:
        self.size += size
        if self.held is not None:
            self.held.bytes += size


class Note(NamedTuple):
    """The last event of a channel that is not here, because it was read without its payload."""

    turn: int
    cursor: Cursor
    """The position after it. Who was offered this lacks no event of the channel that is not here."""


class Ring:
    """The most recent events, in the order in which they were handed on, limited by their number and their bytes.

    Of channels that nobody followed when they were read, it has only a note of the last event. Bytes count when they
    are made: the blocks of an event may be made after it was added. The limit holds at each add.
    """

    def __init__(self, max_events: int, max_bytes: int, base: Cursor) -> None:
        self.base = base
        """The position before the oldest entry. A reader that was offered it can catch up from the ring."""
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._held = Held()
        self._turn = 0
        self._all: deque[Entry] = deque()
        self._by_channel: dict[str, deque[Entry]] = {}
        self._notes: OrderedDict[str, Note] = OrderedDict()
        """By channel, what is not here, in the order of the turns."""
        self._notes_bytes = 0
        self._expired: dict[str, int] = {}
        """By channel, up to which id events were taken out because the channel's retention has ended for them."""

    def __len__(self) -> int:
        return len(self._all)

    def add(self, event: Event, cursor: Cursor) -> Entry:
        """Store an event that is being handed on, with the position after it, and return its entry."""
        self._turn += 1
        entry = Entry(event, cursor, self._turn, self._held)
        self._all.append(entry)
        same_channel = self._by_channel.get(event.channel)
        if same_channel is None:
            same_channel = self._by_channel[event.channel] = deque()
        same_channel.append(entry)
        while len(self._all) > self._max_events or (self._held.bytes > self._max_bytes and self._all):
            self._evict()
        return entry

    def pass_over(self, event: Unfollowed, cursor: Cursor) -> None:
        """Note that an event is handed on to nobody and is not here. Readers that lack it are sent to the table."""
        self._turn += 1
        if self._notes.pop(event.channel, None) is None:
            self._notes_bytes += NOTE_BYTES + sys.getsizeof(event.channel)
        self._notes[event.channel] = Note(self._turn, cursor)
        while self._notes_bytes > MAX_NOTES_BYTES:
            self._forget_note()

    def _forget_note(self) -> None:
        """Forget the oldest note: from here on, readers must have been offered everything up to it."""
        channel, oldest = self._notes.popitem(last=False)
        self._notes_bytes -= NOTE_BYTES + sys.getsizeof(channel)
        while self._all and self._all[0].turn < oldest.turn:
            self._evict()
        self.base = oldest.cursor

    def _evict(self) -> None:
        oldest = self._all.popleft()
        self._held.bytes -= oldest.size
        oldest.held = None
        self.base = oldest.cursor
        while self._notes and next(iter(self._notes.values())).turn < oldest.turn:
            channel, _ = self._notes.popitem(last=False)
            self._notes_bytes -= NOTE_BYTES + sys.getsizeof(channel)
        same_channel = self._by_channel[oldest.event.channel]
        same_channel.popleft()
        if not same_channel:
            del self._by_channel[oldest.event.channel]

    @property
    def channels(self) -> Iterable[str]:
        """The channels that have events here."""
        return self._by_channel

    def ids(self, channel: str, first: int, last: int) -> list[int]:
        """Return the ids of a channel's events here that lie in a range."""
        return [entry.event.id for entry in self._by_channel.get(channel, ()) if first <= entry.event.id <= last]

    def erase(self, ids: Set[int]) -> None:
        """Take events out. A reader is not told: they were erased on purpose."""
        for channel in {entry.event.channel for entry in self._all if entry.event.id in ids}:
            kept = deque(entry for entry in self._by_channel[channel] if entry.event.id not in ids)
            if kept:
                self._by_channel[channel] = kept
            else:
                del self._by_channel[channel]
        for entry in self._all:
            if entry.event.id in ids:
                self._held.bytes -= entry.size
                entry.held = None
        self._all = deque(entry for entry in self._all if entry.event.id not in ids)

    def expire(self, channel: str, up_to: int) -> None:
        """Note that events of a channel up to an id are no longer retained. Who lacks them is sent to the table."""
        self._expired = {name: last for name, last in self._expired.items() if not self.base.offered(last)}
        self._expired[channel] = max(up_to, self._expired.get(channel, 0))

    def drop(self, up_to: int) -> None:
        """Forget everything up to the last event whose id is not above ``up_to``, as if the ring were smaller."""
        for _ in range(max((n for n, entry in enumerate(self._all, 1) if entry.event.id <= up_to), default=0)):
            self._evict()

    def since(self, cursor: Cursor, channels: Collection[str]) -> list[Entry] | None:
        """Return what a reader at ``cursor`` has missed in these channels, in the order of the ring.

        Returns None if the ring does not reach back far enough to know, if some of it was read without its payload, or
        if events were taken out that are no longer retained. The cost depends on how much was missed, not on the size
        of the ring.
        """
        if not cursor.covers(self.base):
            return None
        if self._notes:
            for channel in channels:
                note = self._notes.get(channel)
                if note is not None and not cursor.covers(note.cursor):
                    return None
        if self._expired and any(cursor.missing_up_to(self._expired.get(channel, 0)) for channel in channels):
            return None
        missed: list[Entry] = []
        for channel in channels:
            for entry in reversed(self._by_channel.get(channel, ())):
                if not cursor.offered(entry.event.id):
                    missed.append(entry)
                elif cursor.covers(entry.cursor):
                    break  # the reader was also offered everything that was handed on before this entry
        missed.sort(key=_turn)
        return missed


def _turn(entry: Entry) -> int:
    return entry.turn
