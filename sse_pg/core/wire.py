"""The event stream format: blocks of fields, and the chunks of HTTP/1.1 around them.

Everything that goes out on a stream is made here. CR, LF and NUL in a field would let its writer forge fields, so they
are refused here too, although the HTTP interface and the table have refused them before.
Source of the format: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import msgspec

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import Event, event_json

HELLO = "sse-pg.hello"
GAP = "sse-pg.gap"
POSITION = "sse-pg.position"
#: A comment without an empty line behind it: some client libraries take every empty line for an event.
HEARTBEAT = b":\n"

_encode = msgspec.json.Encoder().encode


def frame(event: Event, cursor: Cursor, *, envelope: bool = False) -> bytes:
    """Return the block of an event; ``cursor`` is where a reader resumes that was offered it.

    With ``envelope`` the data is the whole event and the event name is left out, so that ``onmessage`` gets it.
    Raises ValueError where a field has a CR, LF or NUL.
    """
    if envelope:
        data = _encode(event_json(event)).decode()
        _refuse_breaks(data)  # the payload's text goes into it as it is
        return f"id: {cursor.text}\ndata: {data}\n\n".encode()
    return block(event.event_type, event.payload, cursor)


def block(name: str, data: str, cursor: Cursor, *, retry_ms: int | None = None) -> bytes:
    """Return one block. Raises ValueError where a field has a CR, LF or NUL."""
    _refuse_breaks(name)
    _refuse_breaks(data)
    retry = "" if retry_ms is None else f"retry: {retry_ms}\n"
    return f"{retry}id: {cursor.text}\nevent: {name}\ndata: {data}\n\n".encode()


def _refuse_breaks(text: str) -> None:
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError("a field of an event stream cannot hold CR, LF or NUL")


def hello(cursor: Cursor, retry_ms: int) -> bytes:
    """Return the first block of a stream: where it begins and how soon to come back."""
    return block(HELLO, "{}", cursor, retry_ms=retry_ms)


def position(cursor: Cursor) -> bytes:
    """Return the block that brings the position of a quiet stream up to date."""
    return block(POSITION, "{}", cursor)


def gap(reason: str, after: str, before: Cursor) -> bytes:
    """Return the block that says what can no longer be delivered: what lies after ``after`` and before ``before``."""
    data = _encode({"reason": reason, "after": after, "before": before.text}).decode()
    return block(GAP, data, before)


def chunk(data: bytes) -> bytes:
    """Return data as one chunk of an HTTP/1.1 body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
