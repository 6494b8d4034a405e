"""An event to be published, and what is known of it afterwards."""

from __future__ import annotations

import msgspec

#: (id, created at in microseconds since 2000)
Published = tuple[int, int | None]


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event to be published. ``payload`` and ``headers`` are JSON text."""

    channel: str
    event_type: str
    payload: str
    key: str | None = None
    headers: str | None = None
