"""Any login can take the advisory locks of the bus. Nobody waits for them for ever, and who holds them is said."""

from __future__ import annotations

import psycopg
import pytest
from support.client import Client
from support.doctor import apply_fixes, found, one
from support.server import Launcher
from support.waiting import eventually, wait_for

from sse_pg.core.ranges import Ranges
from sse_pg.db import migrate as migrate_module
from sse_pg.db.migrate import migrate
from sse_pg.delivery import listening_tail
from sse_pg.errors import MigrationError

CLASSES = ("first_low", "first_high", "window_low", "window_high", "window_open")


def hold(conn: psycopg.Connection, name: str, *keys: int) -> None:
    """Take locks of the bus exclusively, for the session."""
    conn.execute("SELECT pg_advisory_lock(sse_pg.lock_class(%s), k) FROM unnest(%s::int[]) k", (name, list(keys)))


@pytest.mark.parametrize("writes_before", [False, True], ids=["first write", "later write"])
def test_a_publisher_goes_on_and_still_covers_its_ids(
    db: psycopg.Connection, database_url: str, writes_before: bool
) -> None:
    with psycopg.connect(database_url, autocommit=True) as other, psycopg.connect(database_url) as publisher:
        for name in CLASSES:
            hold(other, name, *range(30))
        publisher.execute("SET statement_timeout = '10s'")
        if writes_before:
            publisher.execute("SELECT pg_current_xact_id()")
        ids = []
        for _ in range(12):
            row = publisher.execute("SELECT sse_pg.publish('a', 't', '1')").fetchone() or (0,)
            ids.append(row[0])
            last, least, firsts, lasts = db.execute("SELECT * FROM sse_pg.publishers()").fetchone() or (0, 0, [], [])
            assert last == ids[-1]
            assert least is not None
            windows = Ranges(zip(firsts, lasts, strict=True))
            assert all(number in windows for number in ids)
        publisher.commit()
    wait_for(lambda: db.execute("SELECT least_bound FROM sse_pg.publishers()").fetchone() == (None,))


async def test_a_server_that_cannot_show_that_it_sleeps_polls(
    launch: Launcher,
    db: psycopg.Connection,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(listening_tail, "SLEEP_RETRY_S", 0.05)
    with psycopg.connect(database_url, autocommit=True) as other:
        hold(other, "tail", 1, 2)
        server = await launch(safety_read=60)
        assert server.bus.tail.awake
        assert f"process {other.info.backend_pid} of" in caplog.text
        async with Client(server.url) as client, client.stream("a") as stream:
            for number in range(20):
                await client.publish("a", number)
                assert (await stream.event()).json() == number
        finding = await one("locks", database_url)
        assert (finding.state, f"pid {other.info.backend_pid} " in finding.found) == ("error", True)
        apply_fixes(db, await found("locks", database_url))
    await eventually(lambda: not server.bus.tail.awake)
    assert (await one("locks", database_url)).state == "ok"


async def test_a_server_whose_lock_is_held_takes_another_row(
    launch: Launcher, db: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as other:
        hold(other, "server", 1, 2, 3)
        server = await launch()
        assert server.bus.registry.server_id == 4
        assert db.execute("SELECT array_agg(id) FROM sse_pg.servers").fetchone() == ([4],)


def test_a_migration_names_who_holds_its_lock(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate_module, "LOCK_TIMEOUT", "10ms")
    monkeypatch.setattr(migrate_module, "LOCK_DEADLINE_S", 0.0)
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('sse_pg migrate', 0))")
        with pytest.raises(MigrationError, match=f"process {other.info.backend_pid} of"):
            migrate(database_url)
