"""Copies of a log: a template, a restore without rights or owners, a snapshot of the disk, pg_upgrade."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support import cluster
from support.client import Client
from support.doctor import apply_fixes, found, one
from support.process import CHECKOUT, one_line, process, run
from support.programs import pg_dump
from support.server import Launcher
from support.waiting import eventually

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres, find_binaries
from sse_pg.embedded.binaries import Binaries


async def _serve_once(url: str) -> None:
    """Let a server read the log and note what it is. It publishes one event."""
    with process("serve", "--port", "0", DATABASE_URL=url) as server:
        async with Client(server.url()) as client, client.stream("a") as stream:
            await client.publish("a", "served")
            assert (await stream.event()).json() == "served"
            with psycopg.connect(url, autocommit=True) as conn:
                settled = "SELECT settled_to = sse_pg.last_id() FROM sse_pg.log"
                await eventually(lambda: conn.execute(settled).fetchone() == (True,))
        assert server.end() == 0


async def _works(url: str, last_event_id: str, *expected: object) -> list[int]:
    """See that a server serves the log: what a client is sent, and what it publishes. Return the ids of the latter."""
    with process("serve", "--port", "0", DATABASE_URL=url) as server:
        async with Client(server.url()) as client, client.stream("a", last_event_id=last_event_id) as stream:
            ids = [await client.publish("a", "http")]
            with psycopg.connect(url, autocommit=True) as conn:
                ids.append((conn.execute("SELECT sse_pg.publish('a', 'T', '\"sql\"')").fetchone() or (0,))[0])
            events = await stream.events(len(expected) + 2)
            got = [event.event if event.event == "sse-pg.gap" else event.json() for event in events]
            assert got == [*expected, "http", "sql"]
        assert server.end() == 0
    return ids


# ---------------------------------------------------------------- in the same cluster


async def test_a_copy_by_template_begins_an_epoch_with_its_first_event(
    db: psycopg.Connection, database_url: str, postgres: EmbeddedPostgres, launch: Launcher
) -> None:
    """Whoever publishes there first: its ids are never those of the original, with a server and without."""
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as stream:
        await client.publish("a", 1)
        await stream.event()
        # Until a server notes that the event is certain, the copy sends it again.
        await eventually(lambda: db.execute("SELECT settled_to FROM sse_pg.log").fetchone() == (1,))
    await server.stop()
    original = db.info.dbname
    name = f"copy_{original}"
    db.close()
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(original)))
        try:
            copy = make_conninfo(database_url, dbname=name)
            finding = await one("moved", copy)
            assert finding.state == "warning"
            with (
                psycopg.connect(copy, autocommit=True) as there,
                psycopg.connect(database_url, autocommit=True) as here,
            ):
                publish = "SELECT sse_pg.publish('a', 'T', '\"x\"')"
                (first,) = there.execute(publish).fetchone() or (0,)
                assert here.execute(publish).fetchone() == (2,)
                assert first > 1_000_000_000
                # A cursor of the original says nothing here.
                assert there.execute("SELECT event_type FROM sse_pg.read('2', '{a}')").fetchall() == [
                    ("sse-pg.gap",), ("T",)
                ]  # fmt: skip
            assert (await _works(copy, "2", "sse-pg.gap", "x"))[0] > first
            assert (await one("moved", copy)).state == "ok"
            with psycopg.connect(copy) as there:
                assert there.execute("SELECT count(*) FROM sse_pg.epochs").fetchone() == (1,)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def test_the_statement_of_the_doctor_begins_the_epoch(db: psycopg.Connection, database_url: str) -> None:
    db.execute("SELECT sse_pg.publish('a', 'T', '1')")
    db.execute("UPDATE sse_pg.log SET identity = 'another/cluster', settled_to = 1")
    apply_fixes(db, [await one("moved", database_url)])
    assert db.execute("SELECT count(*) FROM sse_pg.epochs").fetchone() == (1,)


def test_a_database_that_is_renamed_goes_on_with_its_ids(empty_database_url: str, postgres: EmbeddedPostgres) -> None:
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute("SELECT sse_pg.publish('a', 'T', '1'), sse_pg.check_epoch()")
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} RENAME TO {name}_now")  # type: ignore[arg-type]
        try:
            with psycopg.connect(make_conninfo(postgres.url, dbname=f"{name}_now"), autocommit=True) as conn:
                assert conn.execute("SELECT sse_pg.publish('a', 'T', '1')").fetchone() == (2,)
        finally:
            admin.execute(f"ALTER DATABASE {name}_now RENAME TO {name}")  # type: ignore[arg-type]


@pytest.fixture
def owned(db: psycopg.Connection, database_url: str, postgres: EmbeddedPostgres) -> Iterator[str]:
    """A schema that belongs to a role of its own, with the group roles granted; its events were read by a server."""
    db.execute((CHECKOUT / "sql" / "roles.sql").read_bytes())
    db.execute("CREATE ROLE boss_of_copies LOGIN; CREATE ROLE bus_of_copies LOGIN IN ROLE sse_pg_server")
    db.execute("SELECT sse_pg.publish('a', 'T', '1')")
    db.execute("SELECT sse_pg.finish('b')")
    db.execute("SELECT sse_pg.check_epoch()")
    db.execute("UPDATE sse_pg.log SET settled_to = 2")
    db.execute("ALTER SCHEMA sse_pg OWNER TO boss_of_copies")
    for query in (
        "SELECT 'ALTER TABLE ' || oid::regclass || ' OWNER TO boss_of_copies' FROM pg_class"
        " WHERE relnamespace = 'sse_pg'::regnamespace AND relkind IN ('r', 'p', 'v')",
        "SELECT 'ALTER SEQUENCE ' || c.oid::regclass || ' OWNER TO boss_of_copies' FROM pg_class c"
        " WHERE relnamespace = 'sse_pg'::regnamespace AND relkind = 'S'"
        "   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i'))",
        "SELECT 'ALTER FUNCTION ' || oid::regprocedure || ' OWNER TO boss_of_copies' FROM pg_proc"
        " WHERE pronamespace = 'sse_pg'::regnamespace",
    ):
        for (statement,) in db.execute(query).fetchall():  # type: ignore[arg-type]
            db.execute(statement)
    yield database_url
    for name in [database_url, make_conninfo(postgres.url, dbname="postgres")]:
        with psycopg.connect(name, autocommit=True) as conn:
            databases = (
                "SELECT datname FROM pg_database"
                " WHERE datallowconn AND (datname = current_database() OR datname LIKE 'empty%')"
            )
            for (database,) in conn.execute(databases).fetchall():
                with psycopg.connect(make_conninfo(name, dbname=database), autocommit=True) as there:
                    there.execute("DROP OWNED BY boss_of_copies, bus_of_copies CASCADE")
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as conn:
        conn.execute("DROP ROLE boss_of_copies, bus_of_copies")


@pytest.mark.parametrize("flags", [(), ("--no-owner",), ("--no-acl",), ("--no-acl", "--no-owner")])
async def test_a_restore_without_rights_or_owners(
    flags: tuple[str, ...], owned: str, empty_database_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(owned) as conn:
        dump = pg_dump(conn.info.server_version // 10000)
    restore = dump.replace("pg_dump", "pg_restore")
    subprocess.run([dump, "--format=custom", f"--file={tmp_path}/dump", owned], check=True, capture_output=True)
    subprocess.run(
        [restore, *flags, "--exit-on-error", f"--dbname={empty_database_url}", f"{tmp_path}/dump"],
        check=True,
        capture_output=True,
    )
    bus = make_conninfo(empty_database_url, user="bus_of_copies")
    if "--no-acl" in flags:
        assert "sql/roles.sql" in one_line(run("serve", "--port", "0", DATABASE_URL=bus))
        assert {finding.state for finding in await found("rights", bus)} == {"error"}
        owner = (
            empty_database_url if "--no-owner" in flags else make_conninfo(empty_database_url, user="boss_of_copies")
        )
        done = run("migrate", DATABASE_URL=owner)
        assert (done.returncode, "no rights" in done.stderr, "sql/roles.sql" in done.stderr) == (0, True, True)
        with psycopg.connect(owner, autocommit=True) as conn:
            conn.execute((CHECKOUT / "sql" / "roles.sql").read_bytes())
        assert "no rights" not in run("migrate", DATABASE_URL=owner).stderr
    assert [(await one(name, bus)).state for name in ("rights", "functions")] == ["ok", "ok"]
    with process("serve", "--port", "0", DATABASE_URL=bus) as server:
        async with Client(server.url()) as client, client.stream("a", last_event_id="0") as stream:
            assert await client.publish("a", 2) > 1_000_000_000
            assert [event.json() for event in await stream.events(2)] == [1, 2]


# ---------------------------------------------------------------- another data directory


def _data(directory: Path) -> Path:
    (found,) = [path for path in directory.iterdir() if (path / "PG_VERSION").exists()]
    return found


@contextmanager
def _started(directory: Path, binaries: Binaries) -> Iterator[str]:
    with EmbeddedPostgres(directory, binaries=binaries, options=cluster.NOT_DURABLE) as server:
        yield server.url


async def test_a_snapshot_of_the_disk_needs_the_documented_call() -> None:
    """It cannot be told from its original, so docs/operating.md asks for begin_epoch()."""
    with cluster.directory() as old, cluster.directory() as new:
        with _started(old, cluster.binaries()) as url:
            migrate(url)
            await _serve_once(url)
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute("CHECKPOINT")
                shutil.copytree(
                    old, new, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns(".s.*", "run")
                )
                for _ in range(3):
                    conn.execute("SELECT sse_pg.publish('a', 'T', '1')")
        owner = _data(old).stat()
        for path in [new, *new.rglob("*")]:
            if path.name != new.name:
                os.chown(path, owner.st_uid, owner.st_gid)
        (_data(new) / "postmaster.pid").unlink()
        with _started(new, cluster.binaries()) as url:
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute("SELECT sse_pg.begin_epoch()")
            assert min(await _works(url, "4", "sse-pg.gap")) > 1_000_000_000
            assert min(await _works(url, "1", "http", "sql")) > 1_000_000_000


@pytest.mark.long
async def test_a_server_begins_an_epoch_after_pg_upgrade() -> None:
    """From the oldest release that is installed here to the newest."""
    before = Path("/usr/lib/postgresql/15/bin")
    programs = find_binaries()
    if not (before / "pg_upgrade").exists() or not (programs.bin / "pg_upgrade").exists():
        pytest.skip("two releases of PostgreSQL with pg_upgrade are needed")
    with cluster.directory() as old, cluster.directory() as new:
        with _started(old, find_binaries(before)) as url:
            migrate(url)
            await _serve_once(url)
        owner = _data(old).stat()
        account = pwd.getpwuid(owner.st_uid)
        os.chown(new, owner.st_uid, owner.st_gid)
        data = new / f"postgres-{programs.major}"

        def as_account(*command: object) -> None:
            done = subprocess.run(
                list(map(str, command)), cwd=new, capture_output=True, text=True, preexec_fn=_become(account),
                env={**os.environ, "HOME": str(new)},
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

        as_account(programs.bin / "initdb", "-D", data, "-U", "postgres", "--encoding=UTF8", "--locale=C",
                   "--no-data-checksums")  # fmt: skip
        as_account(programs.bin / "pg_upgrade", "-b", before, "-B", programs.bin, "-d", _data(old), "-D", data,
                   "-U", "postgres", "-s", new)  # fmt: skip
        with _started(new, programs) as url:
            assert (await one("moved", url)).state == "warning"
            with psycopg.connect(url, autocommit=True) as conn:
                (first,) = conn.execute("SELECT sse_pg.publish('a', 'T', '\"first\"')").fetchone() or (0,)
            assert first == 2  # the old cluster has stopped, so this id is handed out once
            assert min(await _works(url, "0", "served", "first")) > 1_000_000_000
            assert (await one("moved", url)).state == "ok"


def _become(account: pwd.struct_passwd) -> Callable[[], None] | None:
    """Run a program as the account that owns the data, since PostgreSQL refuses to run as root."""

    def become() -> None:
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)

    return become if os.getuid() == 0 and account.pw_uid != 0 else None
