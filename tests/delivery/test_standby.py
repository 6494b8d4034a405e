"""A server that reads from a hot standby: the same events and cursors as from the primary, however far it lags."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.client import Client
from support.cluster import throwaway
from support.server import Launcher, Server
from support.standby import Standby, standby_of
from support.waiting import eventually

from sse_pg.db.migrate import migrate
from sse_pg.delivery import primary_link
from sse_pg.embedded import EmbeddedPostgres
from sse_pg.errors import MigrationError

pytestmark = pytest.mark.oldest
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def primary() -> Iterator[EmbeddedPostgres]:
    with throwaway(max_connections="100", wal_level="replica", hot_standby_feedback="off") as cluster:
        with psycopg.connect(cluster.url, autocommit=True) as conn:
            conn.execute("CREATE DATABASE bus_template")
        migrate(make_conninfo(cluster.url, dbname="bus_template"))
        yield cluster


@pytest.fixture(scope="module")
def standby(primary: EmbeddedPostgres) -> Iterator[Standby]:
    with standby_of(primary) as made:
        yield made


@pytest.fixture
def name(primary: EmbeddedPostgres, standby: Standby) -> Iterator[str]:
    """A database of this test's own, on both."""
    made = f"bus_{next(_numbers)}"
    with psycopg.connect(primary.url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {made} TEMPLATE bus_template".encode())
        standby.catch_up("postgres")
        yield made
        standby.resume()
        conn.execute(f"DROP DATABASE {made} WITH (FORCE)".encode())


@pytest.fixture
def db(primary: EmbeddedPostgres, name: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(make_conninfo(primary.url, dbname=name), autocommit=True) as conn:
        yield conn


@pytest.fixture
async def launch(primary: EmbeddedPostgres, standby: Standby, name: str) -> AsyncIterator[Launcher]:
    """Start servers that read from the standby, unless they are told otherwise."""
    launcher = Launcher(make_conninfo(primary.url, dbname=name), read_database_url=standby.url(name))
    yield launcher
    await launcher.close()


def publish(db: psycopg.Connection, payload: object, channel: str = "a") -> int:
    ((number,),) = db.execute(
        "SELECT sse_pg.publish(%s, 'message', to_jsonb(%s::text))", (channel, str(payload))
    ).fetchall()
    return int(number)


async def linked(server: Server) -> Server:
    assert server.bus.link is not None
    await eventually(server.bus.link.connected.is_set)
    return server


async def test_events_come_from_the_standby(
    launch: Launcher, db: psycopg.Connection, primary: EmbeddedPostgres
) -> None:
    """Also when they commit in another order than that of their ids."""
    server = await linked(await launch())
    async with Client(server.url) as client, client.stream("a") as stream:
        with psycopg.connect(make_conninfo(db.info.dsn)) as other:
            late = publish(other, "late")
            first = publish(db, "first")
            event = await stream.event()
            assert (event.json(), event.id) == ("first", f"{first}~1")
            other.commit()
        event = await stream.event()
        assert (event.json(), event.number) == ("late", late)
        await client.publish("a", "over HTTP")
        assert (await stream.event()).json() == "over HTTP"
    async with Client(server.url) as client, client.stream("a", last_event_id="0") as stream:
        assert {event.json() for event in await stream.events(3)} == {"late", "first", "over HTTP"}


async def test_the_server_says_which_streams_are_open(launch: Launcher) -> None:
    server = await linked(await launch())
    async with Client(server.url) as client, client.stream("a"):
        await eventually(lambda: server.bus.hub.streams)
        status, answer = await client.get("/api/events/streams?servers=all")
        assert (status, answer["server"]["answered"], answer["count"]) == (200, True, 1)


async def test_a_standby_that_is_stuck(
    launch: Launcher, db: psycopg.Connection, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is not ready if another one has more. If all are stuck alike, leaving them out would help nobody."""
    monkeypatch.setattr(primary_link, "STUCK_AFTER_S", 0.5)
    server, same = [await linked(await launch()) for _ in range(2)]
    async with Client(server.url) as client:
        await eventually(lambda: server.bus.tail.replayed)
        standby.pause()
        publish(db, "late")
        for each in (server, same):
            assert each.bus.link is not None
            link = each.bus.link
            await eventually(lambda link=link: link.stuck_s > 2)  # it was looked at several times
            assert each.bus.why_not_ready() is None
        assert (await client.get("/readyz"))[0] == 200
        ahead = await launch(read_database_url=None)
        await eventually(lambda: "the standby has replayed nothing" in (server.bus.why_not_ready() or ""))
        status, body = await client.get("/readyz")
        assert (status, "other servers have more" in body["detail"]) == (503, True)
        assert ahead.bus.why_not_ready() is None
        standby.resume()
        await eventually(lambda: server.bus.why_not_ready() is None)
        assert (await client.get("/readyz"))[0] == 200


async def test_a_cursor_from_the_primary_waits_for_the_standby(
    launch: Launcher, db: psycopg.Connection, standby: Standby
) -> None:
    """The client was given an event elsewhere that this standby does not have yet: no gap, and no event twice."""
    behind = await linked(await launch())
    ahead = await launch(read_database_url=None)
    publish(db, 1)
    await eventually(lambda: behind.bus.hub.position.high == 1)
    standby.pause()
    async with Client(ahead.url) as client, client.stream("a", last_event_id="1") as stream:
        publish(db, 2)
        last_id = (await stream.event()).id
        assert last_id == "2"
    async with Client(behind.url) as client:
        opened = asyncio.create_task(_first_event(client, last_id))
        await eventually(lambda: behind.bus.hub.streams)
        publish(db, 3)
        passes = behind.bus.tail.meter.reads
        await eventually(lambda: behind.bus.tail.meter.reads > passes + 5)
        assert behind.bus.hub.position.high == 1
        standby.resume()
        assert await opened == "3"
    assert behind.bus.cursors["lost"] == 0


async def _first_event(client: Client, last_event_id: str) -> object:
    async with client.stream("a", last_event_id=last_event_id) as stream:
        return (await stream.event()).json()


async def test_a_cursor_beyond_the_log_gets_a_gap(launch: Launcher, db: psycopg.Connection) -> None:
    publish(db, 1)
    server = await linked(await launch())
    async with Client(server.url) as client, client.stream("a", last_event_id="1000") as stream:
        gap = await stream.event()
        assert (gap.event, gap.json()["reason"]) == ("sse-pg.gap", "unknown")


async def test_a_page_is_worth_what_its_standby_has(
    launch: Launcher, db: psycopg.Connection, standby: Standby, name: str
) -> None:
    """The requests' standby is behind the one that the tail reads: the page ends there, and nothing is passed over."""
    server = await linked(await launch(ring_events=1))
    requests = server.bus.read_pools[0]
    publish(db, 1)
    await eventually(lambda: server.bus.hub.position.high == 1)
    standby.pause()
    # The tail reads on from the primary, as if it were a standby that is up to date.
    for payload in range(2, 6):
        publish(db, payload)
    tail = server.bus.tail
    tail._url, before = db.info.dsn, tail._url  # type: ignore[attr-defined]
    assert tail._frontier is not None
    standby.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sse-pg tail'", name
    )
    await eventually(lambda: server.bus.hub.position.high == 5)
    assert before == standby.url(name)
    requests.log_identity = None
    async with Client(server.url) as client:
        async with client.session.get(
            f"{server.url}/api/events/history", params={"channel": "a", "limit": "10"}
        ) as response:
            page = await response.json()
        assert [event["id"] for event in page["events"]] == [1]
        assert page["nextCursor"] == "1"
        async with client.stream("a", last_event_id="0") as stream:
            assert (await stream.event()).json() == "1"
            last = asyncio.create_task(_last_events(client, 2))
            await eventually(lambda: len(server.bus.hub.streams) == 2)
            standby.resume()
            assert [event.json() for event in await stream.events(4)] == ["2", "3", "4", "5"]
            assert await last == ["4", "5"]


async def _last_events(client: Client, count: int) -> list[object]:
    async with client.stream("a", latest=str(count)) as stream:
        return [event.json() for event in await stream.events(count)]


async def test_a_transaction_around_the_mark_is_in_order(
    launch: Launcher, db: psycopg.Connection, standby: Standby, name: str
) -> None:
    """One of its ids is in an open range of the mark, the other above it: a page has both, or neither."""
    server = await linked(await launch())
    with psycopg.connect(db.info.dsn) as late:
        publish(late, "first")
        publish(db, "between")
        row = "SELECT settled_to, open_first FROM sse_pg.log"
        await eventually(lambda: db.execute(row).fetchall() == [(2, [1])])
        with psycopg.connect(db.info.dsn) as holder:
            holder.execute("SELECT FROM sse_pg.log FOR UPDATE")  # the mark stays
            publish(late, "second")
            late.commit()
            standby.catch_up(name)
            async with (
                Client(server.url) as client,
                client.session.get(f"{server.url}/api/events/history", params={"channel": "a"}) as response,
            ):
                page = await response.json()
            assert db.execute(row).fetchall() == [(2, [1])]
    assert [event["id"] for event in page["events"]] == [1, 2, 3]
    assert page["nextCursor"] == "3"


async def test_the_primary_is_unavailable(launch: Launcher, db: psycopg.Connection) -> None:
    """Reading goes on, from the table too. What needs the primary is refused, and a cursor that is ahead waits."""
    publish(db, 1)
    server = await linked(await launch())
    link = server.bus.link
    assert link is not None
    await eventually(lambda: server.bus.hub.position.high == 1)  # the stream begins at what the standby has
    async with Client(server.url) as client, client.stream("a") as stream:
        publish(db, 2)
        assert (await stream.event()).json() == "2"
        link._url = "host=/nowhere"
        for pool in (server.bus.pool, server.bus.tail_pool):
            pool.conninfo = "host=/nowhere"
            await pool.drain()
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sse-pg tail'")
        await eventually(lambda: not link.connected.is_set())
        publish(db, 3)
        assert (await stream.event()).json() == "3"
        async with client.session.get(
            f"{server.url}/api/events/history", params={"channel": "a", "limit": "10"}
        ) as response:
            assert len((await response.json())["events"]) == 3
        async with client.stream("a", last_event_id="1") as resumed:
            assert [event.json() for event in await resumed.events(2)] == ["2", "3"]
        async with client.session.get(f"{server.url}/readyz") as response:
            assert response.status == 200
        async with client.session.post(
            f"{server.url}/api/events/publish", json={"channel": "a", "eventType": "m", "payload": 4}
        ) as response:
            assert response.status == 503


async def test_an_erased_event_leaves_the_memory(launch: Launcher, db: psycopg.Connection) -> None:
    server = await linked(await launch())
    async with Client(server.url) as client, client.stream("a") as live:
        for payload in ("kept", "erased"):
            publish(db, payload)
        await live.events(2)
        db.execute("""SELECT sse_pg.erase('a', containing => '"erased"')""")
        await eventually(lambda: server.bus.erasures.erased == 1)
        publish(db, "last")
        async with client.stream("a", last_event_id="0") as stream:
            assert [event.json() for event in await stream.events(2)] == ["kept", "last"]


async def test_a_revocation_is_heard(launch: Launcher, db: psycopg.Connection) -> None:
    db.execute(
        "CREATE OR REPLACE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean"
        " LANGUAGE sql STABLE AS $$"
        " SELECT channel <> 'secret' OR EXISTS (SELECT FROM sse_pg.log WHERE purged_to = 0) $$"
    )
    server = await linked(await launch())
    async with Client(server.url) as client, client.stream("secret") as stream:
        publish(db, 1, "secret")
        assert (await stream.event()).json() == "1"
        db.execute("UPDATE sse_pg.log SET purged_to = 1")
        db.execute("SELECT sse_pg.revoke()")
        with pytest.raises(EOFError):
            await stream.event()


async def test_a_server_on_a_standby_counts(launch: Launcher, db: psycopg.Connection) -> None:
    server = await linked(await launch())
    async with Client(server.url) as client, client.stream("a"):
        rows = "SELECT active_connections FROM sse_pg.live_servers()"
        await eventually(lambda: db.execute(rows).fetchall() == [(1,)])


async def test_the_mark_is_written_although_no_server_reads_on_the_primary(
    launch: Launcher, db: psycopg.Connection
) -> None:
    await linked(await launch())
    mark = "SELECT settled_to, open_first, open_last FROM sse_pg.log"
    with psycopg.connect(db.info.dsn) as other:
        publish(db, 1)
        publish(other, 2)
        publish(db, 3)
        await eventually(lambda: db.execute(mark).fetchall() == [(3, [2], [2])])
        other.rollback()
        await eventually(lambda: db.execute(mark).fetchall() == [(3, [], [])])


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_position_and_read_on_a_standby(db: psycopg.Connection, standby: Standby, name: str, isolation: str) -> None:
    """They are exact by the mark: what is not visible there is a gap, or above the cursor."""
    db.execute("SELECT sse_pg.check_epoch()")
    with psycopg.connect(db.info.dsn) as late, psycopg.connect(db.info.dsn) as dead:
        assert [publish(late, "late"), publish(db, "two"), publish(dead, "dead"), publish(db, "four")] == [1, 2, 3, 4]
        dead.rollback()
        assert db.execute("SELECT sse_pg.write_mark()").fetchone() == (True,)  # 1 may come, 3 cannot
        assert db.execute("SELECT sse_pg.write_mark()").fetchone() == (None,)
        publish(db, "five")  # above the mark
        standby.catch_up(name)
        with psycopg.connect(standby.url(name)) as there:
            there.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
            assert there.execute("SELECT sse_pg.position()").fetchone() == ("5~4",)
            rows = there.execute("SELECT id, cursor FROM sse_pg.read('0', ARRAY['a'])").fetchall()
            assert rows == [(2, "2~1"), (4, "4~3"), (5, "5~4")]
            assert there.execute("SELECT * FROM sse_pg.read('5~4', ARRAY['a'])").fetchall() == []
        late.commit()
        standby.catch_up(name)
        with psycopg.connect(standby.url(name)) as there:
            there.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
            rows = there.execute("SELECT id, cursor FROM sse_pg.read('5~4', ARRAY['a'])").fetchall()
            assert rows == [(1, "5")]


@pytest.mark.parametrize("cursor", ["3", "2000000000"])
def test_a_cursor_that_is_ahead_of_a_standby_is_refused(
    db: psycopg.Connection, standby: Standby, name: str, cursor: str
) -> None:
    """The ids may have been offered elsewhere, or not: only the primary knows."""
    for payload in range(2):
        publish(db, payload)
    db.execute("SELECT sse_pg.write_mark()")
    standby.catch_up(name)
    with psycopg.connect(standby.url(name), autocommit=True) as there:
        assert len(there.execute("SELECT * FROM sse_pg.read('0', ARRAY['a'])").fetchall()) == 2
        with pytest.raises(psycopg.Error, match="this standby does not have") as raised:
            there.execute("SELECT * FROM sse_pg.read(%s, ARRAY['a'])", (cursor,))
        assert raised.value.sqlstate == "SP503"


def test_consume_is_refused_on_a_standby(db: psycopg.Connection, standby: Standby, name: str) -> None:
    """Also by a consumer that would have nothing to do."""
    standby.catch_up(name)
    with psycopg.connect(standby.url(name), autocommit=True) as there:
        for statement in (b"SELECT * FROM sse_pg.consume('c', ARRAY['a'])", b"SELECT sse_pg.has_work('c', ARRAY['a'])"):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="cannot be written to"):
                there.execute(statement)


def test_migrate_says_that_it_is_a_standby(standby: Standby, name: str) -> None:
    with pytest.raises(MigrationError, match="SSE_PG_READ_DATABASE_URL"):
        migrate(standby.url(name))


async def test_a_purge_that_overtakes_a_standby_is_announced(
    launch: Launcher, db: psycopg.Connection, standby: Standby
) -> None:
    """As when nobody waits for a server because it is not connected to the primary: its streams get a gap event."""
    server = await linked(await launch())
    async with Client(server.url) as client, client.stream("a") as stream:
        publish(db, 1)
        await stream.event()
        standby.pause()
        publish(db, 2)
        with db.transaction():
            db.execute("DELETE FROM sse_pg.events WHERE id = 2")
            db.execute("UPDATE sse_pg.log SET purged_to = 2")
        publish(db, 3)
        standby.resume()
        gap = await stream.event()
        assert (gap.event, gap.json()["reason"]) == ("sse-pg.gap", "expired")
        assert (await stream.event()).json() == "3"


async def test_metrics_show_the_lag(launch: Launcher, db: psycopg.Connection, standby: Standby) -> None:
    server = await linked(await launch())
    link = server.bus.link
    assert link is not None
    standby.pause()
    publish(db, 1)
    await eventually(lambda: link.lag_ids == 1 and link.lag_s > 0)
    async with Client(server.url) as client, client.session.get(f"{server.url}/metrics") as response:
        text = await response.text()
    assert "\nsse_pg_standby_lag_ids 1.0\n" in text or "\nsse_pg_standby_lag_ids 1\n" in text
    standby.resume()
    await eventually(lambda: link.lag_s == 0)


async def test_another_log_is_refused(launch: Launcher, database_url: str) -> None:
    server = await launch(ready=False, read_database_url=database_url)
    await eventually(lambda: "leads to another log" in server.bus.tail.last_error)
