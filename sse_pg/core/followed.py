"""The channels that the streams of this process follow, as the filter that each read of the log passes.

The filter is a row of bits, a power of two of them. Each channel sets the bit that PostgreSQL's ``hashtext`` picks. The
database sends the payload of an event if its channel's bit is set, and otherwise only what is needed to pass it. So a
channel that nobody follows may be taken for one that somebody follows, which costs bytes. The opposite cannot happen
here; and if it did, the streams concerned would read the events from the table (``Hub.deliver``).
"""

from __future__ import annotations

#: Time for which a channel stays in the filter after its last stream, so that a client that reconnects is served from
#: memory.
LINGER_S = 60.0
#: Bits for each channel: with 32, one of 32 other channels at most is taken for one that is followed.
BITS_PER_CHANNEL = 32
#: The filter goes with every read, up to 200 times a second.
MIN_BITS, MAX_BITS = 512, 65_536
#: With more channels than this, the filter would let nearly half of all others pass; everything is read instead.
MAX_CHANNELS = MAX_BITS // 2
#: Shortest time between two looks for channels that nobody follows any more.
FORGET_PAUSE_S = 5.0

_MASK = 0xFFFF_FFFF
_BASIS = 0x9E37_79B9 + 3_923_095


class Followed:
    """Counts who follows which channels, and makes the filter. The caller passes the time, in seconds of one clock."""

    def __init__(self) -> None:
        self._sets: dict[frozenset[str], int] = {}
        """How many streams have each set of channels: those of a crowd share one."""
        self._counts: dict[str, int] = {}
        """How many of these sets have each channel."""
        self._left: dict[str, float] = {}
        """Channels that nobody follows any more, and since when, the oldest first."""
        self._forget_at = 0.0
        self._bits = bytearray()
        self._filter: bytes | None = None
        """The filter as it was last given out; None if it has changed since."""
        self._is_stale = True
        """Whether the bits must be made anew."""

    def __len__(self) -> int:
        return len(self._counts) + len(self._left)

    def __contains__(self, channel: str) -> bool:
        return channel in self._counts or channel in self._left

    def add(self, channels: frozenset[str]) -> None:
        """Note that one more stream follows these channels."""
        streams = self._sets[channels] = self._sets.get(channels, 0) + 1
        if streams > 1:
            return
        for channel in channels:
            sets = self._counts[channel] = self._counts.get(channel, 0) + 1
            if sets == 1 and self._left.pop(channel, None) is None:
                self._set(channel)

    def discard(self, channels: frozenset[str], now: float) -> None:
        """Note that one stream less follows these channels."""
        streams = self._sets[channels] = self._sets[channels] - 1
        if streams:
            return
        del self._sets[channels]
        for channel in channels:
            sets = self._counts[channel] = self._counts[channel] - 1
            if not sets:
                del self._counts[channel]
                self._left[channel] = now

    def filter(self, now: float) -> bytes | None:
        """Return the filter for a read that begins now; None if everything should be read."""
        if self._left and now >= self._forget_at:
            self._forget(now)
        if len(self) > MAX_CHANNELS:
            return None
        if self._is_stale or len(self) * BITS_PER_CHANNEL > max(len(self._bits) * 8, MIN_BITS) < MAX_BITS:
            self._make()
        if self._filter is None:
            self._filter = bytes(self._bits)
        return self._filter

    def _forget(self, now: float) -> None:
        self._forget_at = now + FORGET_PAUSE_S
        gone = []
        for channel, since in self._left.items():
            if since + LINGER_S > now:
                break
            gone.append(channel)
        for channel in gone:
            del self._left[channel]
        self._is_stale |= bool(gone)

    def _set(self, channel: str) -> None:
        if self._is_stale or len(self) > MAX_CHANNELS:
            self._is_stale = True
            return
        _set_bit(self._bits, channel)
        self._filter = None

    def _make(self) -> None:
        size = MIN_BITS
        while size < MAX_BITS and size < len(self) * BITS_PER_CHANNEL:
            size *= 2
        self._bits = bytearray(size // 8)
        for channels in (self._counts, self._left):
            for channel in channels:
                _set_bit(self._bits, channel)
        self._filter = None
        self._is_stale = False


def passes(bits: bytes, channel: str) -> bool:
    """Return whether a filter lets the payloads of a channel pass. The database's functions do the same."""
    place = hash_text(channel) & (len(bits) * 8 - 1)
    return bool(bits[place >> 3] >> (place & 7) & 1)


def _set_bit(bits: bytearray, channel: str) -> None:
    place = hash_text(channel) & (len(bits) * 8 - 1)
    bits[place >> 3] |= 1 << (place & 7)


def hash_text(text: str) -> int:
    """Return what PostgreSQL's ``hashtext(text COLLATE "C")`` does, as 32 bits without a sign.

    This is Bob Jenkins's lookup3 over the bytes in UTF-8, on a machine whose lowest byte comes first. Hash-partitioned
    tables depend on it, so it does not change from one version to the next.
    """
    data = text.encode()
    a = b = c = (_BASIS + len(data)) & _MASK
    whole = len(data) - len(data) % 12
    for start in range(0, whole, 12):
        a = a + int.from_bytes(data[start : start + 4], "little") & _MASK
        b = b + int.from_bytes(data[start + 4 : start + 8], "little") & _MASK
        c = c + int.from_bytes(data[start + 8 : start + 12], "little") & _MASK
        for first, second, third in ((4, 6, 8), (16, 19, 4)):
            a = (a - c & _MASK) ^ _turned(c, first)
            c = c + b & _MASK
            b = (b - a & _MASK) ^ _turned(a, second)
            a = a + c & _MASK
            c = (c - b & _MASK) ^ _turned(b, third)
            b = b + a & _MASK
    rest = data[whole:]
    a = a + int.from_bytes(rest[:4], "little") & _MASK
    b = b + int.from_bytes(rest[4:8], "little") & _MASK
    c = c + (int.from_bytes(rest[8:], "little") << 8) & _MASK  # its lowest byte is for the length
    for bits in (14, 11, 25, 16, 4, 14, 24):
        a, b, c = b, c, a  # each in turn: c by b, a by c, b by a, and again
        b = (b ^ a) - _turned(a, bits) & _MASK
    return b


def _turned(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _MASK
