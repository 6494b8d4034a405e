"""Brings the schema of a database up to date.

A release that changes the schema has steps of two kinds. Pre steps add; servers of the release before keep working on
what they make, so they run before the new code is out. Post steps remove what only older servers use, so they run
when those are gone. All steps form one line: the schema is always the result of the first so many.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import psycopg

from sse_pg.db import hosts, queries
from sse_pg.db.queries import Migration, query
from sse_pg.errors import MigrationError
from sse_pg.version import OLDEST_POSTGRES

log = logging.getLogger(__name__)

#: How long a step waits for a lock before it lets everybody else go first.
STEP_LOCK_TIMEOUT = "1s"
#: Seconds between the attempts of a step that did not get its locks, and seconds after which it gives up.
RETRY_PAUSE_S = 1.0
STEP_DEADLINE_S = 120.0
#: How long a wait for the lock for migrations takes until its holder is logged (PostgreSQL's lock_timeout) ...
LOCK_TIMEOUT = "2s"
#: ... and for how many seconds it is waited for: another process may be applying a long step.
LOCK_DEADLINE_S = 600.0


#: What check_epoch() raises while the log cannot be served.
LOG_UNAVAILABLE = "SP503"
#: What is wrong with a schema that has no record of its migrations.
NO_RECORD = "sse_pg.migrations is empty although the schema exists, as after a truncation or in a copy without data"


def migrate(url: str | None, *, post: bool = False) -> list[str]:
    """Apply the steps that are missing, each in a transaction of its own; return their names.

    Without `post` the post steps at the end are left out; one that stands before a missing pre step is applied. No post
    step is applied while a server that is older than the step is up.

    Safe to run from many places at once: one applies a step, the others wait for it. If nothing is missing it only
    reads, so a role that owns nothing may run it (sql/roles.sql). The owner also makes good what a copy or a restore
    has left out: the rows of the schema's own tables, and who may call the functions. If the log was moved here, an
    epoch begins.
    Raises MigrationError for a database that cannot carry the schema.
    """
    applied: list[str] = []
    try:
        with psycopg.connect(
            url or "", connect_timeout=10, autocommit=True, client_encoding="UTF8", **hosts.parameters(url)
        ) as conn:
            _check_server(conn)
            while (step := _apply_next(conn, post=post)) is not None:
                applied.append(str(step))
            _complete(conn)
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise MigrationError(
            f"{error.diag.message_primary}: this is a standby, or default_transaction_read_only is on for the role or "
            "the database; sse-pg doctor says which"
        ) from error
    except psycopg.errors.QueryCanceled as error:
        raise MigrationError(f"the migration was ended from outside: {error.diag.message_primary}") from error
    except psycopg.OperationalError as error:
        raise MigrationError(f"the database cannot be reached: {str(error).strip()}") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"{error.diag.message_primary}: a server's role needs what sql/roles.sql grants to sse_pg_server"
        ) from error
    return applied


def missing(known: Mapping[int, str], *, post: bool) -> list[Migration]:
    """Return the steps that are not applied, in order; without `post` up to the last pre step.

    `known` is what the database has: name by number. Raises MigrationError if a newer release has removed something.
    """
    steps = queries.migrations()
    newest = steps[-1].number
    if ahead := [number for number, name in known.items() if number > newest and not name.startswith("pre_")]:
        _refuse_newer(max(ahead))
    left = [step for step in steps if step.number not in known]
    while left and left[-1].is_post and not post:
        left.pop()
    return left


def recorded(conn: psycopg.Connection[Any]) -> dict[int, str] | None:
    """Read which steps the database records as applied: name by number. None if there is no schema."""
    (exists,) = conn.execute(query("migration_exists")).fetchone() or (None,)
    return dict(conn.execute(query("migration_table")).fetchall()) if exists else None


def _check_server(conn: psycopg.Connection[Any]) -> None:
    major = conn.info.server_version // 10000
    if major < OLDEST_POSTGRES:
        raise MigrationError(f"PostgreSQL {OLDEST_POSTGRES} or later is needed; this is {major}")
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise MigrationError(f"the database must be encoded in UTF8; this one is {encoding}")
    if conn.execute(query("migration_is_standby")).fetchone() == (True,):
        raise MigrationError(
            "DATABASE_URL leads to a standby, which cannot be written to; it must lead to the primary (if it names "
            "several hosts, add target_session_attrs=read-write). To read from standbys, name them in "
            "SSE_PG_READ_DATABASE_URL"
        )


def _begin(conn: psycopg.Connection[Any]) -> None:
    """Set up the transaction, and wait until nobody else migrates."""
    conn.execute(query("session_settings"), {"local": True, "limits": False})
    conn.execute(query("migration_limits"))
    _lock(conn)


def _complete(conn: psycopg.Connection[Any]) -> None:
    """As the owner, set the rights on the functions, and look whether the log was moved."""
    with conn.transaction():
        _begin(conn)
        if conn.execute(query("migration_owner")).fetchone() != (True,):
            return
        if roles := conn.execute(query("migration_ungranted")).fetchall():
            log.warning(
                "these roles have no rights in the schema, as after a restore without privileges: %s; run "
                "sql/roles.sql",
                ", ".join(role for (role,) in roles),
            )
        conn.execute(query("migration_rights"))
    try:
        with conn.transaction():
            _begin(conn)
            if conn.execute(query("migration_epoch")).fetchone() == (True,):
                log.warning("the log was restored, copied or moved here, so a new epoch begins")
    except psycopg.Error as error:
        if error.sqlstate != LOG_UNAVAILABLE:
            raise
        log.warning("%s", error.diag.message_primary)  # a subscription copies into it; the servers wait for its end


def _lock(conn: psycopg.Connection[Any]) -> None:
    """Wait until nobody else migrates. Raises MigrationError that names who holds the lock for too long."""
    deadline = time.monotonic() + LOCK_DEADLINE_S
    while True:
        try:
            with conn.transaction():
                conn.execute(query("migration_lock"), (LOCK_TIMEOUT,))
        except psycopg.errors.LockNotAvailable as error:
            rows = conn.execute(query("migration_lock_holders")).fetchall()
            holders = ", ".join(f"process {pid} of {role}" for pid, role in rows)
            if time.monotonic() > deadline:
                raise MigrationError(f"others hold the lock for migrations: {holders}") from error
            log.warning("waiting for the lock for migrations, held by %s", holders)
        else:
            return


def _apply_next(conn: psycopg.Connection[Any], *, post: bool) -> Migration | None:
    """Apply the first step that is missing. Tries again while somebody holds what it needs to lock."""
    deadline = time.monotonic() + STEP_DEADLINE_S
    while True:
        try:
            with conn.transaction():
                _begin(conn)
                known = recorded(conn)
                if known == {}:
                    _record(conn)
                    known = recorded(conn)
                step = next(iter(missing(known or {}, post=post)), None)
                if step is not None:
                    _apply(conn, step)
                return step
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"a migration did not get the locks that it needs in {STEP_DEADLINE_S:.0f} s "
                    f"({error.diag.message_primary}) and has changed nothing: end the transactions that have been "
                    "open for long (sse-pg doctor shows them), then run sse-pg migrate again"
                ) from error
            time.sleep(RETRY_PAUSE_S)


def _record(conn: psycopg.Connection[Any]) -> None:
    """Note again which migrations the schema has."""
    steps = queries.migrations()
    try:
        (version,) = conn.execute(query("migration_schema_version")).fetchone() or (0,)
        _refuse_newer(version)
        conn.execute(
            query("migration_record"),
            {"numbers": [step.number for step in steps], "names": [step.name for step in steps]},
        )
    except psycopg.errors.UndefinedFunction as error:
        raise MigrationError(f"{NO_RECORD}, and no release of sse-pg has made this schema") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(f"{NO_RECORD}: run sse-pg migrate as the owner of the schema") from error
    log.warning("%s: noted that it has the migrations up to %d", NO_RECORD, version)


def _refuse_newer(version: int) -> None:
    newest = queries.migrations()[-1].number
    if version > newest:
        raise MigrationError(f"the schema is at version {version}, this sse-pg knows up to {newest}: upgrade sse-pg")


def _apply(conn: psycopg.Connection[Any], step: Migration) -> None:
    conn.execute(query("migration_step_begin"), (STEP_LOCK_TIMEOUT,))
    try:
        _refuse_older_servers(conn, step)
        conn.execute(step.text)
        conn.execute(query("migration_applied"), (step.number, step.name))
        _refuse_older_servers(conn, step)  # one may have come back meanwhile
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"migration {step} is missing, and the role {conn.info.user} may not apply it "
            f"({error.diag.message_primary}): run sse-pg migrate as the owner of the schema; "
            "who makes it first needs CREATE on the database"
        ) from error


def _refuse_older_servers(conn: psycopg.Connection[Any], step: Migration) -> None:
    if not step.is_post:
        return
    older = conn.execute(query("migration_older_servers"), (step.number,)).fetchall()
    if older:
        names = ", ".join(f"{name} (pid {pid}, sse-pg {version})" for name, pid, version in older)
        raise MigrationError(f"migration {step} removes what older servers use; stop these first: {names}")
