"""Checks of the PostgreSQL server: version, role, durability, connections, clock."""

from __future__ import annotations

import time
from collections.abc import Callable

from psycopg.conninfo import conninfo_to_dict

from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, ok, warning
from sse_pg.version import NEWEST_POSTGRES, OLDEST_POSTGRES

#: Tolerated difference between the clocks of this machine and the database.
MAX_CLOCK_DIFFERENCE_S = 2.0


async def server(exam: Examination) -> list[Finding]:
    """Check version, primary or replica, encoding, and whether commits are durable."""
    here = await exam.session.row("doctor_server")
    found = [
        version(here.version, here.major, here.role, here.database),
        _primary(here.replica, here.read_only == "on", here.fix_read_only, exam.settings.database_url),
    ]
    if here.encoding == "UTF8":
        found.append(ok("encoding", "UTF8"))
    else:
        found.append(
            error(
                "encoding",
                f"the database is encoded in {here.encoding}",
                "create a database with ENCODING 'UTF8' and move to it",
            )
        )
    found.append(_durable(here.fsync, here.full_page_writes, here.synchronous_commit))
    return found


def version(text: str, major: int, role: str, database: str) -> Finding:
    """Return the finding about a version of PostgreSQL."""
    here = f"PostgreSQL {text}, database {database}, role {role}"
    if major < OLDEST_POSTGRES:
        return error("version", here, f"upgrade it: PostgreSQL {OLDEST_POSTGRES} or later is required")
    if major > NEWEST_POSTGRES:
        return warning(
            "version",
            here,
            f"sse-pg is tested with PostgreSQL {OLDEST_POSTGRES} to {NEWEST_POSTGRES}: check for a newer sse-pg",
        )
    return ok("version", here)


def _primary(replica: bool, read_only: bool, fix: str, url: str | None) -> Finding:
    several = "," in str(conninfo_to_dict(url or "").get("host", ""))
    steered = conninfo_to_dict(url or "").get("target_session_attrs") in ("read-write", "primary")
    if replica:
        return error(
            "primary",
            "this is a replica: it accepts neither events nor LISTEN",
            "name the primary in DATABASE_URL; if it names several hosts, add target_session_attrs=read-write",
        )
    if read_only:
        return error(
            "primary",
            "transactions are read-only by default (default_transaction_read_only)",
            "reset default_transaction_read_only",
            fix,
        )
    if several and not steered:
        return warning(
            "primary",
            "DATABASE_URL names several hosts; libpq takes the first that answers, even if it is a replica",
            "add target_session_attrs=read-write to DATABASE_URL",
        )
    return ok("primary", "accepts writes")


def _durable(fsync: str, full_page_writes: str, synchronous_commit: str) -> Finding:
    off = [name for name, value in (("fsync", fsync), ("full_page_writes", full_page_writes)) if value == "off"]
    if off:
        return warning(
            "durability",
            f"{' and '.join(off)} {'is' if len(off) == 1 else 'are'} off: a crash of the machine can lose or damage "
            "all events",
            f"set {' and '.join(f'{name} = on' for name in off)} in postgresql.conf and reload",
        )
    if synchronous_commit == "off":
        return ok("durability", "synchronous_commit is off, but transactions that publish are flushed all the same")
    return ok("durability", f"commits are flushed (synchronous_commit = {synchronous_commit})")


async def connections(exam: Examination) -> list[Finding]:
    """Check whether the server allows as many connections as these settings need."""
    settings = exam.settings
    needed = settings.workers * (settings.pool_size + 2)
    here = await exam.session.row("doctor_connections", {"needed": needed})
    needs = f"{settings.workers} x (SSE_PG_POOL_SIZE {settings.pool_size} + 2 that read the log) = {needed} connections"
    for limit, who, fix in (
        (here.role_limit, "the role", here.fix_role),
        (here.database_limit, "the database", here.fix_database),
        (here.allowed, "max_connections minus the reserved ones", ""),
    ):
        if limit is not None and limit < needed:
            return [
                error(
                    "connections",
                    f"{needs}; {who} allows {limit}",
                    "lower SSE_PG_POOL_SIZE or SSE_PG_WORKERS, or raise the limit",
                    fix,
                )
            ]
    if here.used > here.allowed * 0.9:
        return [
            warning(
                "connections",
                f"{here.used} of {here.allowed} connections are in use",
                "raise max_connections, or see in pg_stat_activity who holds them",
            )
        ]
    return [ok("connections", f"{needs}; {here.allowed} allowed, {here.used} in use")]


async def clock(exam: Examination, now: Callable[[], float] = time.time) -> list[Finding]:
    """Compare this machine's clock with the database's. The result is exact to half the time of the round trip."""
    before = now()
    (there,) = await exam.session.row("doctor_clock")
    after = now()
    ahead = (before + after) / 2 - there
    unsure = (after - before) / 2
    if abs(ahead) - unsure > MAX_CLOCK_DIFFERENCE_S:
        return [
            warning(
                "clock",
                f"this machine is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the database; "
                "createdAt is the database's time, so delays and expiry times are calculated wrongly",
                "run NTP (chrony, systemd-timesyncd) on both machines",
            )
        ]
    return [ok("clock", f"within {abs(ahead) + unsure:.2f} s of the database's")]
