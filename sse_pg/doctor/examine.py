"""Runs the checks of a database, the connections to it and the settings. It changes nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import psycopg

from sse_pg.config import Settings
from sse_pg.db.connect_failure import cause_of
from sse_pg.db.connection import is_unavailable, summary
from sse_pg.doctor import additions, listen, log, primaries, rule, schema, server, standby
from sse_pg.doctor import settings as settings_checks
from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, unchecked
from sse_pg.doctor.session import read_only_session

#: Age in seconds from which an open transaction that has published counts as old.
OLD_TRANSACTION_S = 60.0


@dataclass(frozen=True)
class _Check:
    """A check, and the names of those that must have found no error before it is made."""

    name: str
    run: Callable[[Examination], Awaitable[list[Finding]]]
    needs: frozenset[str] = frozenset()


async def examine(settings: Settings, *, old: float = OLD_TRANSACTION_S) -> AsyncIterator[Finding]:
    """Yield the findings as they are made. ``old`` is in seconds, see log.publishers().

    A check that the role has no right to make is a finding too. No database error is raised.
    """
    for finding in (
        *settings_checks.settings_checks(settings, os.environ),
        settings_checks.access(settings, os.environ),
        settings_checks.files(settings),
    ):
        yield finding
    try:
        async with read_only_session(settings.database_url) as session:
            exam = Examination(session, settings, old)
            bad: set[str] = set()
            for check in _CHECKS:
                if bad & check.needs:
                    continue
                for finding in await _run(check, exam):
                    if finding.state == "error":
                        bad.add(finding.name)
                    yield finding
    except (psycopg.Error, OSError) as problem:
        cause = cause_of(problem)
        yield error("database", f"cannot be reached: {cause.reason} ({summary(problem)})", cause.fix)


async def _run(check: _Check, exam: Examination) -> list[Finding]:
    try:
        return await check.run(exam)
    except psycopg.errors.InsufficientPrivilege as problem:
        return [unchecked(check.name, f"could not be checked: {summary(problem)}", "see the finding about rights")]
    except psycopg.Error as problem:
        if is_unavailable(problem) and exam.session.conn.closed:
            raise
        return [error(check.name, f"could not be checked: {summary(problem)}", "see what PostgreSQL logs about it")]


_SCHEMA = frozenset({"schema"})
_LOG = frozenset({"schema", "log"})

#: In the order of the report: a check comes after those that it needs.
_CHECKS = (
    _Check("server", server.server),
    _Check("primaries", primaries.primaries),
    _Check("connections", server.connections),
    _Check("clock", server.clock),
    _Check("listen", listen.listening, frozenset({"primary"})),
    _Check("requests", listen.requests),
    _Check("schema", schema.schema),
    _Check("rights", schema.rights, _SCHEMA),
    _Check("rule", rule.rule, frozenset({"schema", "rights"})),
    _Check("standby", standby.standby, _SCHEMA),
    _Check("log", schema.log, _SCHEMA),
    _Check("moved", schema.moved, _LOG),
    _Check("policies", schema.policies, _SCHEMA),
    _Check("functions", additions.functions, _SCHEMA),
    _Check("inherited", additions.inherited),
    _Check("sequence", schema.sequence, _SCHEMA),
    _Check("triggers", schema.triggers, _SCHEMA),
    _Check("identity", schema.identity, _SCHEMA),
    _Check("payload", settings_checks.payload, _SCHEMA),
    _Check("collations", additions.collations, _SCHEMA),
    _Check("user_triggers", additions.user_triggers, _SCHEMA),
    _Check("user_rules", additions.user_rules, _SCHEMA),
    _Check("published", additions.published, _SCHEMA),
    _Check("event_triggers", additions.event_triggers),
    _Check("locks", log.locks, _SCHEMA),
    _Check("publishers", log.publishers, _SCHEMA),
    _Check("queue", log.queue),
    _Check("retention", log.retention, _LOG),
    _Check("consumers", log.consumers, _SCHEMA),
    _Check("ring", log.ring, _SCHEMA),
    _Check("servers", log.servers, _SCHEMA),
)
