"""The event stream format: blocks of fields.

All blocks of a stream are made here. A CR, LF or NUL in a field would let its author forge fields, so they are refused
here too, although the HTTP interface and the table have already refused them.
The format is defined in WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sse_pg.core.cursor import Cursor
from sse_pg.core.envelope import Envelope
from sse_pg.core.event import Event
from sse_pg.core.names import END

HELLO = "sse-pg.hello"
GAP = "sse-pg.gap"
DENIED = "sse-pg.denied"
POSITION = "sse-pg.position"
#: A comment without an empty line after it, because some client libraries treat every empty line as an event.
HEARTBEAT = b":\n"

_REFUSED = "a field of an event stream cannot contain CR, LF or NUL"
_encode = msgspec.json.Encoder().encode


def frame(event: Event, cursor: Cursor, *, envelope: Envelope | None = None) -> bytes:
    """Return the block of an event. ``cursor`` is the position from which a reader that got the event resumes.

    With an envelope the data is the whole event, and the event name is left out so that ``onmessage`` receives it. The
    end of a channel keeps its name and its form, as all events of the bus do.
    The cursor nearly always begins with the event's own id. If it does not, because a lower id was delivered later, a
    field ``number`` has it; the standard says that clients ignore fields that they do not know.
    Raises ValueError if a field contains a CR, LF or NUL.
    """
    number, at = str(event.id), cursor.text
    # The printed cursor can be below ``high``, if its gaps do not fit.
    head = f"id: {at}\n" if at == number or at.partition("~")[0] == number else f"number: {number}\nid: {at}\n"
    if envelope is not None and event.event_type != END:
        data = envelope.data(event)  # it contains the texts of payload and headers unchanged
        _refuse_breaks(data)
        return f"{head}data: {data}\n\n".encode()
    fields = f"event: {event.event_type}\ndata: {event.payload}\n\n"
    if fields.count("\n") != 3 or "\r" in fields or "\0" in fields:
        raise ValueError(_REFUSED)
    return f"{head}{fields}".encode()


def check(event: Event) -> None:
    """Raise ValueError, with the reason, if ``frame`` cannot make a block of this event."""
    text = f"{event.event_type}{event.payload}{event.headers}"
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError(_REFUSED)


def block(name: str, data: str, cursor: Cursor, *, retry_ms: int | None = None) -> bytes:
    """Return one block: event name, data, id, and perhaps the retry time in milliseconds.

    Raises ValueError if a field contains a CR, LF or NUL."""
    _refuse_breaks(name)
    _refuse_breaks(data)
    retry = "" if retry_ms is None else f"retry: {retry_ms}\n"
    return f"{retry}id: {cursor.text}\nevent: {name}\ndata: {data}\n\n".encode()


def _refuse_breaks(text: str) -> None:
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError(_REFUSED)


def hello(cursor: Cursor, retry_ms: int) -> bytes:
    """Return the first block of a stream: where it begins, and how long a client waits before it reconnects."""
    return block(HELLO, "{}", cursor, retry_ms=retry_ms)


def position(cursor: Cursor) -> bytes:
    """Return the block that gives a quiet stream a newer position."""
    return block(POSITION, "{}", cursor)


def end(channel: str, cursor: Cursor) -> bytes:
    """Return the block that says that a channel was finished before a stream began."""
    return block(END, _encode({"channel": channel}).decode(), cursor)


def denied(channels: Iterable[str], cursor: Cursor) -> bytes:
    """Return the block that names channels that were asked for and that the stream does not carry."""
    return block(DENIED, _encode({"channels": sorted(channels)}).decode(), cursor)


def gap(reason: str, after: str, before: Cursor, *, cursor: Cursor | None = None) -> bytes:
    """Return the block that says that events after ``after`` and up to ``before`` can no longer be delivered.

    ``after`` is the text of a cursor, or what the client sent instead of one. The client resumes from ``cursor``, or
    from ``before`` if nothing in between can be delivered.
    """
    data = _encode({"reason": reason, "after": after, "before": before.text}).decode()
    return block(GAP, data, before if cursor is None else cursor)
