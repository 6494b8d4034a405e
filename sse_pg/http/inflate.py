"""Request bodies with a Content-Encoding, decoded piece by piece.

aiohttp decodes them as well, but takes a truncated gzip body for a complete one, passes on encodings that it does not
know, and logs a traceback for a broken one. So the connections of this server leave it to this file.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from aiohttp import web

from sse_pg.http.problem import Problem

#: Maximum bytes that one step of decoding makes. It takes less than a millisecond.
MAX_PIECE_BYTES = 65536
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class Inflater:
    """Decodes gzip, also of several members, or deflate, with or without the header of zlib."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = zlib.decompressobj(_GZIP_WINDOW)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode a part of the body. Raises a 400 if it is broken."""
        if not self._begun and data and self._encoding == "deflate":
            # Some clients send raw deflate data: the method in the first byte of a zlib header is always 8.
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0xF == 8 else -zlib.MAX_WBITS)
        self._begun = self._begun or bool(data)
        while data:
            if self._stream.eof:
                if self._encoding != "gzip":
                    raise _broken(self._encoding)
                self._stream = zlib.decompressobj(_GZIP_WINDOW)
            try:
                piece = self._stream.decompress(data, MAX_PIECE_BYTES)
                while len(piece) == MAX_PIECE_BYTES:
                    yield piece
                    piece = self._stream.decompress(self._stream.unconsumed_tail, MAX_PIECE_BYTES)
            except zlib.error:
                raise _broken(self._encoding) from None
            if piece:
                yield piece
            data = self._stream.unused_data if self._stream.eof else b""

    def finish(self) -> None:
        """Raise a 400 if the body ends too early."""
        if not self._stream.eof:
            raise _broken(self._encoding)


def inflater(request: web.Request) -> Inflater | None:
    """Return what decodes the body of a request; None if nothing has to. Raises a 415 for an unknown encoding."""
    encoding = ",".join(request.headers.getall("Content-Encoding", [])).strip().lower()
    if encoding in ("", "identity"):
        return None
    encoding = encoding.removeprefix("x-")
    if encoding not in ("gzip", "deflate"):
        raise Problem(
            415,
            "The Content-Encoding is not supported; gzip, deflate and identity are.",
            headers={"Accept-Encoding": "gzip, deflate", "Connection": "close"},
        )
    return Inflater(encoding)


def _broken(encoding: str) -> Problem:
    return Problem(400, f"The body is not valid {encoding} data.", headers={"Connection": "close"})
