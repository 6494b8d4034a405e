"""The values that a client returns or passes to callbacks."""

from __future__ import annotations

from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True):
    """An event of a stream."""

    id: str
    """The cursor to resume from after this event."""
    type: str
    data: str
    """The payload as JSON text; with ``envelope``, the whole event."""
    number: int = 0
    """The event's own id, the same on every server; 0 if the server did not send one. ``id`` is not: it is a cursor."""

    def json(self, type: Any = Any) -> Any:  # noqa: A002 - its name in msgspec
        """Decode the data, into ``type`` if it is given. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.data, type=type)


class Snapshot(Event, frozen=True):
    """The state that a subscription with ``snapshot`` begins with. It is one again after a gap.

    ``id`` is its position: the events that follow are those that the state lacks. ``data`` is empty.
    """

    state: Any = None
    """What the function has returned beside the position."""


class Gap(msgspec.Struct, frozen=True):
    """The events after one cursor and up to another can no longer be delivered."""

    reason: str
    """``expired``: they were purged. ``unknown``: the cursor does not belong to this bus."""
    after: str
    before: str


class Denied(msgspec.Struct, frozen=True):
    """Channels that were asked for and that the stream does not carry, because they are not allowed."""

    channels: list[str]


class Finished(msgspec.Struct, frozen=True):
    """A channel has ended. A later event opens it again."""

    channel: str


class Reconnect(msgspec.Struct, frozen=True):
    """A stream was lost, or could not be opened."""

    reason: str
    delay: float
    """Seconds until the next attempt."""
    cursor: str | None
    """Where the next attempt resumes."""


class Published(msgspec.Struct, frozen=True, rename="camel"):
    """The response to a publish. ``created_at`` is RFC 3339 text."""

    id: int
    channel: str
    event_type: str
    created_at: str
