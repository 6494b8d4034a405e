"""``sse-pg purge``: applies the retention now."""

from __future__ import annotations

import asyncio

import click

from sse_pg.cli.database import open_pool
from sse_pg.config import Settings
from sse_pg.db.maintenance import Maintenance, Purged
from sse_pg.errors import BusUnavailable

#: Number of attempts while something prevents the purge, and the pause between them.
MAX_ATTEMPTS = 10
RETRY_PAUSE_S = 1.0


async def purge(settings: Settings) -> None:
    """Create the missing partitions, purge according to the settings, and print what was purged.

    Raises BusUnavailable if something prevented it during all attempts.
    """
    async with open_pool(settings, 1) as pool:
        maintenance = Maintenance(pool, settings)
        total = Purged()
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                await asyncio.sleep(RETRY_PAUSE_S)
            made = await maintenance.make_partitions()
            now = await maintenance.purge(settings.keep_events, settings.keep_hours)
            total = total.and_then(now)
            if now.state == "done" and made is not None:
                click.echo(f"purged {total}")
                return
        click.echo(f"purged {total}")
        raise BusUnavailable(
            "not everything could be purged: a long transaction uses sse_pg.events (see pg_stat_activity), or a "
            "server has not yet read the events to purge; try again later"
        )
