"""Who may do what: roles with the least that publishing takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support.doctor import apply_fixes, one

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres

DENIED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def role(postgres: EmbeddedPostgres, database_url: str) -> Iterator[str]:
    """A role without any right."""
    name = f"r{uuid4().hex[:12]}"
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def grant(db: psycopg.Connection, role: str, *rights: str) -> None:
    for right in rights:
        db.execute(sql.SQL("GRANT {} TO {}").format(sql.SQL(right), sql.Identifier(role)))  # type: ignore[arg-type]


@pytest.fixture
def as_role(database_url: str, role: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(make_conninfo(database_url, user=role), autocommit=True) as conn:
        yield conn


PUBLISH = "SELECT sse_pg.publish('a', 't', '{}')"
INSERT = "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('a', 't', '{}')"


def test_publish_alone(db: psycopg.Connection, role: str, as_role: psycopg.Connection) -> None:
    grant(db, role, "USAGE ON SCHEMA sse_pg", "EXECUTE ON FUNCTION sse_pg.publish(text,text,jsonb,text,jsonb)")
    assert as_role.execute(PUBLISH).fetchone() == (1,)
    assert as_role.execute("SELECT sse_pg.publish('a', 't', '{}', 'key')").fetchone() == (2,)
    assert as_role.execute("SELECT sse_pg.publish('a', 't', '{}', 'key')").fetchone() == (2,)
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (2,)
    for statement in (
        "SELECT * FROM sse_pg.events",
        "SELECT * FROM sse_pg.events_default",
        "SELECT * FROM sse_pg.idempotency_keys",
        "SELECT * FROM sse_pg.subscriptions",
        "SELECT * FROM sse_pg.log",
        INSERT,
        "UPDATE sse_pg.events SET payload = '1'",
        "DELETE FROM sse_pg.events",
        "TRUNCATE sse_pg.events",
        "SELECT nextval('sse_pg.events_id_seq')",
        "SELECT setval('sse_pg.events_id_seq', 1)",
        "SELECT sse_pg.position()",
        "SELECT * FROM sse_pg.publishers()",
        "SELECT sse_pg.subscribe('u', 'a')",
        "SELECT * FROM sse_pg.publish_many('{a}', '{t}', '{1}')",
    ):
        with pytest.raises(DENIED):
            as_role.execute(statement)  # type: ignore[arg-type]


def test_usage_without_execute_is_not_enough(db: psycopg.Connection, role: str, as_role: psycopg.Connection) -> None:
    with pytest.raises(DENIED):
        as_role.execute(PUBLISH)
    grant(db, role, "USAGE ON SCHEMA sse_pg")
    with pytest.raises(DENIED):
        as_role.execute(PUBLISH)


#: What a CHECK calls runs with the rights of whoever inserts; whoever looks at pg_locks needs the lock classes. The
#: function of a published table calls some as the owner of the table, who needs no more than the right to publish.
FOR_EVERYBODY = {
    "sse_pg.can_publish(jsonb,integer)",
    "sse_pg.change_function(regclass,jsonb)",
    "sse_pg.change_statement(regclass,jsonb,text,text,text,text,regclass)",
    "sse_pg.channel_template(text)",
    "sse_pg.column_risks(oid,name[])",
    "sse_pg.fill_channel(text[],text[])",
    "sse_pg.row_as_json(record,integer)",
    "sse_pg.transition_rows(regclass,text)",
    "sse_pg.truncated_change(text,jsonb,jsonb,integer)",
    "sse_pg.cursor_ids(text)",
    "sse_pg.cursor_text(int8multirange)",
    "sse_pg.id_limit(text,bigint)",
    "sse_pg.check_channel(text)",
    "sse_pg.check_event_type(text)",
    "sse_pg.may_write_end(text)",
    "sse_pg.check_names(text,text)",
    "sse_pg.check_key(text)",
    "sse_pg.check_user(text)",
    "sse_pg.lock_class(text)",
    "sse_pg.partition_name(bigint)",
    "sse_pg.payload_fits(jsonb,jsonb,integer)",
    "sse_pg.refuse_long_numbers(jsonb)",
    "sse_pg.refuse_pattern(text)",
    "sse_pg.schema_version()",
}


def test_no_function_is_for_everybody(db: psycopg.Connection, role: str) -> None:
    functions = db.execute(
        "SELECT p.oid::regprocedure::text, has_function_privilege(%s, p.oid, 'EXECUTE')"
        "  FROM pg_proc p WHERE p.pronamespace = 'sse_pg'::regnamespace",
        [role],
    ).fetchall()
    assert len(functions) > 8
    assert {name for name, allowed in functions if allowed} <= FOR_EVERYBODY


def test_every_function_has_its_search_path_pinned(db: psycopg.Connection) -> None:
    """But for those of the CHECKs, called for each row, which name the schema of all they use; and for lock_class() and
    schema_version().

    Its body is not text: PostgreSQL looked up the names in it when it was created. A pinned path would keep the planner
    from replacing the call with the number.
    """
    loose = db.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'sse_pg'::regnamespace"
        "   AND (prosecdef OR proname NOT IN ('check_channel', 'check_event_type', 'check_names', 'check_key',"
        "                                     'check_user', 'payload_fits', 'lock_class', 'schema_version'))"
        "   AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)"
    ).fetchall()
    assert loose == []


def test_insert_alone(db: psycopg.Connection, role: str, as_role: psycopg.Connection) -> None:
    grant(db, role, "USAGE ON SCHEMA sse_pg", "INSERT (channel, event_type, payload) ON sse_pg.events")
    with as_role.transaction():
        as_role.execute(INSERT)
        assert db.execute("SELECT least_bound FROM sse_pg.publishers()").fetchone() == (0,)
    assert db.execute("SELECT id, channel, event_type FROM sse_pg.events").fetchall() == [(1, "a", "t")]
    with as_role.cursor().copy("COPY sse_pg.events (channel, event_type, payload) FROM STDIN") as copy:
        copy.write_row(("b", "t", "1"))
    for statement in (
        INSERT + " RETURNING id",
        "SELECT id FROM sse_pg.events",
        "INSERT INTO sse_pg.events (id, channel, event_type, payload)"
        " OVERRIDING SYSTEM VALUE VALUES (9, 'a', 't', '1')",
        "INSERT INTO sse_pg.events (channel, event_type, payload, created_at) VALUES ('a', 't', '1', now())",
        "INSERT INTO sse_pg.events_default (channel, event_type, payload) VALUES ('a', 't', '1')",
    ):
        with pytest.raises(DENIED):
            as_role.execute(statement)  # type: ignore[arg-type]
    assert db.execute("SELECT max(id) FROM sse_pg.events").fetchone() == (2,)


def test_nobody_hides_behind_a_table_of_the_same_name(
    db: psycopg.Connection, role: str, as_role: psycopg.Connection
) -> None:
    """The functions run with their owner's rights: what a caller puts before pg_catalog is not looked at."""
    grant(db, role, "USAGE ON SCHEMA sse_pg", "EXECUTE ON FUNCTION sse_pg.publish(text,text,jsonb,text,jsonb)")
    as_role.execute("CREATE TEMP TABLE pg_locks (x integer)")
    as_role.execute("CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea'")
    as_role.execute("SET search_path = pg_temp, pg_catalog")
    assert as_role.execute("SELECT sse_pg.publish('a', 't', '{}', 'key')").fetchone() == (1,)
    assert db.execute("SELECT length(digest) FROM sse_pg.idempotency_keys").fetchone() == (32,)


