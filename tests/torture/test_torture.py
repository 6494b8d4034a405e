"""A short torture, and proof that its checker notices faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator

import psycopg
import pytest
from support.pgbouncer import needs_pgbouncer
from support.server import Launcher
from support.waiting import eventually

from sse_pg.core.cursor import Cursor
from torture.checker import Report, check, table
from torture.readers import Reader
from torture.run import Plan, torture
from torture.writers import Answers

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("torture"), pytest.mark.oldest]

TICK = """
    INSERT INTO sse_pg.events (channel, event_type, payload)
    SELECT 'c0', 'tick', jsonb_build_object('m', m, 't', m, 'n', 1) FROM (VALUES (%s)) v(m)
"""
PROGRAMS = os.environ.get("SSE_PG_TEST_POSTGRES")


@contextlib.asynccontextmanager
async def reading(reader: Reader) -> AsyncIterator[None]:
    task = asyncio.create_task(reader.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def test_nothing_lost_nothing_doubled() -> None:
    seed = random.randrange(10**6)
    report = asyncio.run(torture(Plan(seed, seconds=20, fault_pause=1.0, postgres_bin=PROGRAMS)))
    assert report.faults == 0, report
    assert report.events > 500
    assert report.delivered > report.events
    assert report.connects > 20
    assert report.ids_with_gaps > 0
    assert report.began_late > 0
    assert report.consumed > report.events
    assert report.worker_failures > 20


@needs_pgbouncer
@pytest.mark.parametrize("pooler", ["listen", "poll"])
def test_nothing_lost_nothing_doubled_behind_a_transaction_pooler(pooler: str) -> None:
    seed = random.randrange(10**6)
    plan = Plan(seed, seconds=20, fault_pause=1.0, erase_pause=0.3, pooler=pooler, postgres_bin=PROGRAMS)
    report = asyncio.run(torture(plan))
    assert report.faults == 0, report
    assert report.events > 500
    assert report.delivered > report.events
    assert report.connects > 20
    assert report.ids_with_gaps > 0
    assert any("pooler" in fault for fault in report.faults_injected)


@needs_pgbouncer
def test_the_checker_sees_notifications_that_do_not_reach_a_server_that_polls() -> None:
    """A run may be so slow that nothing is erased between a server's read and its delivery. So there are several."""
    plans = (
        Plan(
            seed,
            seconds=5,
            fault_pause=1000,
            database_faults=False,
            erase_pause=0.1,
            catch_up=3,
            pooler="poll",
            sabotage="CREATE OR REPLACE FUNCTION sse_pg.notify_servers(messages text[]) RETURNS void LANGUAGE sql AS $$"
            " SELECT pg_notify('sse_pg_control', m) FROM unnest(messages) m $$",
            postgres_bin=PROGRAMS,
            keep=False,
        )
        for seed in range(8)
    )
    assert any(asyncio.run(torture(plan)).served_late for plan in plans)


def test_nothing_lost_nothing_doubled_on_standbys_that_lag() -> None:
    seed = random.randrange(10**6)
    plan = Plan(seed, seconds=20, fault_pause=1.0, servers=3, standbys=2, workers=0, postgres_bin=PROGRAMS)
    report = asyncio.run(torture(plan))
    assert report.faults == 0, report
    assert report.delivered > report.events > 500
    assert sum(report.faults_injected.get(name, 0) for name in ("pause_replay", "delay_replay")) > 3


def test_the_checker_sees_publishers_that_do_not_show_themselves() -> None:
    plan = Plan(
        1,
        seconds=5,
        fault_pause=1000,
        database_faults=False,
        catch_up=3,
        sabotage="DROP TRIGGER announce ON sse_pg.events; DROP TRIGGER close_window ON sse_pg.events",
        server_env={"SSE_PG_SAFETY_READ_MS": "20"},
        postgres_bin=PROGRAMS,
        keep=False,
    )
    report = asyncio.run(torture(plan))
    assert report.lost > 0
    assert report.consumer_lost > 0


