"""Check that of several hosts in a connection string only one accepts writes.

After a failover the old primary may come back as a primary. Programs then publish into two logs, depending on which
host each of them reaches first, and nobody sees an error.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import psycopg

from sse_pg.db.connect_failure import cause_of
from sse_pg.db.hosts import Hosts
from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, ok, warning
from sse_pg.doctor.session import read_only_session

FIX = (
    "stop the one that should not be the primary, and make it a standby of the other (pg_rewind, pg_basebackup); what "
    "was published there since is in no stream of the other"
)


class _Host(NamedTuple):
    """What a host said: when its server started, and whether it accepts writes; or why it did not answer."""

    name: str
    started: str = ""
    accepts_writes: bool = False
    failure: str = ""


async def primaries(exam: Examination) -> list[Finding]:
    """Ask each host of DATABASE_URL and SSE_PG_LISTEN_DATABASE_URL by itself."""
    settings = exam.settings
    urls = [settings.database_url, *([] if settings.polls else [settings.listen_url])]
    named = {
        _name(parameters): (url, parameters) for url in dict.fromkeys(urls) for parameters in Hosts(url).one_by_one
    }
    if len(named) < 2:
        return []
    hosts = await asyncio.gather(*(_ask(name, *how) for name, how in named.items()))
    writable: dict[str, list[str]] = {}  # by server: one may have several names
    for host in hosts:
        if host.accepts_writes:
            writable.setdefault(host.started, []).append(host.name)
    if len(writable) > 1:
        each = " and ".join("=".join(names) for names in writable.values())
        return [error("primaries", f"{each} are different servers, and each accepts writes", FIX)]
    silent = [f"{host.name} ({host.failure})" for host in hosts if host.failure]
    if silent:
        found = f"of the {len(hosts)} hosts, these did not answer: {', '.join(silent)}"
        return [
            warning("primaries", found, "nothing, if they are switched off; this check cannot see what they accept")
        ]
    return [ok("primaries", f"of the {len(hosts)} hosts, {len(writable)} accepts writes")]


async def _ask(name: str, url: str | None, parameters: dict[str, Any]) -> _Host:
    try:
        async with read_only_session(url, parameters) as session:
            here = await session.row("doctor_writable")
    except (psycopg.Error, OSError) as problem:
        return _Host(name, failure=cause_of(problem).reason)
    return _Host(name, here.started, here.accepts_writes)


def _name(parameters: dict[str, Any]) -> str:
    host = parameters.get("host") or parameters.get("hostaddr") or "the default host"
    return f"{host}:{parameters.get('port') or 5432}"
