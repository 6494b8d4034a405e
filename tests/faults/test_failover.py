"""Streams stay open while the primary is lost and its standby takes over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from support import replication
from support.client import Client
from support.process import run
from support.replication import Node, caught_up, cut_off, publish
from support.server import Launcher, Server
from support.waiting import eventually

from sse_pg.core.cursor import Cursor

pytestmark = [pytest.mark.oldest, pytest.mark.timeout(120)]

#: Nobody notes what is settled: otherwise a note follows within milliseconds, and there is little to compare.
KEEP_NOTE = """
    CREATE FUNCTION keep_note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.settled_to := OLD.settled_to;
        NEW.open_first := OLD.open_first;
        NEW.open_last := OLD.open_last;
        RETURN NEW;
    END $$;
    CREATE TRIGGER keep_note BEFORE UPDATE ON sse_pg.log FOR EACH ROW EXECUTE FUNCTION keep_note();
"""


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    """A primary and its standby."""
    with replication.pair() as made:
        yield made


@pytest.fixture
async def servers(nodes: tuple[Node, Node]) -> AsyncIterator[Launcher]:
    """Starts servers that know both nodes."""
    launcher = Launcher(replication.hosts(*nodes))
    yield launcher
    await launcher.close()


async def fail_over(nodes: tuple[Node, Node], *servers: Server) -> None:
    primary, standby = nodes
    primary.kill()  # without an await: no server of this process reads anything more
    await asyncio.to_thread(standby.promote)
    for server in servers:
        await eventually(lambda server=server: len(server.bus.hub.epochs) == 1 and server.bus.tail.listening.is_set())


async def test_a_failover_that_lost_nothing_is_not_noticed(nodes: tuple[Node, Node], servers: Launcher) -> None:
    primary, standby = nodes
    primary.sql(KEEP_NOTE)
    server, other = await servers(), await servers()
    async with Client(server.url) as client, client.stream("a") as stream:
        ids = [await client.publish("a", n) for n in range(20)]
        assert [event.json() for event in await stream.events(20)] == [*range(20)]
        await eventually(lambda: other.bus.hub.position.high >= ids[-1])
        unread = publish(primary, 300)  # from here to the kill without an await: no server reads these
        caught_up(primary, standby)
        await fail_over(nodes, server, other)
        new = [await client.publish("a", n) for n in range(20, 30)]
        assert new[0] > unread[-1] + 900_000_000
        assert [event.json() for event in await stream.events(310)] == [1] * 300 + [*range(20, 30)]
        # The other server, and one that starts now, know that nothing is missing.
        third = await servers()
        for each in (server, other, third):
            await eventually(lambda each=each: each.bus.hub.epochs[0].certain == Cursor(ids[-1]))
            async with Client(each.url) as late, late.stream("a", last_event_id=str(ids[-1])) as resumed:
                assert [event.json() for event in await resumed.events(310)] == [1] * 300 + [*range(20, 30)]
    assert server.bus.hub.gap_notices.total() == other.bus.hub.gap_notices.total() == 0


async def test_what_was_handed_on_and_is_lost_is_announced_and_nothing_comes_again(
    nodes: tuple[Node, Node], servers: Launcher
) -> None:
    primary, standby = nodes
    primary.sql(KEEP_NOTE)
    server, other = await servers(), await servers()
    async with Client(server.url) as client, client.stream("a") as stream:
        kept = [await client.publish("a", n) for n in range(20)]
        caught_up(primary, standby)
        cut_off(standby)
        lost = [await client.publish("a", n) for n in range(20, 25)]
        assert [event.json() for event in await stream.events(25)] == [*range(25)]
        await eventually(lambda: other.bus.hub.position.high >= lost[-1])
        await fail_over(nodes, server, other)
        await client.publish("a", "new")
        gap = await stream.event()
        assert gap.event == "sse-pg.gap"
        assert gap.json() == {"reason": "unknown", "after": str(lost[-1]), "before": str(kept[-1])}
        assert (await stream.event()).json() == "new"
        # A client that has none of the lost events gets no gap event, also from a server that starts now.
        for each in (server, other, await servers()):
            await eventually(lambda each=each: each.bus.hub.epochs[0].certain == Cursor(kept[-1]))
            async with Client(each.url) as late:
                async with late.stream("a", last_event_id=str(kept[-2])) as resumed:
                    assert [event.json() for event in await resumed.events(2)] == [19, "new"]
                async with late.stream("a", last_event_id=str(lost[-2])) as resumed:
                    gap = await resumed.event()
                    assert gap.json() == {"reason": "unknown", "after": str(lost[-2]), "before": str(kept[-1])}
                    assert (await resumed.event()).json() == "new"


async def test_what_is_no_longer_in_memory_comes_again(
    nodes: tuple[Node, Node], servers: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_pg.core.recent.KEPT_EVENTS", 5)
    primary, standby = nodes
    primary.sql(KEEP_NOTE)
    server = await servers()
    async with Client(server.url) as client, client.stream("a") as stream:
        ids = [await client.publish("a", n) for n in range(20)]
        assert [event.json() for event in await stream.events(20)] == [*range(20)]
        caught_up(primary, standby)
        await fail_over(nodes, server)
        gap = await stream.event()
        assert gap.json() == {"reason": "unknown", "after": str(ids[-1]), "before": "0"}
        await client.publish("a", 20)
        assert [event.json() for event in await stream.events(21)] == [*range(21)]


async def test_a_prepared_transaction_outlives_the_failover(nodes: tuple[Node, Node], servers: Launcher) -> None:
    primary, standby = nodes
    server = await servers()
    async with Client(server.url) as client, client.stream("a") as stream:
        with psycopg.connect(primary.url) as conn:
            conn.execute("SET LOCAL sse_pg.bell = 'off'")
            conn.execute("SELECT sse_pg.publish('a', 't', '\"prepared\"')")
            conn.execute("PREPARE TRANSACTION 'before'")
        await client.publish("a", 1)
        first = await stream.event()
        assert "~" in first.id
        caught_up(primary, standby)
        await fail_over(nodes, server)
        await client.publish("a", 2)
        assert (await stream.event()).json() == 2
        standby.sql("COMMIT PREPARED 'before'")
        assert (await stream.event()).json() == "prepared"
        async with client.stream("a", last_event_id=first.id) as resumed:
            assert sorted(str(event.json()) for event in await resumed.events(2)) == ["2", "prepared"]
    assert server.bus.hub.gap_notices.total() == 0


async def test_an_old_primary_that_comes_back_is_not_followed(nodes: tuple[Node, Node], servers: Launcher) -> None:
    """It can be written to and stands first in the connection string. What was published there must not be mixed in."""
    primary, standby = nodes
    server = await servers()
    async with Client(server.url) as client, client.stream("a") as stream:
        await client.publish("a", 1)
        assert (await stream.event()).json() == 1
        caught_up(primary, standby)
        await fail_over(nodes, server)
        await client.publish("a", 2)
        assert (await stream.event()).json() == 2
        await asyncio.to_thread(primary.start)
        publish(primary, 3)
        with psycopg.connect(primary.url) as conn:
            for hosts in (server.bus.tail.hosts, server.bus.pool.hosts, server.bus.tail_pool.hosts):
                hosts.prefer(conn.info)  # as of a server that found the new primary behind another name
        failures = server.bus.tail.meter.failures
        standby.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sse-pg%%'")
        await eventually(lambda: server.bus.tail.meter.failures > failures and server.bus.tail.listening.is_set())
        numbers = [await client.publish("a", n) for n in range(3, 13)]
        assert [event.json() for event in await stream.events(10)] == [*range(3, 13)]
        assert min(numbers) > 1_000_000_000
        assert primary.sql("SELECT max(id) < 1000 FROM sse_pg.events") == [(True,)]
        # While the new primary is away, nothing is published to the old one either.
        await asyncio.to_thread(standby.kill)
        status, _ = await client.post("/api/events/publish", {"channel": "a", "payload": 13})
        assert status == 503
        await eventually(lambda: "an old primary" in server.bus.tail.last_error)
    assert primary.sql("SELECT count(*) FROM sse_pg.events WHERE payload = '13'") == [(0,)]


async def test_a_primary_that_becomes_read_only_answers_503_until_it_is_one_again(
    nodes: tuple[Node, Node], servers: Launcher
) -> None:
    primary, _ = nodes
    server = await servers(pool_timeout=1.0)
    async with Client(server.url) as client, client.stream("a") as stream:
        await client.publish("a", 1)
        primary.sql("ALTER SYSTEM SET default_transaction_read_only = on")
        primary.sql("SELECT pg_reload_conf()")
        statuses = [201]
        while statuses[-3:] != [503] * 3:  # each backend reads the file when it comes to it
            status, _ = await client.post("/api/events/publish", {"channel": "b", "payload": 2})
            assert status in (201, 503)
            statuses.append(status)
        assert primary.sql("SELECT count(*) FROM sse_pg.events WHERE channel = 'b'") == [(statuses.count(201) - 1,)]
        with psycopg.connect(primary.url, autocommit=True) as conn:
            conn.execute("SET default_transaction_read_only = off")
            conn.execute("ALTER SYSTEM RESET default_transaction_read_only")
            conn.execute("SELECT pg_reload_conf()")
        status = 503
        while status == 503:
            status, _ = await client.post("/api/events/publish", {"channel": "a", "payload": 3})
        assert [event.json() for event in await stream.events(2)] == [1, 3]


async def test_the_commands_find_the_primary(nodes: tuple[Node, Node]) -> None:
    primary, standby = nodes
    url = replication.hosts(standby, primary)
    assert run("migrate", DATABASE_URL=url).returncode == 0
    assert run("purge", DATABASE_URL=url).returncode == 0
    assert run("publish", "a", "1", DATABASE_URL=url).stdout == "1\n"
    assert run("doctor", "--json", DATABASE_URL=url).returncode in (0, 1)
    assert primary.sql("SELECT count(*) FROM sse_pg.events") == [(1,)]


async def test_a_prepared_transaction_that_was_rolled_back_in_the_lost_log_only(
    nodes: tuple[Node, Node], servers: Launcher
) -> None:
    """Its id was dead, and what was handed on covers it. In the new log it commits."""
    primary, standby = nodes
    server = await servers()
    async with Client(server.url) as client, client.stream("a") as stream:
        with psycopg.connect(primary.url) as conn:
            conn.execute("SET LOCAL sse_pg.bell = 'off'")
            conn.execute("SELECT sse_pg.publish('a', 't', '\"prepared\"')")
            conn.execute("PREPARE TRANSACTION 'before'")
        caught_up(primary, standby)
        cut_off(standby)
        primary.sql("ROLLBACK PREPARED 'before'")
        lost = await client.publish("a", 1)
        assert (await stream.event()).id == str(lost)
        await fail_over(nodes, server)
        gap = await stream.event()
        assert gap.json() == {"reason": "unknown", "after": str(lost), "before": "0"}
        standby.sql("COMMIT PREPARED 'before'")
        assert (await stream.event()).json() == "prepared"
        async with client.stream("a", last_event_id=str(lost)) as resumed:
            assert (await resumed.event()).event == "sse-pg.gap"
            assert (await resumed.event()).json() == "prepared"
