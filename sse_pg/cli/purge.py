"""``sse-pg purge``: retention now."""

from __future__ import annotations

import asyncio
import dataclasses

import click

from sse_pg.cli.database import open_pool
from sse_pg.config import Settings
from sse_pg.db.maintenance import Maintenance, Purged
from sse_pg.errors import BusUnavailable

#: How often and after how many seconds it tries again while others are in the way.
TRIES = 10
PAUSE = 1.0


async def purge(settings: Settings) -> None:
    """Make the partitions that are missing, then purge by the settings and print what went.

    Raises BusUnavailable where others held the table all the time.
    """
    async with open_pool(settings, 1) as pool:
        maintenance = Maintenance(pool, settings)
        total = Purged()
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(PAUSE)
            made = await maintenance.make_partitions()
            now = await maintenance.purge(settings.keep_events, settings.keep_hours)
            total = dataclasses.replace(
                now,
                partitions=total.partitions + now.partitions,
                events=total.events + now.events,
                bytes=total.bytes + now.bytes,
                keys=total.keys + now.keys,
            )
            if now.state == "done" and made is not None:
                click.echo(f"purged {total}")
                return
        click.echo(f"purged {total}")
        raise BusUnavailable(
            "not all could be purged: a transaction holds sse_pg.events for long (pg_stat_activity shows it), "
            "or a server has not read what is to go; try again later"
        )
