"""Checks of the log in operation: open publishers, the notification queue, retention, servers."""

from __future__ import annotations

from sse_pg.db.maintenance import retention_used
from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import MAX_NAMED, Finding, error, listed, ok, unchecked, warning
from sse_pg.version import VERSION

#: Fractions of the notification queue in use. PostgreSQL itself warns at one half; when the queue is full, commits that
#: send a notification fail.
QUEUE_WARNING_FRACTION, QUEUE_ERROR_FRACTION = 0.05, 0.5
#: Number of partitions beyond the limit before retention counts as not running: the one that is being filled, and one
#: that waits to be purged.
SLACK_PARTITIONS = 2
#: The same for a limit by age.
AGE_SLACK_S = 3600.0
#: Fraction of the retention from which an event that a consumer lacks is about to be purged.
CONSUMER_WARNING_FRACTION = 0.5
#: The same for channels with their own retention, which is applied in every round of maintenance.
KEPT_SLACK_S = 600.0


async def locks(exam: Examination) -> list[Finding]:
    """Find sessions that hold advisory locks of the bus without being a server or a publisher."""
    rows = await exam.session.rows("doctor_locks", {"old_s": exam.old_s})
    found = []
    for row in rows[:MAX_NAMED]:
        program = f" ({row.program})" if row.program else ""
        report = error if row.exclusive else warning
        what = "can stop publishers, servers or maintenance" if row.exclusive else "can delay maintenance or a purge"
        found.append(
            report(
                "locks",
                f"pid {row.pid} of {row.role or 'an unknown role'}{program} holds advisory locks of the bus "
                f"({', '.join(row.classes)}) and is no server and no publisher: it {what}",
                "end it; find out why it takes these locks",
                row.fix,
            )
        )
    if len(rows) > MAX_NAMED:
        found.append(warning("locks", f"and {len(rows) - MAX_NAMED} more", "as above"))
    return found or [ok("locks", "only servers and publishers hold advisory locks of the bus")]


async def publishers(exam: Examination) -> list[Finding]:
    """Find transactions that have published and are still open after ``old_s`` seconds."""
    rows = await exam.session.rows("doctor_publishers")
    hidden = [row for row in rows if row.age is None]
    late = [row for row in rows if row.age is not None and row.age >= exam.old_s]
    found = [
        warning(
            "publishers",
            f"{_publisher(row)} has published and has been open for {_duration(row.age)}: its events are not "
            "delivered, and the partitions that it may have written to are kept",
            "COMMIT PREPARED publishes its events; this statement discards them"
            if row.gid is not None
            else "commit it in its own session; this statement ends it and discards its events",
            row.fix,
        )
        for row in late[:MAX_NAMED]
    ]
    if len(late) > MAX_NAMED:
        found.append(warning("publishers", f"and {len(late) - MAX_NAMED} more", "as above"))
    if hidden:
        found.append(
            unchecked(
                "publishers",
                f"{', '.join(_publisher(row) for row in hidden[:MAX_NAMED])} has published and is still open; this "
                "role may not see for how long",
                "grant pg_read_all_stats to the role",
            )
        )
    return found or [ok("publishers", f"{len(rows)} open, none for {exam.old_s:g} s or longer")]


def _publisher(row: object) -> str:
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
    """Check the notification queue of the cluster, and who keeps it from being emptied."""
    rows = await exam.session.rows("doctor_queue")
    used = rows[0].used
    if used < QUEUE_WARNING_FRACTION:
        return [ok("queue", f"the notification queue is {used:.1%} full")]
    finding = error if used >= QUEUE_ERROR_FRACTION else warning
    holders = [row for row in rows if row.pid is not None]
    if holders:
        who = ", ".join(f"pid {row.pid} of {row.role} in {row.database} for {_duration(row.age)}" for row in holders)
        cause = f"a session that listens reads nothing during a transaction, and the oldest open ones are {who}"
        fix = "end the oldest of them that listens"
    elif rows[0].sees_all:
        cause, fix = "no transaction is open: a session that listens does not read", "end that session"
    else:
        cause, fix = "this role may not see who holds it", "grant pg_read_all_stats to the role"
    statements = [row.fix for row in holders[:1]] if holders else [] if rows[0].sees_all else [rows[0].fix_rights]
    return [finding("queue", f"the notification queue is {used:.1%} full; when it is full, commits fail; {cause}", fix,
                  *statements)]  # fmt: skip


