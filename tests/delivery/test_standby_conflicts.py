"""A standby cancels what is in the way of its replay, and standbys come and go: streams neither lose nor repeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from support.client import Client
from support.cluster import throwaway
from support.server import Launcher
from support.standby import Standby, any_of, standby_of
from support.waiting import TIMEOUT_S, wait_for

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres

pytestmark = pytest.mark.oldest

#: More than the socket between a backend and its client takes, so the backend waits for the client in mid-statement.
EVENTS, SIZE = 40, 100_000
#: What replay waits for statements of the standby for: a lock, as for a partition that is dropped, or old versions.
WAYS = {
    "lock": ["BEGIN; LOCK TABLE sse_pg.events IN ACCESS EXCLUSIVE MODE; COMMIT"],
    "vacuum": ["DELETE FROM sse_pg.events WHERE channel = 'other'", "VACUUM sse_pg.events"],
}


@pytest.fixture(scope="module")
def primary() -> Iterator[EmbeddedPostgres]:
    with throwaway(max_connections="100", wal_level="replica", autovacuum="off") as cluster:
        migrate(cluster.url)
        yield cluster


@pytest.fixture(scope="module")
def standby(primary: EmbeddedPostgres) -> Iterator[Standby]:
    """It waits for others for a moment only."""
    with standby_of(primary, max_standby_streaming_delay="500ms", hot_standby_feedback="off") as made:
        yield made


@pytest.fixture
def db(primary: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    with psycopg.connect(primary.url, autocommit=True) as conn:
        yield conn


@pytest.fixture
async def launch(primary: EmbeddedPostgres, standby: Standby, db: psycopg.Connection) -> AsyncIterator[Launcher]:
    launcher = Launcher(primary.url, read_database_url=standby.url(db.info.dbname), stream_buffer=2**25)
    yield launcher
    await launcher.close()


def publish(db: psycopg.Connection, channel: str) -> list[int]:
    db.execute("SELECT sse_pg.publish('other', 'm', '0')")
    rows = db.execute(
        "SELECT sse_pg.publish(%s, 'm', to_jsonb(n || repeat('x', %s))) FROM generate_series(1, %s) AS n",
        (channel, SIZE, EVENTS),
    )
    return [number for (number,) in rows]


async def get_in_the_way(standby: Standby, db: psycopg.Connection, application: str, way: str) -> None:
    """Let replay meet a statement of this application that has begun and waits for its client, that is, for us."""
    name = db.info.dbname
    with psycopg.connect(standby.url(name), autocommit=True) as there:
        waits_for = (
            "SELECT coalesce(wait_event, '') FROM pg_stat_activity WHERE application_name = %s AND state = 'active'"
        )
        async with asyncio.timeout(TIMEOUT_S):
            # While a statement runs, this process reads nothing, so a long one has to wait for it.
            while ("ClientWrite",) not in (running := there.execute(waits_for, (application,)).fetchall()):
                if not running:
                    await asyncio.sleep(0)
        # No await from here on: this process reads nothing.
        for statement in WAYS[way]:
            db.execute(statement.encode())
        stuck = (
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup'"
            " AND (wait_event_type = 'Lock' OR wait_event LIKE 'RecoveryConflict%'))"
        )
        wait_for(lambda: there.execute(stuck.encode()).fetchone() == (True,), "the conflict")
        # It waits no longer, but cancels again and again what is in the way.
        wait_for(lambda: there.execute(stuck.encode()).fetchone() == (False,), "the end of its patience")


@pytest.mark.parametrize("way", WAYS)
async def test_history_is_refused_and_then_answered(
    launch: Launcher, db: psycopg.Connection, standby: Standby, way: str
) -> None:
    server = await launch()
    ids = publish(db, f"history.{way}")
    standby.catch_up(db.info.dbname)
    params = {"channel": f"history.{way}", "limit": "1000"}
    async with Client(server.url) as client:

        async def page() -> tuple[int, str | None, list[int]]:
            _, body, response = await client.request("GET", "/api/events/history", params=params)
            found = [event["id"] for event in body["events"]] if response.status == 200 else []
            return response.status, response.headers.get("Retry-After"), found

        asked = asyncio.create_task(page())
        await get_in_the_way(standby, db, "sse-pg", way)
        status, retry_after, _ = await asked
        assert status == 503
        assert retry_after is not None
        status, _, found = await page()
        assert (status, found) == (200, ids)


@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_that_catches_up_goes_on(
    launch: Launcher, db: psycopg.Connection, standby: Standby, way: str
) -> None:
    ids = publish(db, f"page.{way}")
    standby.catch_up(db.info.dbname)
    server = await launch()
    async with Client(server.url) as client, client.stream(f"page.{way}", last_event_id=str(ids[0] - 1)) as stream:
        await get_in_the_way(standby, db, "sse-pg", way)
        assert [event.id for event in await stream.events(EVENTS)] == [str(number) for number in ids]
    assert server.bus.hub.gap_notices.total() == 0


@pytest.mark.parametrize("way", WAYS)
async def test_the_tail_reads_again(launch: Launcher, db: psycopg.Connection, standby: Standby, way: str) -> None:
    server = await launch()
    async with Client(server.url) as client, client.stream(f"tail.{way}") as stream:
        failures = server.bus.tail.meter.failures
        ids = publish(db, f"tail.{way}")
        await get_in_the_way(standby, db, "sse-pg tail", way)
        assert [event.id for event in await stream.events(EVENTS)] == [str(number) for number in ids]
        assert server.bus.tail.meter.failures > failures
    assert server.bus.hub.gap_notices.total() == 0


async def test_one_of_several_standbys_is_enough(
    launch: Launcher, db: psycopg.Connection, primary: EmbeddedPostgres, standby: Standby
) -> None:
    """The first is down when the server starts; the second is lost later, when the first is there."""
    name = db.info.dbname
    with standby_of(primary) as first:
        first.stop()
        server = await launch(read_database_url=any_of([first, standby], name))
        async with Client(server.url) as client, client.stream("several") as stream:
            one = await client.publish("several", 1)
            assert (await stream.event()).json() == 1
            first.start()
            first.catch_up(name)
            standby.stop(kill=True)
            try:
                await client.publish("several", 2)
                assert (await stream.event()).json() == 2
                async with client.stream("several", last_event_id=str(one - 1)) as resumed:
                    assert [event.json() for event in await resumed.events(2)] == [1, 2]
                status, body = await client.get("/api/events/history?channel=several")
                assert (status, [event["payload"] for event in body["events"]]) == (200, [1, 2])
            finally:
                standby.start()
    assert server.bus.hub.gap_notices.total() == 0
