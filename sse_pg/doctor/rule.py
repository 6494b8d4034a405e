"""Check of the access rule: whether sse_pg.authorize() answers, as the server's role and in the time that it may take.

The rule is asked, not read, because it fails for reasons that its text does not show: a table that the role may not
read, a lock, a missing index.
"""

from __future__ import annotations

import time

import psycopg

from sse_pg.db.connection import summary
from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, ok, unchecked, warning

ACTIONS = ("subscribe", "publish")
#: Fraction of the time that the rule may take from which it counts as slow.
SLOW_FRACTION = 0.5


async def rule(exam: Examination) -> list[Finding]:
    """Ask the rule about somebody unknown, and about the newest subscription."""
    if (await exam.session.row("authorize_shipped"))[0]:
        return [ok("rule", "sse_pg.authorize() is as shipped: whoever has a valid token may do what the token says")]
    questions = [
        (row.user_id, action, row.channel) for row in await exam.session.rows("doctor_questions") for action in ACTIONS
    ]
    users, actions, channels = map(list, zip(*questions, strict=True))
    allowed_s = exam.settings.authorize_timeout
    began = time.monotonic()
    try:
        await exam.session.rows(
            "authorize", {"users": users, "actions": actions, "channels": channels}, timeout_s=allowed_s
        )
    except psycopg.errors.ReadOnlySqlTransaction as problem:
        return [
            unchecked("rule", f"sse_pg.authorize() writes, which the doctor does not do: {summary(problem)}", "try it")
        ]
    except psycopg.errors.QueryCanceled:
        return [
            error(
                "rule",
                f"sse_pg.authorize() does not answer {len(questions)} questions within {allowed_s:g} s, so nothing is "
                "allowed: requests get 503, and after a revocation streams end",
                "see what it waits for (EXPLAIN ANALYZE of its statements, pg_locks), or raise "
                "SSE_PG_AUTHORIZE_TIMEOUT_SECONDS",
            )
        ]
    except psycopg.errors.InsufficientPrivilege as problem:
        return [
            error(
                "rule",
                f"sse_pg.authorize() fails, so nothing is allowed: {summary(problem)}",
                "grant the role of the server what the rule reads, or make the function SECURITY DEFINER with an owner "
                "who may read it (docs/authorize.md)",
            )
        ]
    except psycopg.Error as problem:
        if exam.session.conn.closed:
            raise
        return [
            error(
                "rule", f"sse_pg.authorize() fails, so nothing is allowed: {summary(problem)}", "correct the function"
            )
        ]
    took_s = time.monotonic() - began
    if took_s >= SLOW_FRACTION * allowed_s:
        return [
            warning(
                "rule",
                f"sse_pg.authorize() took {took_s:.1f} s for {len(questions)} questions, of the {allowed_s:g} s that "
                "it may take",
                "make it faster (an index on what it looks up), or raise SSE_PG_AUTHORIZE_TIMEOUT_SECONDS",
            )
        ]
    return [ok("rule", f"sse_pg.authorize() answered {len(questions)} questions in {took_s * 1000:.0f} ms")]