async def retention(exam: Examination) -> list[Finding]:
    """Check that the log has a limit, and that partitions are created ahead and purged."""
    settings, here = exam.settings, await exam.session.row("doctor_retention")
    if here is None:
        return []  # sse_pg.log is empty, which has a finding of its own
    found = []
    if not settings.keep_events and not settings.keep_hours:
        found.append(
            warning(
                "retention",
                "SSE_PG_KEEP_EVENTS and SSE_PG_KEEP_HOURS are both 0: nothing is ever purged, so the disk fills up",
                "set one of them",
            )
        )
    if here.in_default:
        found.append(
            warning(
                "retention",
                f"sse_pg.events_default holds events, because there is no partition for id {here.last}: nobody creates "
                "partitions",
                "run a server, or run `sse-pg purge` regularly, or use pg_cron (docs/retention.md); once by hand:",
                here.fix_partitions,
            )
        )
    slack = SLACK_PARTITIONS * settings.partition_size
    too_many = settings.keep_events and here.kept > settings.keep_events + slack
    too_old = settings.keep_hours and here.oldest is not None and (
        here.oldest > settings.keep_hours * 3600 + AGE_SLACK_S
    )  # fmt: skip
    if too_many or too_old:
        kept = f"{here.kept} ids are kept" if too_many else f"events that are {_duration(here.oldest)} old are kept"
        limit = (
            f"SSE_PG_KEEP_EVENTS={settings.keep_events}" if too_many else f"SSE_PG_KEEP_HOURS={settings.keep_hours:g}"
        )
        found.append(
            warning(
                "retention",
                f"{kept}, although {limit}: nobody purges, or an old transaction (publishers, above) prevents it",
                "run `sse-pg purge`; it says what prevents it",
            )
        )
    late = [row for row in await exam.session.rows("doctor_kept") if row.late is not None and row.late >= KEPT_SLACK_S]
    if late:
        names = listed([f"{row.pattern} ({_duration(row.late)})" for row in late])
        found.append(
            warning(
                "retention",
                f"events are kept for longer than keep() says, in {names}: nobody purges, or a server that is up has "
                "not read them, or an old transaction (publishers, above) prevents it",
                "run `sse-pg purge`; if they stay, sse_pg.live_servers() shows which server lags",
            )
        )
    return found or [
        ok("retention", f"{here.kept} ids in the log, {here.partitions} partitions, room for {here.room} more ids")
    ]


async def consumers(exam: Examination) -> list[Finding]:
    """Find named consumers from which a purge will soon take events."""
    rows = await exam.session.rows("doctor_consumers")
    found = [
        warning(
            "consumers",
            f"the consumer {row.name} lacks {row.lag} events, and the oldest of them has {used:.0%} of the retention "
            "behind it: when it is purged, the consumer gets a gap",
            "see whether the consumer runs; if it is not used any more, drop it:",
            row.fix,
        )
        for row in rows
        if (used := retention_used(exam.settings, row.ids_behind, row.age or 0.0)) >= CONSUMER_WARNING_FRACTION
    ]
    if len(found) > MAX_NAMED:
        found = [*found[:MAX_NAMED], warning("consumers", f"and {len(found) - MAX_NAMED} more", "as above")]
    if not rows:
        return [ok("consumers", "there are no named consumers")]
    lag = max(row.lag for row in rows)
    return found or [ok("consumers", f"{len(rows)} named consumers; the furthest behind lacks {lag} events")]


async def servers(exam: Examination) -> list[Finding]:
    """List the servers that are up, and those of another version."""
    rows = await exam.session.rows("servers_live")
    if not rows:
        return [ok("servers", "no server is up")]
    count = f"{len(rows)} up" + f" with {sum(row.active_connections for row in rows)} streams"
    others = sorted({f"{row.name} (pid {row.pid}) {row.version}" for row in rows if row.version != VERSION})
    if others:
        return [
            warning(
                "servers", f"{count}; of another version than {VERSION}: {', '.join(others)}", "upgrade the older ones"
            )
        ]
    return [ok("servers", f"{count}, version {VERSION}: {', '.join(sorted({row.name for row in rows}))}")]


async def ring(exam: Examination) -> list[Finding]:
    """Check that clients that reconnect find the events that they missed in memory."""
    settings = exam.settings
    row = await exam.session.row("doctor_ring", {"events": settings.ring_events})
    reconnect_s = 1.5 * settings.retry
    if row is None or settings.ring_events == 0 or row[0] >= 2 * reconnect_s:
        return [ok("ring", f"SSE_PG_RING_EVENTS={settings.ring_events} is enough at the recent rate")]
    return [
        warning(
            "ring",
            f"the last {settings.ring_events} events were published within {row[0]:.1f} s, and clients reconnect after "
            f"up to {reconnect_s:g} s: all of them will query the database",
            "raise SSE_PG_RING_EVENTS and SSE_PG_RING_BYTES",
        )
    ]
