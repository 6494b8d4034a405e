"""A parser of the event stream format: bytes in, blocks out, no I/O.

It follows WHATWG HTML 9.2.6, "Interpreting an event stream". Lines are split as bytes, because no UTF-8 sequence
contains a line break, and decoded one by one, so chunks may be cut anywhere.
"""

from __future__ import annotations

import msgspec

from sse_pg.errors import ClientError

_BOM = b"\xef\xbb\xbf"
_MAX_RETRY_DIGITS = 15


class Block(msgspec.Struct, frozen=True, gc=False):
    """One dispatched block of a stream."""

    event: str
    """The event name; ``message`` if the block has none."""
    data: str
    """The data lines, joined with LF."""
    id: str
    """The last event id of the stream so far; empty if there was none yet."""
    retry: int | None
    """The reconnection time in milliseconds, if one was set since the block before."""
    number: str = ""
    """The event's own id, if ``id`` does not begin with it; otherwise empty. Only servers of this bus send it."""


class Parser:
    """An incremental parser of one stream.

    ``last_event_id`` is the last event id so far; initially the one that the stream was resumed with. ``comments``
    counts the comments. ``limit`` is the maximum number of bytes of a line and of the data of a block; the parser holds
    at most about twice as much.
    """

    def __init__(self, *, limit: int = 16 << 20, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.comments = 0
        self._limit = limit
        self._too_long = False
        self._at_start = True
        self._after_cr = False
        self._parts: list[bytes] = []  # the incomplete line
        self._parts_size = 0
        self._blocks: list[Block] = []
        self._event = ""
        self._data: list[str] = []
        self._data_size = 0
        self._id = last_event_id
        self._number = ""
        self._retry: int | None = None

    def feed(self, chunk: bytes) -> list[Block]:
        """Take the next bytes of the stream, any number of them; return the blocks that they complete.

        Raises ClientError if something is longer than the limit. The blocks before it are returned first; the next call
        and all later ones raise the error.
        """
        if not self._too_long:
            self._split(chunk)
        blocks, self._blocks = self._blocks, []
        if self._too_long and not blocks:
            raise ClientError(f"a block of the event stream is longer than {self._limit} bytes")
        return blocks

    def _split(self, chunk: bytes) -> None:
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        lines = chunk.splitlines()
        rest = b"" if chunk.endswith((b"\r", b"\n")) else lines.pop()
        if lines and self._parts:
            self._parts.append(lines[0])
            lines[0] = b"".join(self._parts)
            self._parts.clear()
            self._parts_size = 0
        for line in lines:
            self._line(line)
            if self._too_long:
                return
        if rest:
            self._parts.append(rest)
            self._parts_size += len(rest)
            self._too_long = self._parts_size > self._limit

    def _line(self, line: bytes) -> None:
        if len(line) > self._limit:
            self._too_long = True
            return
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch()
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data_size += len(value) + 1
            self._too_long = self._data_size > self._limit
            self._data.append(value.decode(errors="replace"))
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode(errors="replace")
        elif name == b"event":
            self._event = value.decode(errors="replace")
        elif name == b"number":
            self._number = value.decode(errors="replace")
        elif name == b"retry":
            if value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self._retry = int(value)
        elif not name:
            self.comments += 1

    def _dispatch(self) -> None:
        self.last_event_id = self._id
        if self._data:
            data = "\n".join(self._data)
            self._blocks.append(Block(self._event or "message", data, self._id, self._retry, self._number))
            self._data = []
            self._data_size = 0
            self._retry = None
        self._event = self._number = ""