EVIL = """
    CREATE SCHEMA evil;
    CREATE DOMAIN evil.text AS integer;
    CREATE FUNCTION evil.yes(integer, integer) RETURNS boolean LANGUAGE sql AS 'SELECT true';
    CREATE FUNCTION evil.yes(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
    CREATE FUNCTION evil.char_length(text) RETURNS integer LANGUAGE sql AS 'SELECT 5';
    CREATE FUNCTION evil.octet_length(text) RETURNS integer LANGUAGE sql AS 'SELECT 5';
    CREATE FUNCTION evil.strpos(text, text) RETURNS integer LANGUAGE sql AS 'SELECT 0';
    CREATE FUNCTION evil.starts_with(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
    CREATE OPERATOR evil.<= (LEFTARG = integer, RIGHTARG = integer, FUNCTION = evil.yes);
    CREATE OPERATOR evil.>= (LEFTARG = integer, RIGHTARG = integer, FUNCTION = evil.yes);
    CREATE OPERATOR evil.= (LEFTARG = integer, RIGHTARG = integer, FUNCTION = evil.yes);
    CREATE OPERATOR evil.!~ (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.yes);
"""


def test_the_checks_are_the_same_in_every_session(db: psycopg.Connection) -> None:
    """They run as whoever inserts: operators of his own count for nothing, nor do his settings."""
    db.execute(EVIL)
    db.execute("SET search_path = evil, pg_catalog")
    if db.info.server_version < 190000:
        db.execute("SET standard_conforming_strings = off")
    row = "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES (%s, %s, %s)"
    large = '"' + "x" * 1048576 + '"'
    for channel, event_type, payload in (
        ("a b", "t", "1"), ("a\u3000", "t", "1"), ("", "t", "1"), ("x" * 256, "t", "1"),
        ("a", "a\nb", "1"), ("a", "a\rb", "1"), ("a", "sse-pg.x", "1"), ("a", "", "1"), ("a", "t", large),
    ):  # fmt: skip
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute(row, [channel, event_type, payload])
    db.execute(row, ["a\\u0020", "t\\n", "1"])


def test_ids_cannot_be_chosen(db: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.GeneratedAlways):
        db.execute("INSERT INTO sse_pg.events (id, channel, payload) VALUES (5, 'a', '1')")


