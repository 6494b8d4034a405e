"""Looks at a database, the ways to it and the settings, and says what is wrong. It changes nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import psycopg

from sse_pg import check_listen, check_log, check_schema, check_server, check_settings
from sse_pg.config import Settings
from sse_pg.database import is_away, summary
from sse_pg.finding import Finding, error, unchecked
from sse_pg.look import Look, looking

#: Seconds after which a transaction that has published is called old.
OLD = 60.0


@dataclass(frozen=True)
class _Check:
    """A check, and the names of those without which it cannot be made."""

    name: str
    run: Callable[[Look, Settings, float], Awaitable[list[Finding]]]
    needs_schema: bool = False
    needs_primary: bool = False


async def examine(settings: Settings, *, old: float = OLD) -> AsyncIterator[Finding]:
    """Yield a finding for each thing looked at, as they come. ``old`` in seconds, see check_log.publishers().

    What cannot be asked, for want of rights, is a finding too; no database error ends this.
    """
    for finding in (
        *check_settings.settings_checks(settings, os.environ),
        check_settings.access(settings),
        check_settings.files(settings),
    ):
        yield finding
    try:
        async with looking(settings.database_url) as look:
            bad: set[str] = set()
            for check in _CHECKS:
                if (check.needs_schema and "schema" in bad) or (check.needs_primary and "primary" in bad):
                    continue
                for finding in await _run(check, look, settings, old):
                    if finding.state == "error":
                        bad.add(finding.name)
                    yield finding
    except (psycopg.Error, OSError) as problem:
        yield error(
            "database", f"cannot be reached: {summary(problem)}", "see that it is up, and that DATABASE_URL leads to it"
        )


async def _run(check: _Check, look: Look, settings: Settings, old: float) -> list[Finding]:
    try:
        return await check.run(look, settings, old)
    except psycopg.errors.InsufficientPrivilege as problem:
        return [unchecked(check.name, f"could not be looked at: {summary(problem)}", "see rights")]
    except psycopg.Error as problem:
        if is_away(problem) and look.conn.closed:
            raise
        return [error(check.name, f"could not be looked at: {summary(problem)}", "see what PostgreSQL logs about it")]


async def _schema(look: Look, _settings: Settings, _old: float) -> list[Finding]:
    return [await check_schema.schema(look)]


async def _payload(look: Look, settings: Settings, _old: float) -> list[Finding]:
    row = await look.row("doctor_payload")
    return [check_settings.payload(settings, row and row[0])]


#: In the order of the report: what the rest stands on comes first.
_CHECKS = (
    _Check("server", lambda look, settings, _: check_server.server(look, settings)),
    _Check("connections", lambda look, settings, _: check_server.connections(look, settings)),
    _Check("clock", lambda look, _settings, _old: check_server.clock(look)),
    _Check("listen", lambda _look, settings, _: check_listen.listening(settings), needs_primary=True),
    _Check("requests", lambda _look, settings, _: check_listen.requests(settings)),
    _Check("schema", _schema),
    _Check("rights", lambda look, _settings, _old: check_schema.rights(look), needs_schema=True),
    _Check("sequence", lambda look, _settings, _old: check_schema.sequence(look), needs_schema=True),
    _Check("triggers", lambda look, _settings, _old: check_schema.triggers(look), needs_schema=True),
    _Check("identity", lambda look, _settings, _old: check_schema.identity(look), needs_schema=True),
    _Check("payload", _payload, needs_schema=True),
    _Check("publishers", lambda look, _settings, old: check_log.publishers(look, old), needs_schema=True),
    _Check("queue", lambda look, _settings, _old: check_log.queue(look)),
    _Check("retention", lambda look, settings, _: check_log.retention(look, settings), needs_schema=True),
    _Check("ring", lambda look, settings, _: check_log.ring(look, settings), needs_schema=True),
    _Check("servers", lambda look, _settings, _old: check_log.servers(look), needs_schema=True),
)
