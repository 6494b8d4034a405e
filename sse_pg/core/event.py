"""One event, as the table stores it and as the HTTP interface shows it."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache

import msgspec

#: The moment from which PostgreSQL counts, in UTC.
_POSTGRES_EPOCH = datetime(2000, 1, 1)
#: The same moment as Unix time, in seconds.
POSTGRES_EPOCH_S = 946_684_800


class Event(msgspec.Struct, frozen=True, gc=False):
    """A row of sse_pg.events. ``payload`` and ``headers`` are the JSON texts that PostgreSQL sends; neither is decoded.

    ``created_at`` is in microseconds since 2000, as PostgreSQL counts. It is only made readable where it is printed.
    """

    id: int
    channel: str
    event_type: str
    payload: str
    created_at: int
    headers: str | None = None

    @property
    def chars(self) -> int:
        """Length of what the publisher may make long."""
        return len(self.payload) + (len(self.headers) if self.headers is not None else 0)


class Unfollowed(msgspec.Struct, frozen=True, gc=False):
    """An event of a channel that no stream here follows. It was read without its payload and headers."""

    id: int
    channel: str
    event_type: str
    created_at: int

    @property
    def chars(self) -> int:
        """Length of what the publisher may make long, as far as it is here."""
        return 0


AnyEvent = Event | Unfollowed


class EventJson(msgspec.Struct, frozen=True, rename="camel"):
    """An event as the HTTP interface shows it."""

    id: int
    channel: str
    event_type: str
    payload: msgspec.Raw
    headers: msgspec.Raw | msgspec.UnsetType
    created_at: str


def timestamp(moment: int) -> str:
    """Return a moment, given in microseconds since 2000, as RFC 3339 text in UTC with microseconds.

    A moment before year 1 or after year 9999 becomes the first or the last second that RFC 3339 can express.
    """
    seconds, micros = divmod(moment, 1_000_000)
    return f"{_second(seconds)}.{micros:06d}Z"


@lru_cache(1024)
def _second(seconds: int) -> str:
    try:
        return (_POSTGRES_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return (datetime.max if seconds > 0 else datetime.min).isoformat(timespec="seconds")


def event_json(event: Event) -> EventJson:
    """Return the event in its HTTP form. The texts of the payload and the headers are not changed."""
    return EventJson(
        event.id,
        event.channel,
        event.event_type,
        msgspec.Raw(event.payload.encode()),
        msgspec.UNSET if event.headers is None else msgspec.Raw(event.headers.encode()),
        timestamp(event.created_at),
    )
