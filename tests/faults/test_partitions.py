"""Three servers, a database and nginx on machines of their own: partitions, also in one direction, and what vanishes.

Clients reconnect with their last id through nginx, which has the settings of docker/nginx.conf. Each gets every event
of its channel once, whatever is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from support import cluster
from support.event_source import EventSource
from support.network import Network, network
from support.process import Process
from support.proxies import proxy
from support.waiting import PROCESS_TIMEOUT_S

from faults.helpers import Follower, Poster, as_in_table, insert, running, table
from sse_pg.db.migrate import migrate

pytestmark = pytest.mark.long

SERVERS = ("server1", "server2", "server3")
LIVE = "SELECT name, active_connections FROM sse_pg.live_servers()"


class Site:
    """The machines and what runs on them."""

    def __init__(self, net: Network, url: str) -> None:
        self.net = net
        self.url = url
        """The database, past the network."""
        self.proxy = ""
        self._processes: dict[str, Process] = {}

    def at(self, name: str) -> str:
        """Return the URL of a server."""
        return f"http://{self.net.address(name)}:8080"

    def start(self, name: str) -> None:
        """Start a server."""
        with self.net.at(name):
            self._processes[name] = Process(
                *("serve", "--port", "8080"),
                HOST="0.0.0.0",
                DATABASE_URL=f"postgresql://postgres@{self.net.address('database')}/sse_pg",
                SSE_PG_OPEN="true",
                SSE_PG_SERVER_NAME=name,
                SSE_PG_TRUSTED_PROXIES=self.net.address("proxy"),
                SSE_PG_HEARTBEAT_SECONDS="1",
                SSE_PG_RETRY_MS="200",
                SSE_PG_DRAIN_SECONDS="1",
                SSE_PG_MAX_STREAMS_PER_USER="2",
            )

    async def end(self, name: str, number: int) -> None:
        """Send a server a signal, and wait for its end."""
        await asyncio.to_thread(self._processes.pop(name).end, number)

    def close(self) -> None:
        """Kill the servers that are left."""
        for process in self._processes.values():
            process.kill()

    async def readiness(self, name: str) -> tuple[int, str]:
        """Ask a server whether it can serve; the time that the response may take is that of a load balancer's check."""
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{self.at(name)}/readyz") as answer:
            return answer.status, await answer.text()

    async def becomes(self, name: str, status: int) -> str:
        """Wait until a server is ready, or says why not; return its response. It must always respond."""
        found, text = 0, ""
        async with asyncio.timeout(PROCESS_TIMEOUT_S):
            while found != status:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    found, text = await self.readiness(name)
                await asyncio.sleep(0.05)
        return text

    async def live(self) -> dict[str, int]:
        """Return how many streams each server has, as every server would say it."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as conn:
            return dict(await (await conn.execute(LIVE)).fetchall())

    async def until(self, condition: Any) -> None:
        """Wait until a condition on the servers' numbers of streams holds."""
        async with asyncio.timeout(PROCESS_TIMEOUT_S):
            while not condition(await self.live()):
                await asyncio.sleep(0.1)


@contextlib.contextmanager
def database(net: Network) -> Iterator[str]:
    """A PostgreSQL on its machine; yields the URL of its socket."""
    with contextlib.ExitStack() as stack:
        with net.at("database"):
            server = stack.enter_context(cluster.throwaway(listen_addresses="*"))
        with psycopg.connect(server.url, autocommit=True) as conn:
            ((file,),) = conn.execute("SHOW hba_file").fetchall()
            with Path(file).open("a") as hba:
                hba.write("host all all 10.77.0.0/16 trust\n")
            conn.execute("SELECT pg_reload_conf()")
        migrate(server.url)
        yield server.url


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Three servers that are ready, behind nginx."""
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network("clients", "proxy", "database", *SERVERS))
        made = Site(net, stack.enter_context(database(net)))
        stack.callback(made.close)
        for name in SERVERS:
            made.start(name)
        async with contextlib.AsyncExitStack() as more:
            with net.at("proxy"):
                home = tmp_path / "nginx"
                home.mkdir()
                before = proxy("nginx", home, *map(made.at, SERVERS), quiet="4s", host=net.address("proxy"))
                made.proxy = await more.enter_async_context(before)
            with net.at("clients"):
                for name in SERVERS:
                    await made.becomes(name, 200)
                yield made


class Load:
    """Writers and readers that notice everything that goes wrong."""

    def __init__(self, site: Site) -> None:
        self._site = site
        # Some do without nginx. Nobody tells them that a server has vanished, so they listen to the heartbeats.
        self.followers = [Follower(site.proxy) for _ in range(6)]
        self.followers += [Follower(*map(site.at, SERVERS), silence_s=4) for _ in SERVERS]
        url = f"{site.proxy}/api/events/stream?channels=a"
        self.sources = [EventSource(url) for _ in range(4)]
        self.poster = Poster(site.proxy, base=1_000_000)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish and follow during the block. Then compare each reader's record with the table."""
        readers = [reader.run() for reader in (*self.followers, *self.sources)]
        async with running(*readers):
            async with asyncio.timeout(PROCESS_TIMEOUT_S):
                for each in self.followers:
                    await each.opened.wait()
                for source in self.sources:
                    while not source.opens:
                        await asyncio.sleep(0.02)
            posts = asyncio.create_task(self.poster.run(0.02))
            async with running(*(self._insert(number) for number in range(2))):
                yield
            posts.cancel()
            await asyncio.wait([posts])
            await self._compare()

    async def more(self, count: int = 200) -> None:
        """Wait until so many more events are committed."""
        goal = len(await table(self._site.url)) + count
        async with asyncio.timeout(PROCESS_TIMEOUT_S):
            while len(await table(self._site.url)) < goal:
                await asyncio.sleep(0.1)

    async def _insert(self, number: int) -> None:
        async with await psycopg.AsyncConnection.connect(self._site.url) as conn:
            for payload in range(10_000_000 * (number + 1), 10_000_000 * (number + 2)):
                await insert(conn, payload)
                await asyncio.sleep(0.01)
                await conn.commit()

    async def _compare(self) -> None:
        # A publish whose outcome nobody knows may still be committed now, so the table is read until nothing changes.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROCESS_TIMEOUT_S):
                while True:
                    rows = sorted(await table(self._site.url))
                    if all(sorted(record) == rows for record in self._records):
                        break
                    await asyncio.sleep(0.1)
        died = [source.died for source in self.sources if source.died]
        assert not died, died
        for follower in self.followers:
            await as_in_table(follower, self._site.url)
            assert not follower.gaps
        rows = await table(self._site.url)
        for record in self._records:
            assert sorted(record) == sorted(rows)
        self.poster.check(rows)

    @property
    def _records(self) -> list[list[int]]:
        """What each reader was given."""
        sources = [[int(event.data) for event in source.got] for source in self.sources]
        return [*(follower.payloads for follower in self.followers), *sources]


