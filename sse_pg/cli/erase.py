"""``sse-pg erase``: takes events out of the log for good."""

from __future__ import annotations

import sys

import click
import psycopg

from sse_pg.config import Settings
from sse_pg.core import names
from sse_pg.db.connection import summary
from sse_pg.db.erasing import Wanted, erasing
from sse_pg.errors import EventRefused

#: What erasing does not reach. docs/erasure.md says more about each.
ELSEWHERE = (
    "Backups, archived WAL, dumps and logical subscribers still have them, and so do clients that received them; "
    "docs/erasure.md says for how long and what to do."
)


async def erase(settings: Settings, wanted: Wanted, *, yes: bool) -> None:
    """Count the events, ask unless ``yes``, erase them, and remove what is left of the rows."""
    if fault := names.channel_fault(wanted.channel):
        raise EventRefused(fault)
    async with erasing(settings.database_url, wanted) as work:
        try:
            found = await work.count()
            if not found:
                click.echo(f"channel {wanted.channel} has no such events")
                return
            if not yes:
                _ask(found, wanted.channel)
            erased = await work.erase()
        except (psycopg.errors.DataError, psycopg.errors.CheckViolation, psycopg.errors.InsufficientPrivilege) as error:
            raise EventRefused(summary(error)) from error
        click.echo(f"erased {_events(erased)} of channel {wanted.channel}; servers forget them within a second")
        if (why := await work.vacuum()) is None:
            click.echo("VACUUM has removed the dead rows, except for those that an open transaction may still see.")
        else:
            click.echo(f"The dead rows are still in the table's files: {why}. Run VACUUM as the owner of the table.")
        click.echo(ELSEWHERE)


def _ask(found: int, channel: str) -> None:
    """Ask on a terminal. Raises UsageError if there is none, and Abort if the answer is no."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(f"this would erase {_events(found)} of channel {channel} for good; pass --yes to do it")
    click.confirm(f"Erase {_events(found)} of channel {channel} for good?", abort=True)


def _events(count: int) -> str:
    return f"{count} event" if count == 1 else f"{count} events"
