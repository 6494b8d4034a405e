"""Checks of the standbys that servers read from."""

from __future__ import annotations

import psycopg

from sse_pg.db.connection import summary
from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, ok, warning
from sse_pg.doctor.session import read_only_session

#: Age in seconds of the newest commit that a standby has replayed from which it counts as late.
LATE_S = 10.0


async def standby(exam: Examination) -> list[Finding]:
    """Check that SSE_PG_READ_DATABASE_URL leads to a standby of this log, and how far behind it is."""
    url = exam.settings.read_database_url
    if url is None:
        return []
    here = await exam.session.row("doctor_standby")
    try:
        async with read_only_session(url) as session:
            there = await session.row("doctor_standby")
    except (psycopg.Error, OSError) as problem:
        return [
            error(
                "standby",
                f"no connection to SSE_PG_READ_DATABASE_URL: {summary(problem)}",
                "check that the standby is up, accepts connections (hot_standby = on), and is the one that is named",
            )
        ]
    if here.identity != there.identity:
        return [
            error(
                "standby",
                "SSE_PG_READ_DATABASE_URL leads to another log than DATABASE_URL",
                "name a physical standby of the primary; a logical subscriber or a restored copy is another log",
            )
        ]
    behind = max(0, here.settled_to - there.settled_to)
    if not there.is_standby:
        return [
            warning(
                "standby",
                "SSE_PG_READ_DATABASE_URL leads to a primary",
                "add target_session_attrs=prefer-standby if it names several hosts",
            )
        ]
    if behind and there.seconds is not None and there.seconds > LATE_S:
        return [
            warning(
                "standby",
                f"the standby lacks {behind} ids, and replayed its newest commit {there.seconds:.0f} s ago",
                "see pg_stat_replication on the primary, and whether replay is paused or delayed",
            )
        ]
    return [ok("standby", f"a standby of the same log, {behind} ids behind")]
