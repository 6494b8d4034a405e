"""What a client tells its program: events, what is lost, that it reconnects, what was published."""

from __future__ import annotations

from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True):
    """An event as a subscriber gets it."""

    id: str
    """The cursor to resume from, once this event is dealt with."""
    type: str
    data: str
    """The payload, as JSON text; with ``envelope`` the whole event."""

    def json(self, type: Any = Any) -> Any:  # noqa: A002 - its name in msgspec
        """Decode the data, to ``type`` where one is given. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.data, type=type)


class Gap(msgspec.Struct, frozen=True):
    """What lies after one cursor and before another can no longer be delivered."""

    reason: str
    """``expired`` (purged) or ``unknown`` (the cursor is not of this bus)."""
    after: str
    before: str


class Reconnect(msgspec.Struct, frozen=True):
    """A stream was lost, or could not be had."""

    reason: str
    delay: float
    """Seconds until the next attempt."""
    cursor: str | None
    """Where that one resumes."""


class Published(msgspec.Struct, frozen=True, rename="camel"):
    """The answer to a publish. ``created_at`` is RFC 3339 text."""

    id: int
    channel: str
    event_type: str
    created_at: str
