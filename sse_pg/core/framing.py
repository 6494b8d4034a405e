"""How the bytes of a stream travel in the body of an HTTP response: as they are, in chunks, or compressed in chunks.

A compressed stream is one gzip member whose deflate blocks are made independently of each other: each batch is
compressed by itself, ends on a byte boundary, and refers to nothing before it. So a batch is compressed once for all
streams that get it, whatever each of them was sent before, and a stream needs no compressor of its own. What goes to
one stream alone, and what is too small or too large to be worth compressing, becomes stored blocks.

The member has no end: its checksum would be of everything that this one stream was sent. The stream ends with the last
chunk of the body instead. Formats: RFC 9112 (chunks), RFC 1951 (deflate), RFC 1952 (gzip).
"""

from __future__ import annotations

import enum
import struct
import zlib

#: Below this a packet is hardly smaller for being compressed.
MIN_COMPRESSED_BYTES = 400
#: Above this, compressing would keep other tasks waiting: it takes about 1 ms for so many bytes.
MAX_COMPRESSED_BYTES = 65536
#: The compressor's memory: a window of 4 KiB. A new one is made for each batch, and one with the default window of
#: 32 KiB takes five times as long to make as a small batch takes to compress.
_WINDOW_BITS = 12
_MEMORY_LEVEL = 5
_MAX_STORED_BYTES = 65535
#: Deflate, no flags, no time, and the system is unknown. nginx writes Unix there: the head tells who has compressed.
GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


class Framing(enum.Enum):
    """A form of a response's body."""

    PLAIN = "plain"
    """The end of the connection is the end of the body: HTTP/1.0."""
    CHUNKED = "chunked"
    GZIP = "gzip"
    """Compressed, in chunks."""

    # Members are singletons, so that the identity is the hash; the one of Enum is computed from the name each time.
    __hash__ = object.__hash__

    @property
    def head(self) -> bytes:
        """What the body begins with."""
        return _chunk(GZIP_HEAD) if self is Framing.GZIP else b""

    @property
    def end(self) -> bytes:
        """What the body ends with."""
        return b"" if self is Framing.PLAIN else b"0\r\n\r\n"

    def batch(self, data: bytes) -> bytes:
        """Return blocks that many streams are sent, or that are many, as a part of the body."""
        if self is Framing.GZIP and MIN_COMPRESSED_BYTES <= len(data) <= MAX_COMPRESSED_BYTES:
            return _chunk(_compressed(data))
        return self.single(data)

    def single(self, data: bytes) -> bytes:
        """Return a few blocks for one stream alone, as a part of the body. They are not compressed."""
        if self is Framing.PLAIN:
            return data
        return _chunk(_stored(data) if self is Framing.GZIP else data)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _compressed(data: bytes) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, -_WINDOW_BITS, _MEMORY_LEVEL)
    return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)


def _stored(data: bytes) -> bytes:
    parts = [data[start : start + _MAX_STORED_BYTES] for start in range(0, len(data), _MAX_STORED_BYTES)]
    return b"".join([struct.pack("<BHH", 0, len(part), len(part) ^ 0xFFFF) + part for part in parts])
