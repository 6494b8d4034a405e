"""``sse-pg history``: prints stored events."""

from __future__ import annotations

import sys

import click
import msgspec

from sse_pg.cli.database import open_pool
from sse_pg.config import Settings
from sse_pg.core import names
from sse_pg.core.cursor import START, Cursor
from sse_pg.core.event import event_json
from sse_pg.db.store import Store
from sse_pg.errors import CursorError, EventRefused

#: Number of events that are read at a time.
PAGE_EVENTS = 500


async def history(settings: Settings, channel: str, after: str | None, limit: int | None) -> None:
    """Print the events of a channel after a cursor, oldest first, and then the cursor to continue from."""
    if fault := names.channel_fault(channel):
        raise EventRefused(fault)
    try:
        cursor = Cursor.parse(after) if after else START
    except CursorError as error:
        raise CursorError(f"--after: {error}") from None
    async with open_pool(settings, 1) as pool:
        store = Store(pool)
        left = limit
        while left is None or left > 0:
            position = await store.position()
            count = PAGE_EVENTS if left is None else min(PAGE_EVENTS, left)
            step = await store.step([channel], cursor, position, count)
            lost_to = max(step.purged_to, step.expired_to)
            if cursor != START and cursor.missing_up_to(lost_to):
                click.echo(f"sse-pg: the events after {cursor} up to {lost_to} were purged", err=True)
            for event in step.events:
                sys.stdout.write(msgspec.json.encode(event_json(event)).decode() + "\n")
            if left is not None:
                left -= len(step.events)
            cursor = step.cursor
            if not step.more:
                break
    sys.stdout.flush()
    click.echo(f"next cursor: {cursor}", err=True)
