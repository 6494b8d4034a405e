"""Where one log ended and the next began: after a failover, in a restored backup, in a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sse_pg.core.cursor import Cursor


class Epoch(NamedTuple):
    """The beginning of a log, and what of the log before is in it for certain."""

    certain: Cursor
    """The ids of the log before that are certain: what was visible there under one of them is in this log."""
    starts_at: int
    """The ids of this log are higher. Those of the log before are not."""


def certain_part(cursor: Cursor, epochs: Sequence[Epoch]) -> Cursor:
    """Return the cursor or, if it claims ids of a log that was lost, the part of it that belongs to this log.

    ``epochs`` ascend.
    """
    for epoch in reversed(epochs):
        if cursor.high < epoch.starts_at and not epoch.certain.covers(cursor):
            cursor = cursor & epoch.certain
    return cursor
