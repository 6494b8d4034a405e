"""Checks of what others have changed in the schema or added to the database."""

from __future__ import annotations

from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, listed, ok, warning


async def functions(exam: Examination) -> list[Finding]:
    """Check owner, search_path and rights of the functions of the schema."""
    rows = await exam.session.rows("doctor_functions")
    if not rows:
        return [ok("functions", "owners, search_path and rights are as they were created")]
    return [
        warning(
            "functions",
            listed([row.what for row in rows]),
            "undo it as the owner of the schema, unless it is intended",
            *(row.fix for row in rows),
        )
    ]


async def user_triggers(exam: Examination) -> list[Finding]:
    """Report triggers of users on the table of events."""
    rows = await exam.session.rows("doctor_user_triggers")
    if not rows:
        return [ok("user_triggers", "there are none on sse_pg.events")]
    before = [row for row in rows if row.before_insert]
    if not before:
        return [ok("user_triggers", f"on sse_pg.events: {listed([row.name for row in rows])}")]
    return [
        warning(
            "user_triggers",
            f"{listed([f'{row.name} ({row.function})' for row in before])} on sse_pg.events can change or discard "
            "events, and an error in it refuses them",
            "keep such a trigger short, and test it with a publish over HTTP: an event that it discards gets 422",
        )
    ]


async def user_rules(exam: Examination) -> list[Finding]:
    """Report rules on the table of events."""
    rows = await exam.session.rows("doctor_user_rules")
    if not rows:
        return [ok("user_rules", "there are none on sse_pg.events")]
    return [
        warning(
            "user_rules",
            f"{listed([row.name for row in rows])} on sse_pg.events can change, repeat or discard events",
            "drop the rule as the owner of the table, and use a trigger instead",
            *(row.fix for row in rows),
        )
    ]


async def published(exam: Examination) -> list[Finding]:
    """Check that every change of a published table can be published, and is."""
    rows = await exam.session.rows("doctor_published")
    bad = [row for row in rows if row.problem]
    if not bad:
        names = listed([row.source for row in rows]) or "none"
        return [ok("published", f"tables whose changes are published: {names}")]
    return [
        warning(
            "published",
            listed([f"{row.source}: {row.problem}" for row in bad]),
            "the owner of the table can call sse_pg.publish_changes() again, or sse_pg.stop_publishing()",
        )
    ]


async def event_triggers(exam: Examination) -> list[Finding]:
    """Check that event triggers of others do not stop maintenance."""
    rows = await exam.session.rows("doctor_event_triggers")
    if not rows:
        return [ok("event_triggers", "every one that fires in maintenance sets its search_path")]
    return [
        warning(
            "event_triggers",
            f"{listed([f'{row.name} ({row.function})' for row in rows])} fires when partitions are created and "
            "dropped, with search_path = pg_catalog: names without a schema are not found, and maintenance stops",
            "give the function a search_path of its own, or write every name with its schema and ignore this",
            *(row.fix for row in rows),
        )
    ]


async def collations(exam: Examination) -> list[Finding]:
    """Check that every index of the schema is sorted by bytes."""
    rows = await exam.session.rows("doctor_collations")
    if not rows:
        return [ok("collations", "every index is sorted by bytes")]
    return [
        warning(
            "collations",
            f"indexes are sorted by collations that can change with an upgrade of the system: "
            f"{listed([row.what for row in rows])}; queries then miss rows",
            'use COLLATE "C" in the schema sse_pg; this rewrites the table',
            *(row.fix for row in rows),
        )
    ]


async def inherited(exam: Examination) -> list[Finding]:
    """Check the settings that sessions inherit from the database and the role."""
    rows = await exam.session.rows("doctor_inherited")
    if not rows:
        return [ok("inherited", "no setting of the database or the role changes what the bus does")]
    return [
        warning(
            "inherited",
            f"{listed([f'{row.setting} of {row.source}' for row in rows])} applies to every session, and to those that "
            "publish with SQL",
            "reset it, and set it in the sessions that need it",
            *(row.fix for row in rows),
        )
    ]
