"""How the steps in sql/migrations are applied: in order, once, each as a whole, and the post steps last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
from support.doctor import one
from support.server import Launcher
from support.waiting import eventually, wait_for

from sse_pg.db import queries
from sse_pg.db.migrate import migrate
from sse_pg.db.queries import query
from sse_pg.errors import MigrationError

Steps = Callable[..., None]


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Give the package a folder of migrations of its own: the first, and then these."""
    first = (queries.root() / "migrations" / "0001_initial.sql").read_bytes()
    queries.statements()  # read before the root is another
    monkeypatch.setattr(queries, "root", lambda: tmp_path)
    folder = tmp_path / "migrations"
    folder.mkdir()

    def write(*later: tuple[str, str]) -> None:
        for file in folder.iterdir():
            file.unlink()
        (folder / "0001_initial.sql").write_bytes(first)
        for number, (name, text) in enumerate(later, 2):
            (folder / f"{number:04}_{name}.sql").write_text(text)

    write()
    return write


def register(conn: psycopg.Connection, migration: int) -> None:
    """Be a server whose code knows this migration."""
    (number,) = conn.execute(query("server_insert"), ["old", 42, "0.0.9", migration]).fetchone() or (0,)
    conn.execute(query("server_lock"), [number])


def test_migrate_twice_does_nothing(empty_database_url: str) -> None:
    assert migrate(empty_database_url) == [str(step) for step in queries.migrations()]
    assert migrate(empty_database_url) == []


def test_migrate_under_a_default_tablespace(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET default_tablespace = pg_default")  # type: ignore[arg-type]
    assert migrate(empty_database_url) == [str(step) for step in queries.migrations()]
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("SELECT sse_pg.make_partitions(1, 10)")
        assert conn.execute("SELECT count(*) > 0 FROM sse_pg.partitions()").fetchone() == (True,)


def test_migrate_from_twenty_places_at_once(empty_database_url: str) -> None:
    start = Barrier(20)

    def run(_: int) -> list[str]:
        start.wait(30)
        return migrate(empty_database_url)

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(run, range(20)))
    assert sorted(map(len, results)) == [0] * 19 + [len(queries.migrations())]


def test_a_migration_that_fails_leaves_nothing(empty_database_url: str, steps: Steps) -> None:
    steps(("pre_broken", "CREATE TABLE sse_pg.half (); SELECT 1/0"))
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SELECT number, to_regclass('sse_pg.half') FROM sse_pg.migrations").fetchall() == [
            (1, None)
        ]
    steps(("pre_whole", "CREATE TABLE sse_pg.half ()"))
    assert migrate(empty_database_url) == ["0002_pre_whole"]


def test_a_newer_schema_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        conn.execute("INSERT INTO sse_pg.migrations (number, name) VALUES (9999, 'tomorrow')")
    with pytest.raises(MigrationError, match=r"version 9999.*upgrade"):
        migrate(database_url)


ADDS = ("pre_adds", "ALTER TABLE sse_pg.events ADD COLUMN note text")
DROPS = ("post_drops", "ALTER TABLE sse_pg.idempotency_keys DROP COLUMN digest")
MORE = ("pre_more", "CREATE TABLE sse_pg.more ()")


def test_a_post_step_waits_for_the_flag(database_url: str, steps: Steps) -> None:
    steps(ADDS, DROPS)
    assert migrate(database_url) == ["0002_pre_adds"]
    assert migrate(database_url) == []
    assert migrate(database_url, post=True) == ["0003_post_drops"]
    assert migrate(database_url, post=True) == []


def test_the_flag_applies_all_in_order(database_url: str, steps: Steps) -> None:
    steps(ADDS, DROPS)
    assert migrate(database_url, post=True) == ["0002_pre_adds", "0003_post_drops"]


def test_a_later_release_applies_the_post_steps_before_it(database_url: str, steps: Steps) -> None:
    steps(ADDS, DROPS, MORE)
    assert migrate(database_url) == ["0002_pre_adds", "0003_post_drops", "0004_pre_more"]


def test_a_post_step_is_refused_while_an_older_server_is_up(
    db: psycopg.Connection, database_url: str, steps: Steps
) -> None:
    steps(ADDS, DROPS, MORE)
    with psycopg.connect(database_url, autocommit=True) as server, psycopg.connect(database_url) as newer:
        register(server, 2)
        register(newer, 3)
        newer.commit()
        for post in (False, True):
            with pytest.raises(
                MigrationError, match=r"0003_post_drops .* stop these first: old \(pid 42, sse-pg 0.0.9\)$"
            ):
                migrate(database_url, post=post)
        assert db.execute("SELECT max(number) FROM sse_pg.migrations").fetchone() == (2,)
        db.execute("SELECT pg_terminate_backend(%s, 20000)", [server.info.backend_pid])
        assert migrate(database_url) == ["0003_post_drops", "0004_pre_more"]


