"""``sse-pg history``: prints stored events."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import msgspec

from sse_pg.cli.database import open_pool
from sse_pg.config import Settings
from sse_pg.core import names
from sse_pg.core.cursor import START, Cursor
from sse_pg.core.event import Event, event_json
from sse_pg.db.store import Store
from sse_pg.errors import CursorError, EventRefused

#: Number of events that are read at a time.
PAGE_EVENTS = 500


async def history(settings: Settings, channel: str, after: str | None, limit: int | None, *, newest: bool) -> None:
    """Print the events of a channel after a cursor: the newest first, or the oldest first and then the next cursor."""
    if fault := names.channel_fault(channel):
        raise EventRefused(fault)
    try:
        cursor = Cursor.parse(after) if after else START
    except CursorError as error:
        raise CursorError(f"--after: {error}") from None
    async with open_pool(settings, 1) as pool:
        await (_newest if newest else _oldest)(Store(pool), channel, cursor, limit)
    sys.stdout.flush()


async def _oldest(store: Store, channel: str, cursor: Cursor, left: int | None) -> None:
    while left is None or left > 0:
        position = await store.position()
        count = PAGE_EVENTS if left is None else min(PAGE_EVENTS, left)
        step = await store.step([channel], cursor, position, count)
        _report_loss(cursor, max(step.purged_to, step.expired_to))
        _print(step.events)
        if left is not None:
            left -= len(step.events)
        cursor = step.cursor
        if not step.more:
            break
    sys.stdout.flush()
    click.echo(f"next cursor: {cursor}", err=True)


async def _newest(store: Store, channel: str, cursor: Cursor, left: int | None) -> None:
    wanted = cursor.missing_up_to(await store.last_id())
    while left is None or left > 0:
        count = PAGE_EVENTS if left is None else min(PAGE_EVENTS, left)
        page = await store.page([channel], wanted, count, descending=True)
        _print(page.events)
        if left is not None:
            left -= len(page.events)
        if not page.full:
            _report_loss(cursor, max(page.purged_to, page.expired_to))
            break
        wanted = wanted.up_to(page.events[-1].id - 1)


def _print(events: Sequence[Event]) -> None:
    for event in events:
        sys.stdout.write(msgspec.json.encode(event_json(event)).decode() + "\n")


def _report_loss(cursor: Cursor, lost_to: int) -> None:
    if cursor != START and cursor.missing_up_to(lost_to):
        click.echo(f"sse-pg: the events after {cursor} up to {lost_to} were purged", err=True)