@pytest.mark.parametrize(("source", "target"), [("server1", "database"), ("database", "server1")])
async def test_nothing_passes_in_one_direction_between_a_server_and_the_database(
    site: Site, source: str, target: str
) -> None:
    """The server says that it is not ready, PostgreSQL forgets it, and it comes back by itself."""
    load = Load(site)
    async with load.running():
        await load.more()
        site.net.cut(source, target, both=False)
        await site.becomes("server1", 503)  # a statement has no response, or all connections wait for one
        await site.until(lambda live: set(live) == {"server2", "server3"})
        await load.more()
        site.net.join(source, target, both=False)
        await site.becomes("server1", 200)
        await site.until(lambda live: set(live) == set(SERVERS))
        await load.more()


async def test_an_idle_server_notices_that_it_is_cut_from_the_database(site: Site) -> None:
    """Nobody needs it, so it sends nothing that could remain unanswered."""
    site.net.cut("server1", "database")
    await site.becomes("server1", 503)
    await site.until(lambda live: set(live) == {"server2", "server3"})


@pytest.mark.parametrize(("source", "target"), [("server1", "proxy"), ("proxy", "server1")])
async def test_nothing_passes_in_one_direction_between_a_server_and_the_proxy(
    site: Site, source: str, target: str
) -> None:
    """The streams through the server move to others, and it does not count them for ever."""
    load = Load(site)
    async with load.running():
        await load.more()
        site.net.cut(source, target, both=False)
        everybody = len(load.followers) + len(load.sources)
        await site.until(lambda live: live["server2"] + live["server3"] >= everybody - len(SERVERS))
        await site.until(lambda live: sum(live.values()) == everybody)
        site.net.join(source, target, both=False)
        await load.more()


async def test_the_limit_of_a_user_does_not_count_clients_that_are_cut_off(site: Site) -> None:
    """No reset tells the server. It ends streams whose heartbeats nobody acknowledges."""
    url = f"{site.at('server1')}/api/events"
    async with aiohttp.ClientSession() as session:
        await session.post(f"{url}/channels/subscribe", json={"userId": "u", "channel": "a"})

        async def three() -> list[aiohttp.ClientResponse]:
            return [await session.get(f"{url}/stream?userId=u") for _ in range(3)]

        cut_off = await three()
        assert [response.status for response in cut_off] == [200, 200, 429]
        await site.until(lambda live: live["server1"] == 2)
        site.net.cut("clients", "server1")
        await site.until(lambda live: live["server1"] == 0)
        site.net.join("clients", "server1")
        again = await three()
        assert [response.status for response in again] == [200, 200, 429]
        for response in (*cut_off, *again):
            response.close()


async def test_packets_drop_for_moments(site: Site) -> None:
    """Now here, now there, and never for so long that anybody gives up."""
    load = Load(site)
    async with load.running():
        for turn in range(9):
            ends = [SERVERS[turn % 3], "database" if turn % 2 else "proxy"]
            source, target = ends if turn % 4 < 2 else reversed(ends)
            site.net.cut(source, target, both=turn % 3 == 0)
            await load.more(300)
            site.net.join(source, target, both=turn % 3 == 0)
            await load.more(20)


async def test_rolling_restart(site: Site) -> None:
    """All servers, one after the other."""
    load = Load(site)
    async with load.running():
        for name in SERVERS:
            await load.more(100)
            await site.end(name, signal.SIGTERM)
            await load.more(100)
            site.start(name)
            await site.becomes(name, 200)


@pytest.mark.parametrize("how", ["killed", "cut from everything"])
async def test_a_server_vanishes(site: Site, how: str) -> None:
    """Its streams are counted where they are now, in total and for the limit of a user, and nowhere else."""
    load = Load(site)
    async with load.running(), aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
        await load.more()
        if how == "killed":
            await site.end("server1", signal.SIGKILL)
        else:
            site.net.vanish("server1")
        everybody = len(load.followers) + len(load.sources)
        await site.until(lambda live: "server1" not in live and sum(live.values()) == everybody)
        async with session.get(f"{site.at('server2')}/api/events/active-connections") as answer:
            found = await answer.json()
        assert found["activeConnections"] == everybody
        assert {server["name"] for server in found["servers"]} == {"server2", "server3"}
        await load.more()