def test_the_sequence_does_not_cache(db: psycopg.Connection) -> None:
    row = db.execute(
        "SELECT seqcache, seqincrement, seqcycle FROM pg_sequence"
        " WHERE seqrelid = pg_get_serial_sequence('sse_pg.events', 'id')::regclass"
    ).fetchone()
    assert row == (1, 1, False)


#: What changes something, and what it may still do for a role that has EXECUTE and nothing else.
HELPERS = (
    "sse_pg.alone('drop', '{1}', parts => '{public.salaries}')",
    "sse_pg.alone('attach', '{1}', '{2}')",
    "sse_pg.alone('convert', '{1,2}')",
    "sse_pg.drop_partitions('{public.salaries}', 1)",
    "sse_pg.attach_partitions('{1}', '{2}')",
    "sse_pg.convert_default(1, 2)",
    "sse_pg.make_table('mine')",
    "sse_pg.rename_table('events_default', 'mine')",
    "sse_pg.note_purged(1)",
    "sse_pg.set_rights()",
)


@pytest.fixture
def loose(db: psycopg.Connection, role: str) -> None:
    """Everybody may call every function, as after pg_restore --no-acl."""
    grant(db, role, "USAGE ON SCHEMA sse_pg")
    db.execute("CREATE TABLE public.salaries ()")
    db.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA sse_pg TO PUBLIC")


@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize("call", HELPERS)
def test_a_helper_runs_with_the_rights_of_its_caller(
    db: psycopg.Connection, as_role: psycopg.Connection, call: str
) -> None:
    before = db.execute("SELECT oid, relname FROM pg_class ORDER BY 1").fetchall()
    rights = db.execute("SELECT oid, proacl FROM pg_proc ORDER BY 1").fetchall()
    with suppress(DENIED):  # set_rights() finds nothing that is the role's own
        as_role.execute(f"SELECT {call}")  # type: ignore[arg-type]
    assert db.execute("SELECT oid, relname FROM pg_class ORDER BY 1").fetchall() == before
    assert db.execute("SELECT oid, proacl FROM pg_proc ORDER BY 1").fetchall() == rights
    assert db.execute("SELECT purged_to FROM sse_pg.log").fetchone() == (0,)


def test_no_function_executes_what_it_is_given(db: psycopg.Connection) -> None:
    """A function that builds statements of its own makes them with format(), and is not given them.

    publish_changes() is given expressions. It has the rights of its caller, and what it makes has those of the owner of
    the table.
    """
    bodies = db.execute(
        "SELECT p.oid::regprocedure::text, m[1] FROM pg_proc p, regexp_matches(p.prosrc, '^ *EXECUTE ([^;]*);', 'ng') m"
        " WHERE p.pronamespace = 'sse_pg'::regnamespace"
    ).fetchall()
    assert len(bodies) > 5
    made = ("format(", "f.statement", "sse_pg.change_statement(")
    assert [row for row in bodies if not row[1].startswith(made)] == []
    assert db.execute(
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'sse_pg'::regnamespace AND prosecdef"
        "   AND proname ~ 'publish_changes|stop_publishing|change_|row_as_json'"
    ).fetchone() == (0,)


@pytest.mark.usefixtures("loose")
async def test_migrate_takes_back_what_everybody_may(db: psycopg.Connection, database_url: str, role: str) -> None:
    db.execute("REVOKE EXECUTE ON FUNCTION sse_pg.check_channel FROM PUBLIC")
    grant(db, role, "EXECUTE ON FUNCTION sse_pg.publish(text,text,jsonb,text,jsonb)", "SELECT ON sse_pg.migrations")
    assert "every role may call sse_pg." in (await one("rights", database_url)).found
    migrate(make_conninfo(database_url, user=role))
    assert (await one("rights", database_url)).state == "error", "a role that owns nothing changes nothing"
    migrate(database_url)
    assert (await one("rights", database_url)).state == "ok"
    db.execute(f"REVOKE EXECUTE ON FUNCTION sse_pg.publish(text,text,jsonb,text,jsonb) FROM {role}")  # type: ignore[arg-type]
    test_no_function_is_for_everybody(db, role)


async def test_the_doctor_s_statement_takes_it_back(loose: None, db: psycopg.Connection, database_url: str) -> None:
    apply_fixes(db, [await one("rights", database_url)])
    assert (await one("rights", database_url)).state == "ok"


def test_default_privileges_give_nothing(empty_database_url: str, role: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute(f"ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO {role}")  # type: ignore[arg-type]
        migrate(empty_database_url)
        may = conn.execute(
            "SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'sse_pg'::regnamespace"
            "   AND p.provolatile <> 'i' AND has_function_privilege(%s, p.oid, 'EXECUTE')",
            [role],
        )
        assert may.fetchall() == []
        conn.execute(f"DROP OWNED BY {role}")  # type: ignore[arg-type]
