"""Checks of the PostgreSQL server: can it carry the bus, and does it keep what it is given."""

from __future__ import annotations

import time
from collections.abc import Callable

from psycopg.conninfo import conninfo_to_dict

from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, ok, warning
from sse_pg.version import NEWEST_POSTGRES, OLDEST_POSTGRES

#: Seconds that two clocks may differ.
CLOCK_SECONDS = 2.0


async def server(exam: Examination) -> list[Finding]:
    """Check version, primary or replica, encoding, and whether commits are durable."""
    here = await exam.session.row("doctor_server")
    found = [
        version(here.version, here.major, here.role, here.database),
        _primary(here.replica, here.read_only == "on", here.mend_read_only, exam.settings.database_url),
    ]
    if here.encoding == "UTF8":
        found.append(ok("encoding", "UTF8"))
    else:
        found.append(
            error("encoding", f"the database is encoded in {here.encoding}", "make another with ENCODING 'UTF8'")
        )
    found.append(_durable(here.fsync, here.full_page_writes, here.synchronous_commit))
    return found


def version(text: str, major: int, role: str, database: str) -> Finding:
    """Judge a version of PostgreSQL."""
    here = f"PostgreSQL {text}, database {database}, role {role}"
    if major < OLDEST_POSTGRES:
        return error("version", here, f"PostgreSQL {OLDEST_POSTGRES} or later is needed: upgrade it")
    if major > NEWEST_POSTGRES:
        return warning(
            "version",
            here,
            f"sse-pg is tested with PostgreSQL {OLDEST_POSTGRES} to {NEWEST_POSTGRES}: look for a newer sse-pg",
        )
    return ok("version", here)


def _primary(replica: bool, read_only: bool, mend: str, url: str | None) -> Finding:
    several = "," in str(conninfo_to_dict(url or "").get("host", ""))
    steered = conninfo_to_dict(url or "").get("target_session_attrs") in ("read-write", "primary")
    if replica:
        return error(
            "primary",
            "this is a replica: it takes no events and no LISTEN",
            "name the primary in DATABASE_URL; with several hosts add target_session_attrs=read-write",
        )
    if read_only:
        return error(
            "primary",
            "transactions are read only by default (default_transaction_read_only)",
            "set default_transaction_read_only = off where it is set on",
            mend,
        )
    if several and not steered:
        return warning(
            "primary",
            "DATABASE_URL names several hosts, and the first that answers is taken, were it a replica",
            "add target_session_attrs=read-write to DATABASE_URL",
        )
    return ok("primary", "takes writes")


def _durable(fsync: str, full_page_writes: str, synchronous_commit: str) -> Finding:
    off = [name for name, value in (("fsync", fsync), ("full_page_writes", full_page_writes)) if value == "off"]
    if off:
        return warning(
            "durability",
            f"{' and '.join(off)} off: a crash of the machine can lose or damage every event",
            f"set {' and '.join(f'{name} = on' for name in off)} in postgresql.conf and reload",
        )
    if synchronous_commit == "off":
        return ok("durability", "synchronous_commit is off; commits that publish are flushed all the same")
    return ok("durability", f"commits are flushed (synchronous_commit = {synchronous_commit})")


async def connections(exam: Examination) -> list[Finding]:
    """Check whether the connections that these settings ask for can be had."""
    settings = exam.settings
    needed = settings.workers * (settings.pool_size + 2)
    here = await exam.session.row("doctor_connections", {"needed": needed})
    asks = f"{settings.workers} x (SSE_PG_POOL_SIZE {settings.pool_size} + 2 that follow the log) = {needed}"
    for limit, who, mend in (
        (here.role_limit, "the role", here.mend_role),
        (here.database_limit, "the database", here.mend_database),
        (here.allowed, "max_connections, less what is reserved,", ""),
    ):
        if limit is not None and limit < needed:
            return [
                error(
                    "connections",
                    f"{asks}; {who} allows {limit}",
                    "lower SSE_PG_POOL_SIZE or SSE_PG_WORKERS, or allow more",
                    mend,
                )
            ]
    if here.used > here.allowed * 0.9:
        return [
            warning(
                "connections",
                f"{here.used} of {here.allowed} connections are in use",
                "raise max_connections, or find who holds them in pg_stat_activity",
            )
        ]
    return [ok("connections", f"{asks}; {here.allowed} allowed, {here.used} in use by all")]


async def clock(exam: Examination, now: Callable[[], float] = time.time) -> list[Finding]:
    """Compare this machine's clock with the database's, give or take the way there."""
    before = now()
    (there,) = await exam.session.row("doctor_clock")
    after = now()
    ahead = (before + after) / 2 - there
    unsure = (after - before) / 2
    if abs(ahead) - unsure > CLOCK_SECONDS:
        return [
            warning(
                "clock",
                f"this machine is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the database; "
                "createdAt is the database's time, and delays and expiries are reckoned wrong",
                "run NTP (chrony, systemd-timesyncd) on both",
            )
        ]
    return [ok("clock", f"within {abs(ahead) + unsure:.2f} s of the database's")]
