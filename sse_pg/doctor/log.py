"""Checks of the log as it lives: who publishes, who listens, what is kept, who serves."""

from __future__ import annotations

from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, ok, unchecked, warning
from sse_pg.version import VERSION

#: Parts of the notification queue in use. PostgreSQL itself warns at one half; when it is full, commits that ring fail.
QUEUE_WARNING, QUEUE_ERROR = 0.05, 0.5
#: Ids beyond the limit, in partitions, before retention counts as not running: what is filled now, and one that waits.
SLACK_PARTITIONS = 2
#: The same in seconds, for an age.
SLACK_SECONDS = 3600.0
#: Most transactions that are named one by one.
NAMED = 5


async def publishers(exam: Examination) -> list[Finding]:
    """Look for transactions that published more than ``old_s`` seconds ago and are not over."""
    rows = await exam.session.rows("doctor_publishers")
    hidden = [row for row in rows if row.age is None]
    late = [row for row in rows if row.age is not None and row.age >= exam.old_s]
    found = [
        warning(
            "publishers",
            f"{_whom(row)} published and has been open for {_duration(row.age)}: its events are not out, "
            "and the partitions it may write to are kept",
            "COMMIT PREPARED keeps its events; this throws them away"
            if row.gid is not None
            else "commit it where it is open; this ends it and throws its events away",
            row.mend,
        )
        for row in late[:NAMED]
    ]
    if len(late) > NAMED:
        found.append(warning("publishers", f"and {len(late) - NAMED} more", "as above"))
    if hidden:
        found.append(
            unchecked(
                "publishers",
                f"{', '.join(_whom(row) for row in hidden[:NAMED])} published and is not over; since when is "
                "not shown to this role",
                "give the role pg_read_all_stats to see it",
            )
        )
    return found or [ok("publishers", f"{len(rows)} in flight, none for {exam.old_s:g} s or longer")]


def _whom(row: object) -> str:
    gid, pid = getattr(row, "gid", None), getattr(row, "pid", None)
    if gid is not None:
        return f"prepared transaction {gid!r} of {getattr(row, 'role', None)}"
    program = getattr(row, "program", None)
    shown = f" ({program}, {getattr(row, 'state', None)})" if program else ""
    return f"pid {pid} of {getattr(row, 'role', None)}{shown}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


async def queue(exam: Examination) -> list[Finding]:
    """Look at the notification queue of the cluster, and who keeps it from being emptied."""
    rows = await exam.session.rows("doctor_queue")
    used = rows[0].used
    if used < QUEUE_WARNING:
        return [ok("queue", f"the notification queue is {used:.1%} full")]
    judge = error if used >= QUEUE_ERROR else warning
    holders = [row for row in rows if row.pid is not None]
    if holders:
        who = ", ".join(f"pid {row.pid} of {row.role} in {row.database} for {_duration(row.age)}" for row in holders)
        words = f"the oldest open transactions are {who}; who listens takes nothing in while one is open"
        mend = "end the oldest that listens"
    elif rows[0].sees_all:
        words, mend = "no transaction is open: a listener does not read", "end the session that listens and hangs"
    else:
        words, mend = "who holds it is not shown to this role", "see it with pg_read_all_stats"
    statements = [row.mend for row in holders[:1]] if holders else [] if rows[0].sees_all else [rows[0].mend_rights]
    return [judge("queue", f"the notification queue is {used:.1%} full; when it is full commits fail; {words}", mend,
                  *statements)]  # fmt: skip


async def retention(exam: Examination) -> list[Finding]:
    """Check that the log is bounded, and that somebody makes partitions and drops old ones."""
    settings, here = exam.settings, await exam.session.row("doctor_retention")
    found = []
    if not settings.keep_events and not settings.keep_hours:
        found.append(
            warning(
                "retention",
                "SSE_PG_KEEP_EVENTS and SSE_PG_KEEP_HOURS are both 0: nothing is ever purged and the disk fills",
                "set one of them",
            )
        )
    if here.in_default:
        found.append(
            warning(
                "retention",
                f"sse_pg.events_default holds events and no partition is ahead of id {here.last}: nobody makes any",
                "let a server run, or `sse-pg purge` now and then, or pg_cron (docs/retention.md); once by hand:",
                here.mend_partitions,
            )
        )
    slack = SLACK_PARTITIONS * settings.partition_size
    too_many = settings.keep_events and here.kept > settings.keep_events + slack
    too_old = settings.keep_hours and here.oldest is not None and (
        here.oldest > settings.keep_hours * 3600 + SLACK_SECONDS
    )  # fmt: skip
    if too_many or too_old:
        much = f"{here.kept} ids are kept" if too_many else f"events of {_duration(here.oldest)} ago are kept"
        limit = (
            f"SSE_PG_KEEP_EVENTS={settings.keep_events}" if too_many else f"SSE_PG_KEEP_HOURS={settings.keep_hours:g}"
        )
        found.append(
            warning(
                "retention",
                f"{much}, with {limit}: nobody purges, or something is in the way (publishers, above)",
                "run `sse-pg purge`; it says what is in the way",
            )
        )
    return found or [
        ok("retention", f"{here.kept} ids kept, {here.partitions} partitions, room for {here.room} ids ahead")
    ]


async def servers(exam: Examination) -> list[Finding]:
    """Name the servers that are up."""
    rows = await exam.session.rows("servers_live")
    if not rows:
        return [ok("servers", "none is up now")]
    count = f"{len(rows)} up" + f" with {sum(row.active_connections for row in rows)} streams"
    others = sorted({f"{row.name} (pid {row.pid}) {row.version}" for row in rows if row.version != VERSION})
    if others:
        return [
            warning(
                "servers", f"{count}; of another version than {VERSION}: {', '.join(others)}", "upgrade what is older"
            )
        ]
    return [ok("servers", f"{count}, version {VERSION}: {', '.join(sorted({row.name for row in rows}))}")]


async def ring(exam: Examination) -> list[Finding]:
    """Check that clients that lost their stream find in memory what they missed."""
    settings = exam.settings
    row = await exam.session.row("doctor_ring", {"events": settings.ring_events})
    back = 1.5 * settings.retry
    if row is None or settings.ring_events == 0 or row[0] >= 2 * back:
        return [ok("ring", f"SSE_PG_RING_EVENTS={settings.ring_events} is enough for the recent rate")]
    return [
        warning(
            "ring",
            f"the last {settings.ring_events} events came within {row[0]:.1f} s, and clients come back after up to "
            f"{back:g} s: all of them will ask the database",
            "raise SSE_PG_RING_EVENTS, and SSE_PG_RING_BYTES with it",
        )
    ]