def test_an_older_server_that_comes_back_meanwhile_stops_the_step(
    db: psycopg.Connection, database_url: str, steps: Steps
) -> None:
    """It registers while the step runs: the step looks once more when it is done, and nothing of it stays."""
    steps(("post_slow", "SELECT pg_advisory_xact_lock(4711); CREATE TABLE sse_pg.more ()"))
    with (
        psycopg.connect(database_url, autocommit=True) as gate,
        psycopg.connect(database_url, autocommit=True) as server,
    ):
        gate.execute("SELECT pg_advisory_lock(4711)")
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(migrate, database_url, post=True)
            wait_for(lambda: db.execute("SELECT FROM pg_locks WHERE objid = 4711 AND NOT granted").rowcount, "the step")
            register(server, 1)
            gate.execute("SELECT pg_advisory_unlock(4711)")
            with pytest.raises(MigrationError, match="stop these first"):
                done.result(60)
    assert db.execute("SELECT to_regclass('sse_pg.more'), max(number) FROM sse_pg.migrations").fetchall() == [(None, 1)]


def test_an_older_release_runs_on_after_pre_and_not_after_post(database_url: str, steps: Steps) -> None:
    steps(ADDS, DROPS)
    migrate(database_url)
    steps()
    assert migrate(database_url) == []
    steps(ADDS, DROPS)
    migrate(database_url, post=True)
    steps()
    with pytest.raises(MigrationError, match=r"at version 3, this sse-pg knows up to 1: upgrade sse-pg"):
        migrate(database_url)


def test_a_step_that_waits_for_a_table_lets_publishers_pass(
    db: psycopg.Connection, database_url: str, steps: Steps
) -> None:
    """A publisher queues behind whoever waits for the table. The step gives up, and tries again."""
    steps(ADDS)
    with psycopg.connect(database_url) as reader, ThreadPoolExecutor(1) as pool:
        reader.execute("SELECT count(*) FROM sse_pg.events")
        done = pool.submit(migrate, database_url)
        waits = "SELECT FROM pg_locks WHERE relation = 'sse_pg.events'::regclass AND NOT granted"
        wait_for(lambda: db.execute(waits).rowcount, "the step")
        db.execute("SET statement_timeout = '60s'")
        db.execute("SELECT sse_pg.publish('a', 't', '1')")
        assert not done.done()
        reader.rollback()
        assert done.result(60) == ["0002_pre_adds"]


def test_a_step_that_never_gets_its_table(database_url: str, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps(ADDS)
    monkeypatch.setattr("sse_pg.db.migrate.STEP_DEADLINE_S", 0)
    monkeypatch.setattr("sse_pg.db.migrate.STEP_LOCK_TIMEOUT", "1ms")
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM sse_pg.events")
        with pytest.raises(MigrationError, match="did not get the locks"):
            migrate(database_url)


@pytest.mark.parametrize(
    "name", ["0002_more.sql", "0002_pre.sql", "0002_pre_.sql", "0003_pre_more.sql", "0001_pre_a.sql"]
)
def test_a_file_that_is_called_otherwise(tmp_path: Path, steps: Steps, name: str) -> None:
    (tmp_path / "migrations" / name).touch()
    with pytest.raises(ValueError, match="migration"):
        queries.migrations()


async def test_a_server_does_not_work_on_a_schema_of_another_release(
    db: psycopg.Connection, launch: Launcher, steps: Steps
) -> None:
    """It looks each time it connects: the schema may have moved on while it was cut off."""
    server = await launch()
    steps(ADDS)  # as after SIGHUP: new code that nobody has migrated for
    end = "SELECT pg_terminate_backend(l.pid) FROM pg_locks l WHERE l.classid = sse_pg.lock_class('server')"
    db.execute(end)
    await eventually(lambda: "0002_pre_adds is missing" in server.bus.tail.last_error)
    steps()
    await eventually(server.bus.tail.listening.is_set)
    db.execute("INSERT INTO sse_pg.migrations (number, name) VALUES (2, 'pre_adds'), (3, 'post_drops')")
    db.execute(end)
    await eventually(lambda: "upgrade sse-pg" in server.bus.tail.last_error)
    assert not server.bus.tail.listening.is_set()
    db.execute("DELETE FROM sse_pg.migrations WHERE number = 3")
    async with asyncio.timeout(20):
        await server.bus.tail.listening.wait()


async def test_the_doctor_says_what_is_pending(db: psycopg.Connection, database_url: str, steps: Steps) -> None:
    steps(ADDS, DROPS)
    finding = await one("schema", database_url)
    assert (finding.state, finding.found) == ("error", "not applied: 0002_pre_adds, 0003_post_drops")
    migrate(database_url)
    finding = await one("schema", database_url)
    assert (finding.state, "0003_post_drops" in finding.found) == ("warning", True)
    assert "sse-pg migrate --post" in finding.fix
    with psycopg.connect(database_url, autocommit=True) as server:
        register(server, 2)
        assert "stop the older servers: old (pid 42, sse-pg 0.0.9)" in (await one("schema", database_url)).fix
    steps()
    assert (await one("schema", database_url)).state == "ok"
