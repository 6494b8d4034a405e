"""The SQL that ``migrate`` would run, for tools that run migrations themselves: Alembic, Django, Flyway."""

from __future__ import annotations

import psycopg

from sse_pg.db import queries
from sse_pg.db.hosts import parameters
from sse_pg.db.migrate import NO_RECORD, missing, recorded
from sse_pg.db.queries import query
from sse_pg.errors import MigrationError
from sse_pg.version import VERSION


def migration_script(url: str | None, *, after: int | None, post: bool = False) -> str:
    """Return the steps as a script for one transaction, without commands of psql; "" if none is missing.

    With ``after`` it has the steps after this number, and no database is asked. Otherwise it has those that the
    database at ``url`` lacks. ``post`` as for ``migrate``.
    Raises MigrationError if the database cannot be reached, has a newer schema, or does not know what it has.
    """
    if after is None:
        known = _ask(url)
    else:
        known = {step.number: step.name for step in queries.migrations() if step.number <= after}
    steps = missing(known, post=post)
    if not steps:
        return ""
    parts = [f"-- sse-pg {VERSION}: {', '.join(map(str, steps))}", query("migration_script_begin").decode()]
    for step in steps:
        note = query("migration_script_note").decode().replace("0, 'NAME'", f"{step.number}, '{step.name}'")
        parts += [f"-- {step}", step.text.decode().rstrip(), note]
    return "\n\n".join([*parts, query("migration_script_end").decode()]) + "\n"


def _ask(url: str | None) -> dict[int, str]:
    try:
        with psycopg.connect(url or "", connect_timeout=10, autocommit=True, **parameters(url)) as conn:
            known = recorded(conn)
    except psycopg.OperationalError as error:
        raise MigrationError(f"the database cannot be reached: {str(error).strip()}") from error
    if known == {}:
        raise MigrationError(f"{NO_RECORD}: sse-pg migrate writes the record again")
    return known or {}
