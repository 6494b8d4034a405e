"""The event stream format: blocks of fields.

All blocks of a stream are made here. A CR, LF or NUL in a field would let its author forge fields, so they are refused
here too, although the HTTP interface and the table have already refused them.
The format is defined in WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import msgspec

from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import Envelope
from sse_pg.core.event import Event

HELLO = "sse-pg.hello"
GAP = "sse-pg.gap"
POSITION = "sse-pg.position"
#: A comment without an empty line after it, because some client libraries treat every empty line as an event.
HEARTBEAT = b":\n"

_encode = msgspec.json.Encoder().encode


def frame(event: Event, cursor: Cursor, *, envelope: Envelope | None = None) -> bytes:
    """Return the block of an event. ``cursor`` is the position from which a reader that got the event resumes.

    With an envelope the data is the whole event, and the event name is left out so that ``onmessage`` receives it.
    The cursor nearly always begins with the event's own id. If it does not, because a lower id was delivered later, a
    field ``number`` has it; the standard says that clients ignore fields that they do not know.
    Raises ValueError if a field contains a CR, LF or NUL.
    """
    if envelope is not None:
        data = envelope.data(event)
        _refuse_breaks(data)  # it contains the texts of payload and headers unchanged
        return f"{_number(event, cursor)}id: {cursor.text}\ndata: {data}\n\n".encode()
    check(event)
    return f"{_number(event, cursor)}id: {cursor.text}\nevent: {event.event_type}\ndata: {event.payload}\n\n".encode()


def _number(event: Event, cursor: Cursor) -> str:
    if cursor.high == event.id and not cursor.gaps:
        return ""
    # The printed cursor can be below ``high``, if its gaps do not fit.
    return "" if cursor.text.partition("~")[0] == str(event.id) else f"number: {event.id}\n"


def check(event: Event) -> None:
    """Raise ValueError, with the reason, if ``frame`` cannot make a block of this event."""
    _refuse_breaks(event.event_type)
    _refuse_breaks(event.payload)
    if event.headers is not None:
        _refuse_breaks(event.headers)


def block(name: str, data: str, cursor: Cursor, *, retry_ms: int | None = None) -> bytes:
    """Return one block: event name, data, id, and perhaps the retry time in milliseconds.

    Raises ValueError if a field contains a CR, LF or NUL."""
    _refuse_breaks(name)
    _refuse_breaks(data)
    retry = "" if retry_ms is None else f"retry: {retry_ms}\n"
    return f"{retry}id: {cursor.text}\nevent: {name}\ndata: {data}\n\n".encode()


def _refuse_breaks(text: str) -> None:
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError("a field of an event stream cannot contain CR, LF or NUL")


def hello(cursor: Cursor, retry_ms: int) -> bytes:
    """Return the first block of a stream: where it begins, and how long a client waits before it reconnects."""
    return block(HELLO, "{}", cursor, retry_ms=retry_ms)


def position(cursor: Cursor) -> bytes:
    """Return the block that gives a quiet stream a newer position."""
    return block(POSITION, "{}", cursor)


def gap(reason: str, after: str, before: Cursor, *, cursor: Cursor | None = None) -> bytes:
    """Return the block that says that events after ``after`` and up to ``before`` can no longer be delivered.

    ``after`` is the text of a cursor, or what the client sent instead of one. The client resumes from ``cursor``, or
    from ``before`` if nothing in between can be delivered.
    """
    data = _encode({"reason": reason, "after": after, "before": before.text}).decode()
    return block(GAP, data, before if cursor is None else cursor)