#: Changes the headers of events after they were delivered.
OTHER_HEADERS = """
    CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE sse_pg.events SET headers = '{"mark": 0}' WHERE id = NEW.id - 100;
        RETURN NULL;
    END $$;
    CREATE TRIGGER change AFTER INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION change();
"""


def test_the_checker_sees_other_headers() -> None:
    plan = Plan(
        1,
        seconds=5,
        fault_pause=1000,
        database_faults=False,
        catch_up=3,
        sabotage=OTHER_HEADERS,
        postgres_bin=PROGRAMS,
        keep=False,
    )
    report = asyncio.run(torture(plan))
    assert report.altered > 0
    assert report.faults == report.altered


@pytest.mark.parametrize("ignore_gaps", [False, True])
async def test_the_checker_sees_readers_that_ignore_gaps(
    launch: Launcher, database_url: str, db: psycopg.Connection, ignore_gaps: bool
) -> None:
    """A reader is away while an event is committed that is a gap in its cursor."""
    server = await launch()
    reader = Reader(0, 1, [server.url], ("c0",), None, ignore_gaps=ignore_gaps)
    reader.dropping = False
    with psycopg.connect(database_url) as late:
        async with reading(reader):
            await eventually(reader.opened.is_set)
            late.execute(TICK, [1])
            db.execute(TICK, [2])
            await eventually(lambda: list(reader.marks) == [2])
            assert reader.ids_with_gaps == 1
        late.commit()
    await eventually(lambda: server.bus.hub.position == Cursor(2))
    async with reading(reader):
        db.execute(TICK, [3])
        await eventually(lambda: 3 in reader.marks)
    report = check(Report(1), table(database_url), [reader], Answers())
    assert report.lost == ignore_gaps
    assert report.faults == report.lost


def test_what_is_purged_while_clients_resume_is_announced() -> None:
    seed = random.randrange(10**6)
    report = asyncio.run(torture(Plan(seed, seconds=15, fault_pause=1.0, keep_events=400, postgres_bin=PROGRAMS)))
    assert report.faults == 0, report
    assert report.purged_to > 0
    assert report.gaps_expired > 0
    assert report.announced > 0


#: Hides from the servers what is purged.
HIDDEN_PURGE = """
    CREATE FUNCTION hide() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.purged_to := OLD.purged_to;
        RETURN NEW;
    END $$;
    CREATE TRIGGER hide BEFORE UPDATE ON sse_pg.log FOR EACH ROW EXECUTE FUNCTION hide();
"""


def test_the_checker_sees_a_purge_that_is_not_announced() -> None:
    plan = Plan(
        1,
        seconds=8,
        fault_pause=1000,
        database_faults=False,
        catch_up=3,
        keep_events=100,
        sabotage=HIDDEN_PURGE,
        postgres_bin=PROGRAMS,
        keep=False,
    )
    assert asyncio.run(torture(plan)).lost > 0


def test_what_is_erased_is_no_gap_and_what_is_no_longer_kept_is_one() -> None:
    seed = random.randrange(10**6)
    report = asyncio.run(torture(Plan(seed, seconds=15, fault_pause=1.5, erase_pause=0.1, postgres_bin=PROGRAMS)))
    assert report.faults == 0, report
    assert report.erased > 100
    assert report.gaps_expired > 0
    assert report.announced > 0


def test_the_checker_sees_what_servers_do_not_forget() -> None:
    """A run may be so slow that nothing is erased between a server's read and its delivery. So there are several."""
    plans = (
        Plan(
            seed,
            seconds=5,
            fault_pause=1000,
            database_faults=False,
            erase_pause=0.1,
            catch_up=3,
            sabotage="CREATE OR REPLACE FUNCTION sse_pg.note_deletion("
            "channel text, first_id bigint, last_id bigint, expired boolean) RETURNS void LANGUAGE sql AS ''",
            postgres_bin=PROGRAMS,
            keep=False,
        )
        for seed in range(8)
    )
    assert any(asyncio.run(torture(plan)).served_late for plan in plans)
