"""Brings the schema of a database up to date."""

from __future__ import annotations

import psycopg

from sse_pg.db import queries
from sse_pg.errors import MigrationError

OLDEST = 150000


def migrate(url: str | None) -> list[str]:
    """Apply the migrations that are missing, all in one transaction; return their names.

    Safe to run from many places at once: one applies, the others wait for it and find nothing to do. Where nothing is
    missing it only reads: a role that owns nothing may run it (sql/roles.sql).
    Raises MigrationError for a database that cannot carry the schema.
    """
    try:
        with psycopg.connect(url or "", connect_timeout=10) as conn:
            return _apply(conn)
    except psycopg.OperationalError as error:
        raise MigrationError(f"the database cannot be reached: {str(error).strip()}") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"{error.diag.message_primary}: a server's role needs what sql/roles.sql grants to sse_pg_server"
        ) from error


def _apply(conn: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    if conn.info.server_version < OLDEST:
        raise MigrationError(f"PostgreSQL 15 or later is needed; this is {conn.info.server_version // 10000}")
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise MigrationError(f"the database must be encoded in UTF8; this one is {encoding}")
    conn.execute(queries.query("migration_lock"))
    known = {row[0] for row in conn.execute(queries.query("migration_table"))} if _has_table(conn) else set()
    available = queries.migrations()
    newest = available[-1][0]
    ahead = [number for number in known if isinstance(number, int) and number > newest]
    if ahead:
        raise MigrationError(f"the schema is at version {max(ahead)}, this sse-pg knows up to {newest}: upgrade sse-pg")
    applied = []
    for number, name, text in available:
        if number not in known:
            full_name = f"{number:04}_{name}"
            try:
                conn.execute(text)
                conn.execute(queries.query("migration_applied"), (number, name))
            except psycopg.errors.InsufficientPrivilege as error:
                raise MigrationError(
                    f"migration {full_name} is missing, and the role {conn.info.user} may not apply it "
                    f"({error.diag.message_primary}): run sse-pg migrate as the owner of the schema; "
                    "who makes it first needs CREATE on the database"
                ) from error
            applied.append(full_name)
    return applied


def _has_table(conn: psycopg.Connection[tuple[object, ...]]) -> bool:
    row = conn.execute(queries.query("migration_exists")).fetchone()
    return row is not None and row[0] is not None
