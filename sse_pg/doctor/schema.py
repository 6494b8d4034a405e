"""Checks of the schema: whether it exists, whether this role may use it, and whether it is unchanged."""

from __future__ import annotations

from sse_pg.db import queries
from sse_pg.db.migrate import NO_RECORD, missing
from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, listed, ok, warning
from sse_pg.errors import MigrationError


async def schema(exam: Examination) -> list[Finding]:
    """Check that every migration of this package is applied, and none of a newer package."""
    there, usage = await exam.session.row("doctor_schema")
    if not there:
        return [
            error(
                "schema",
                "the schema sse_pg does not exist",
                "run `sse-pg migrate`; the role needs CREATE on the database",
            )
        ]
    if not usage:
        return [ok("schema", "exists")]  # the check of the rights says the rest
    known = {row.number: row.name for row in await exam.session.rows("migration_table")}
    if not known:
        return [error("schema", NO_RECORD, "run `sse-pg migrate` as the owner of the schema, which fills it again")]
    newest, at = queries.migrations()[-1].number, max(known, default=0)
    try:
        needed, pending = missing(known, post=False), missing(known, post=True)
    except MigrationError:
        return [
            error(
                "schema",
                f"is at version {at}; this sse-pg knows versions up to {newest}",
                "upgrade sse-pg on every machine that runs a server",
            )
        ]
    names = ", ".join(map(str, pending))
    if needed:
        return [error("schema", f"not applied: {names}", "run `sse-pg migrate` as the owner of the schema sse_pg")]
    if pending:
        older = await exam.session.rows("migration_older_servers", (pending[-1].number,))
        up = ", ".join(f"{row.name} (pid {row.pid}, sse-pg {row.version})" for row in older)
        return [
            warning(
                "schema",
                f"the upgrade is not finished: {names} is not applied",
                f"stop the older servers: {up}"
                if up
                else "run `sse-pg migrate --post` as the owner of the schema sse_pg",
            )
        ]
    if at > newest:
        return [ok("schema", f"is at version {at}; this sse-pg knows version {newest} and can use it")]
    return [ok("schema", f"is at version {newest}")]


async def rights(exam: Examination) -> list[Finding]:
    """Check each right that the role of a server needs, and that nobody has one by mistake."""
    findings = []
    if lacking := await exam.session.rows("doctor_rights"):
        findings.append(
            error(
                "rights",
                f"the role lacks {listed([row.what for row in lacking])}",
                "grant them as the owner of the schema, or run sql/roles.sql and grant sse_pg_server to the role",
                *(row.fix for row in lacking),
            )
        )
    if open_to_all := await exam.session.rows("doctor_open_functions"):
        findings.append(
            error(
                "rights",
                f"every role may call {listed([row.what for row in open_to_all])}, "
                "as after a restore without privileges",
                "run `sse-pg migrate` as the owner of the schema, or run this statement",
                open_to_all[0].fix,
            )
        )
    return findings or [
        ok("rights", "the role has every right that a server needs, and no function is open to every role")
    ]


async def log(exam: Examination) -> list[Finding]:
    """Check that the log has its row of facts."""
    here = await exam.session.row("doctor_log")
    if here.there:
        return [ok("log", "its row of facts exists")]
    return [
        error(
            "log",
            "sse_pg.log is empty, as after a truncation or a dump without data",
            "run `sse-pg migrate` as the owner of the schema, or start a server: both create the row",
            here.fix,
        )
    ]


async def moved(exam: Examination) -> list[Finding]:
    """Check that nobody copies events into the log, and that a copy of a log is known as one."""
    here = await exam.session.row("doctor_moved")
    if here.subscription is not None:
        return [
            error(
                "moved",
                f"the subscription {here.subscription} copies events into this log: servers wait until it is dropped "
                "or disabled, and publishing can fail",
                "when the log has moved, drop the subscription as its owner; the servers then continue",
                here.fix_subscription,
            )
        ]
    if here.is_another:
        return [
            warning(
                "moved",
                "the log was restored, copied or moved here, or its server was promoted, and no server has noticed yet",
                "start a server or run `sse-pg migrate`, so that an epoch begins; or run this statement",
                here.fix,
            )
        ]
    return [ok("moved", "the log is the one that a server noted last, and nobody copies events into it")]


async def policies(exam: Examination) -> list[Finding]:
    """Check that row level security hides nothing from the server."""
    rows = await exam.session.rows("doctor_policies")
    if not rows:
        return [ok("policies", "no row level security applies to the server")]
    names = ", ".join(row.which for row in rows)
    return [
        error(
            "policies",
            f"row level security on {names} applies to this role or to the owner of the schema: the server refuses "
            "to read and publish, because a policy could hide events",
            "disable it, or give the roles BYPASSRLS; access rules belong in sse_pg.authorize()",
            *(row.fix for row in rows),
        )
    ]


async def sequence(exam: Examination) -> list[Finding]:
    """Check that ids are drawn one by one, upwards, and only by the sequence."""
    here = await exam.session.row("doctor_sequence")
    if here is None:
        return [error("sequence", "sse_pg.events_id_seq does not exist", "restore the schema sse_pg from a backup")]
    wrong = [
        text
        for text, bad in (
            (f"caches {here.cache} ids per session", here.cache != 1),
            (f"increments by {here.increment}", here.increment != 1),
            ("cycles", here.cycle),
        )
        if bad
    ]
    if wrong:
        return [
            error(
                "sequence",
                f"sse_pg.events_id_seq {' and '.join(wrong)}: streams can skip events, and nothing reports it",
                "reset it to draw ids one by one, then end the sessions that have cached ids",
                here.fix_sequence,
            )
        ]
    if here.highest > here.last:
        return [
            error(
                "sequence",
                f"is at {here.last}, but the highest id in the table is {here.highest}: publishing fails, or streams "
                "skip events",
                "set the sequence to the highest id, then restart the servers",
                here.fix_last,
            )
        ]
    if here.identity != "a":
        return [
            warning(
                "sequence",
                "an INSERT can choose its own ids (GENERATED BY DEFAULT)",
                "allow only ids from the sequence",
                here.fix_identity,
            )
        ]
    return [ok("sequence", f"draws ids one by one and is at {here.last}")]


async def triggers(exam: Examination) -> list[Finding]:
    """Check that the triggers exist and fire."""
    found = [
        error(
            "triggers",
            f"{row.which} {row.how}: {_consequence(row.which)}",
            "make it fire again; streams may have skipped what was published in the meantime",
            row.fix,
        )
        for row in await exam.session.rows("doctor_triggers")
    ]
    return found or [ok("triggers", "all exist and fire")]


def _consequence(which: str) -> str:
    if "subscriptions" in which:
        return "open streams do not follow changes of subscriptions"
    if "emptied" in which:
        return "if somebody empties the table, streams and consumers get no gap for what they lack"
    return "servers do not see the publishers, so streams can skip their events"


async def identity(exam: Examination) -> list[Finding]:
    """Check that a restored backup and a failover are detected."""
    here = await exam.session.row("doctor_identity")
    if here is None:
        return []
    parts = [name for name, seen in (("the cluster", here.cluster), ("its timeline", here.timeline)) if seen is False]
    if parts:
        return [
            warning(
                "identity",
                f"{here.owner}, the owner of the schema, cannot read {' and '.join(parts)}: a restored backup or a "
                "failover is not detected",
                "grant it as a superuser, or call sse_pg.begin_epoch() by hand after each restore and failover",
                here.fix,
            )
        ]
    return [ok("identity", "a restored backup or a failover is detected")]
