"""``sse-pg finish``: says that a channel has ended."""

from __future__ import annotations

import click

from sse_pg.cli.database import open_pool
from sse_pg.config import Settings
from sse_pg.core import names
from sse_pg.db.publisher import Publisher
from sse_pg.errors import EventRefused


async def finish(settings: Settings, channel: str) -> None:
    """Finish a channel and print the id of the event that says so."""
    if fault := names.channel_fault(channel):
        raise EventRefused(fault)
    async with open_pool(settings, 1) as pool:
        click.echo(await Publisher(pool).finish(channel))
