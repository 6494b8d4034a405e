"""An event, as the table holds it."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec


class Event(msgspec.Struct, frozen=True, gc=False):
    """A row of sse_pg.events. ``payload`` is the JSON text that PostgreSQL hands out, never decoded here."""

    id: int
    channel: str
    event_type: str
    payload: str
    created_at: datetime


class EventJson(msgspec.Struct, frozen=True, rename="camel"):
    """The event as the HTTP interface shows it."""

    id: int
    channel: str
    event_type: str
    payload: msgspec.Raw
    created_at: str


def timestamp(moment: datetime) -> str:
    """Print a moment in RFC 3339, in UTC, with microseconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def event_json(event: Event) -> EventJson:
    """Return the event in its HTTP form; the payload's text goes through untouched."""
    return EventJson(
        event.id,
        event.channel,
        event.event_type,
        msgspec.Raw(event.payload.encode()),
        timestamp(event.created_at),
    )
