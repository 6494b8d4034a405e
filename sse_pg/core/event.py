"""An event, as the table holds it."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache

import msgspec

#: Where PostgreSQL counts from, in UTC.
_EPOCH = datetime(2000, 1, 1)
#: The same moment as Unix counts, in seconds.
EPOCH = 946_684_800


class Event(msgspec.Struct, frozen=True, gc=False):
    """A row of sse_pg.events. ``payload`` is the JSON text that PostgreSQL hands out, never decoded here.

    ``created_at`` is the number of microseconds since 2000, as PostgreSQL counts; most are never printed.
    """

    id: int
    channel: str
    event_type: str
    payload: str
    created_at: int


class EventJson(msgspec.Struct, frozen=True, rename="camel"):
    """The event as the HTTP interface shows it."""

    id: int
    channel: str
    event_type: str
    payload: msgspec.Raw
    created_at: str


def timestamp(moment: int) -> str:
    """Print a moment, in microseconds since 2000, in RFC 3339, in UTC, with microseconds.

    A moment that RFC 3339 has no year for is printed as the first or the last one that it has.
    """
    seconds, micros = divmod(moment, 1_000_000)
    return f"{_second(seconds)}.{micros:06d}Z"


@lru_cache(1024)
def _second(seconds: int) -> str:
    try:
        return (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return (datetime.max if seconds > 0 else datetime.min).isoformat(timespec="seconds")


def event_json(event: Event) -> EventJson:
    """Return the event in its HTTP form; the payload's text goes through untouched."""
    return EventJson(
        event.id,
        event.channel,
        event.event_type,
        msgspec.Raw(event.payload.encode()),
        timestamp(event.created_at),
    )
