"""What others change or add: the doctor finds it, and its statements undo it."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support.doctor import apply_fixes, found, one, report
from support.server import Launcher

from sse_pg.db.migrate import migrate

#: A collation of the operating system.
LOCAL = "CREATE COLLATION public.local (provider = libc, locale = 'C.UTF-8')"


@pytest.fixture
def role(database_url: str, db: psycopg.Connection) -> Iterator[str]:
    """A login without any right."""
    name = f"r{uuid4().hex[:12]}"
    db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    db.execute(sql.SQL("REASSIGN OWNED BY {0} TO CURRENT_USER; DROP OWNED BY {0}").format(sql.Identifier(name)))
    db.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


CHANGES = [
    ("functions", "ALTER FUNCTION sse_pg.publish(text,text,jsonb,text,jsonb) OWNER TO {role}", "belongs to"),
    (
        "functions",
        "ALTER FUNCTION sse_pg.publish(text,text,jsonb,text,jsonb) RESET search_path",
        "with the search_path of its caller",
    ),
    ("functions", "GRANT EXECUTE ON FUNCTION sse_pg.begin_epoch TO {role}", "may be called by {role}"),
    ("inherited", "ALTER DATABASE {database} SET sse_pg.bell = off", "sse_pg.bell=off of database {database}"),
    (
        "inherited",
        "ALTER ROLE postgres IN DATABASE {database} SET session_replication_role = replica",
        "of role postgres",
    ),
    ("collations", "ALTER TABLE sse_pg.idempotency_keys ALTER COLUMN key TYPE text COLLATE public.local", "local"),
]


@pytest.mark.parametrize(("name", "change", "says"), CHANGES)
async def test_a_change_is_found_and_undone(
    database_url: str, db: psycopg.Connection, role: str, name: str, change: str, says: str
) -> None:
    db.execute(LOCAL)
    names = {"role": role, "database": db.info.dbname}
    assert (await one(name, database_url)).state == "ok"
    db.execute(change.format(**names))  # type: ignore[arg-type]
    finding = await one(name, database_url)
    assert (finding.state, says.format(**names) in finding.found) == ("warning", True), finding
    apply_fixes(db, [finding])
    assert (await one(name, database_url)).state == "ok"


async def test_settings_that_the_server_sets_anew_are_not_reported(database_url: str, db: psycopg.Connection) -> None:
    for setting in ("client_encoding = 'LATIN1'", "DateStyle = 'German'", "standard_conforming_strings = off"):
        db.execute(f"ALTER DATABASE {db.info.dbname} SET {setting}")  # type: ignore[arg-type]
    findings = await report(database_url)
    assert {f.name for f in findings if f.state != "ok"} <= {"durability", "files"}, findings


async def test_an_index_of_a_user_by_another_collation(database_url: str, db: psycopg.Connection) -> None:
    db.execute(LOCAL)
    db.execute("CREATE INDEX mine ON sse_pg.events (event_type COLLATE public.local)")
    assert "sse_pg.events (event_type) by local" in (await one("collations", database_url)).found


async def test_triggers_of_users(database_url: str, db: psycopg.Connection) -> None:
    db.execute("CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    db.execute("CREATE TRIGGER after_it AFTER INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION public.nothing()")
    finding = await one("user_triggers", database_url)
    assert (finding.state, "after_it" in finding.found) == ("ok", True)
    db.execute("CREATE TRIGGER eats BEFORE INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION public.nothing()")
    finding = await one("user_triggers", database_url)
    assert (finding.state, "eats (public.nothing())" in finding.found) == ("warning", True), finding


async def test_a_rule_of_a_user(database_url: str, db: psycopg.Connection) -> None:
    assert (await one("user_rules", database_url)).state == "ok"
    db.execute("CREATE RULE eats AS ON INSERT TO sse_pg.events WHERE NEW.channel = 'a' DO INSTEAD NOTHING")
    finding = await one("user_rules", database_url)
    assert (finding.state, "eats" in finding.found) == ("warning", True), finding
    apply_fixes(db, [finding])
    assert (await one("user_rules", database_url)).state == "ok"


async def test_an_event_trigger_that_stops_maintenance(database_url: str, db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE public.ddl_log (command text)")
    db.execute(
        "CREATE FUNCTION public.note_ddl() RETURNS event_trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO ddl_log VALUES (tg_tag); END'"
    )
    db.execute("CREATE EVENT TRIGGER noted ON ddl_command_end EXECUTE FUNCTION public.note_ddl()")
    try:
        with pytest.raises(psycopg.errors.UndefinedTable):
            db.execute("SELECT sse_pg.make_partitions(1, 10)")
        finding = await one("event_triggers", database_url)
        assert (finding.state, "noted (public.note_ddl())" in finding.found) == ("warning", True), finding
        apply_fixes(db, [finding])
        assert (await one("event_triggers", database_url)).state == "ok"
        db.execute("SELECT sse_pg.make_partitions(1, 10)")
        assert db.execute("SELECT count(*) > 0 FROM public.ddl_log").fetchone() == (True,)
    finally:
        db.execute("DROP EVENT TRIGGER noted")


@pytest.mark.parametrize("lock", ["tail", "server", "maintenance", "window_low", "first_high"])
async def test_a_stranger_that_holds_a_lock(database_url: str, db: psycopg.Connection, role: str, lock: str) -> None:
    with psycopg.connect(make_conninfo(database_url, user=role), autocommit=True) as stranger:
        key = db.execute("SELECT sse_pg.lock_class(%s)", [lock]).fetchone()
        assert key is not None
        stranger.execute("SELECT pg_advisory_lock(%s, 1)", key)
        finding = await one("locks", database_url)
        assert finding.state == "error"
        assert f"pid {stranger.info.backend_pid} of {role}" in finding.found
        assert lock in finding.found
        apply_fixes(db, [finding])
        with pytest.raises(psycopg.OperationalError):
            stranger.execute("SELECT 1")
    assert (await one("locks", database_url)).state == "ok"


async def test_a_stranger_that_keeps_migrations_waiting(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as stranger:
        stranger.execute("SELECT pg_advisory_lock(hashtextextended('sse_pg migrate', 0))")
        assert "migration" in (await one("locks", database_url)).found


async def test_servers_and_publishers_are_no_strangers(database_url: str, launch: Launcher) -> None:
    await launch()
    with psycopg.connect(database_url) as publisher, psycopg.connect(database_url) as idle:
        publisher.execute("SELECT sse_pg.publish('a', 'T', '1')")
        idle.execute("SELECT 1")
        assert [f.state for f in await found("locks", database_url, old=0)] == ["ok"]


async def test_a_migrated_database_has_no_findings(empty_database_url: str) -> None:
    migrate(empty_database_url)
    findings = await report(empty_database_url)
    assert {f.name for f in findings if f.state != "ok"} <= {"durability", "files"}, findings
