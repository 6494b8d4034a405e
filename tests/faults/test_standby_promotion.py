"""The primary is lost while servers read from its standbys, one of which takes over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import pytest
from support import replication
from support.client import Client
from support.replication import Node, caught_up, cut_off, follow, publish
from support.server import Launcher, Server
from support.streams import StreamReader
from support.waiting import eventually

from sse_pg.core.cursor import Cursor

pytestmark = [pytest.mark.oldest, pytest.mark.timeout(120)]


class Nodes(NamedTuple):
    """A primary and two standbys."""

    primary: Node
    heir: Node
    """The standby that is promoted."""
    other: Node
    """The other one."""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with contextlib.ExitStack() as stops:
        primary, heir = stops.enter_context(replication.pair())
        other = primary.copy(primary.data_dir.parent / "other")
        stops.callback(other.stop)
        other.start()
        yield Nodes(primary, heir, other)


@pytest.fixture
async def servers(nodes: Nodes) -> AsyncIterator[Launcher]:
    """Starts servers that look for the primary among the first two, and read from the one that is promoted."""
    launcher = Launcher(replication.hosts(nodes.primary, nodes.heir), read_database_url=nodes.heir.url)
    yield launcher
    await launcher.close()


async def linked(server: Server) -> Server:
    assert server.bus.link is not None
    await eventually(server.bus.link.connected.is_set)
    return server


async def fail_over(nodes: Nodes) -> None:
    nodes.primary.kill()  # without an await: no server of this process reads anything more
    await asyncio.to_thread(nodes.heir.promote)


async def test_events_are_read_before_the_epoch_is_noted(nodes: Nodes, servers: Launcher) -> None:
    """Somebody publishes to the new primary before any server has looked."""
    server = await linked(await servers())
    async with Client(server.url) as client, client.stream("a") as stream:
        ids = [await client.publish("a", n) for n in range(20)]
        assert await payloads(stream, 20) == [*range(20)]
        caught_up(nodes.primary, nodes.heir)
        nodes.primary.kill()
        nodes.heir.promote()
        publish(nodes.heir, 3)
        assert await payloads(stream, 3) == [1, 1, 1]
        await eventually(lambda: server.bus.hub.epochs and server.bus.hub.epochs[0].certain.covers(Cursor(ids[-1])))
        async with client.stream("a", last_event_id=str(ids[-1])) as resumed:
            assert await payloads(resumed, 3) == [1, 1, 1]
    assert server.bus.hub.gap_notices.total() == 0


async def payloads(stream: StreamReader, count: int) -> list[object]:
    return [event.json() for event in await stream.events(count)]


async def test_the_standby_that_is_read_is_promoted(nodes: Nodes, servers: Launcher) -> None:
    """Nothing was lost: open streams, and clients that come back, notice nothing."""
    server = await linked(await servers())
    async with Client(server.url) as client, client.stream("a") as stream:
        ids = [await client.publish("a", n) for n in range(20)]
        assert await payloads(stream, 20) == [*range(20)]
        publish(nodes.primary, 300)
        caught_up(nodes.primary, nodes.heir)
        await fail_over(nodes)
        await linked(server)
        await eventually(lambda: server.bus.hub.epochs)
        for n in range(20, 30):
            await client.publish("a", n)
        assert await payloads(stream, 310) == [1] * 300 + [*range(20, 30)]
        async with client.stream("a", last_event_id=str(ids[-1])) as resumed:
            assert await payloads(resumed, 310) == [1] * 300 + [*range(20, 30)]
    assert server.bus.hub.gap_notices.total() == 0


async def test_what_the_promoted_standby_lacks_is_announced_to_those_who_have_it(
    nodes: Nodes, servers: Launcher
) -> None:
    server = await linked(await servers())
    async with Client(server.url) as client, client.stream("a") as stream:
        kept = [await client.publish("a", n) for n in range(20)]
        assert await payloads(stream, 20) == [*range(20)]
        caught_up(nodes.primary, nodes.heir)
        cut_off(nodes.heir)
        lost = publish(nodes.primary, 5)
        await fail_over(nodes)
        await linked(server)
        await eventually(lambda: server.bus.hub.epochs)
        await client.publish("a", "new")
        assert (await stream.event()).json() == "new"  # this server has handed on nothing that is lost
        async with client.stream("a", last_event_id=str(lost[-1])) as resumed:
            gap = await resumed.event()
            assert (gap.event, gap.json()["reason"]) == ("sse-pg.gap", "unknown")
            assert int(gap.json()["before"].split("~")[0]) <= kept[-1]
            while (event := await resumed.event()).json() != "new":
                assert event.json() in range(20)


async def test_the_other_standby_follows_the_new_primary(nodes: Nodes, servers: Launcher) -> None:
    server = await linked(await servers(read_database_url=nodes.other.url))
    async with Client(server.url) as client, client.stream("a") as stream:
        ids = [await client.publish("a", n) for n in range(20)]
        assert await payloads(stream, 20) == [*range(20)]
        publish(nodes.primary, 300)
        caught_up(nodes.primary, nodes.heir)
        await fail_over(nodes)
        follow(nodes.other, nodes.heir)
        await linked(server)
        for n in range(20, 30):
            await client.publish("a", n)
        assert await payloads(stream, 310) == [1] * 300 + [*range(20, 30)]
        await eventually(lambda: server.bus.hub.epochs)
        nodes.other.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sse-pg tail'")
        await client.publish("a", 30)
        assert await payloads(stream, 1) == [30]
        async with client.stream("a", last_event_id=str(ids[-1])) as resumed:
            assert await payloads(resumed, 311) == [1] * 300 + [*range(20, 31)]
    assert server.bus.hub.gap_notices.total() == 0


async def test_a_standby_that_is_left_behind_and_made_anew(nodes: Nodes, servers: Launcher) -> None:
    """It has more than the standby that was promoted, so it cannot follow. Its streams wait, and then get a gap."""
    server = await linked(await servers(read_database_url=nodes.other.url))
    async with Client(server.url) as client, client.stream("a") as stream:
        kept = [await client.publish("a", n) for n in range(20)]
        caught_up(nodes.primary, nodes.heir)
        cut_off(nodes.heir)
        lost = [await client.publish("a", n) for n in range(20, 25)]
        assert await payloads(stream, 25) == [*range(25)]
        await fail_over(nodes)
        await linked(server)
        new = await client.publish("a", "new")
        assert server.bus.link is not None
        await eventually(lambda: server.bus.link is not None and server.bus.link.lag_ids > 0)
        assert server.bus.hub.position.high <= lost[-1]
        await asyncio.to_thread(nodes.other.stop)
        again = await asyncio.to_thread(nodes.heir.copy, nodes.primary.data_dir.parent / "again")
        try:
            nodes.other.files.rename(nodes.other.files.with_name("left-behind"))
            again.files.rename(nodes.other.files)
            await asyncio.to_thread(nodes.other.start)
            gap = await stream.event()
            assert (gap.event, gap.json()["reason"]) == ("sse-pg.gap", "unknown")
            assert gap.json()["after"] == str(lost[-1])
            assert int(gap.json()["before"].split("~")[0]) <= kept[-1]
            assert (event := await stream.event()).json() == "new"
            assert event.id == str(new)
        finally:
            again.stop()


async def test_the_tail_has_read_from_another_standby_than_the_one_that_is_promoted(
    nodes: Nodes, servers: Launcher
) -> None:
    """What it has handed on from there is lost, which it finds when the epoch begins on its connection."""
    server = await linked(await servers(read_database_url=replication.hosts(nodes.other, nodes.heir)))
    async with Client(server.url) as client, client.stream("a") as stream:
        kept = [await client.publish("a", n) for n in range(20)]
        caught_up(nodes.primary, nodes.heir)
        cut_off(nodes.heir)
        lost = [await client.publish("a", n) for n in range(20, 25)]
        assert await payloads(stream, 25) == [*range(25)]
        connections = server.bus.tail.meter.connections
        await asyncio.to_thread(nodes.other.kill)
        await eventually(lambda: server.bus.tail.meter.connections > connections)  # to the one that is behind
        await fail_over(nodes)
        await linked(server)
        await client.publish("a", "new")
        gap = await stream.event()
        assert gap.event == "sse-pg.gap"
        assert gap.json()["after"] == str(lost[-1])
        assert int(gap.json()["before"].split("~")[0]) <= kept[-1]
        assert (await stream.event()).json() == "new"


async def test_a_standby_that_was_left_behind_is_not_read(nodes: Nodes, servers: Launcher) -> None:
    """It is the next in the connection string when the new primary restarts, and has events that are lost."""
    server = await linked(await servers(read_database_url=replication.hosts(nodes.heir, nodes.other)))
    async with Client(server.url) as client, client.stream("a") as stream:
        await client.publish("a", 1)
        assert (await stream.event()).json() == 1
        caught_up(nodes.primary, nodes.heir)
        cut_off(nodes.heir)
        publish(nodes.primary, 5)
        caught_up(nodes.primary, nodes.other)
        await fail_over(nodes)
        await eventually(lambda: server.bus.hub.epochs)
        await asyncio.to_thread(nodes.heir.kill)
        await eventually(lambda: "has not replayed the beginning" in server.bus.tail.last_error)
        await asyncio.to_thread(nodes.heir.start)
        await linked(server)
        await client.publish("a", 2)
        assert (await stream.event()).json() == 2
    assert server.bus.hub.gap_notices.total() == 0
