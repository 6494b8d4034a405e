"""Servers and clients as processes: killed, stopped, frozen, and unreachable."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from support.server import Launcher
from support.waiting import TIMEOUT_S, eventually
from torture.faults import ServerProcess, free_ports

from faults.helpers import Follower, Poster, as_in_table, connection, following, insert, running, table

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")

_numbers = itertools.count(1)

Start = Callable[..., "Process"]


class Process(ServerProcess):
    """A server whose exit code is known."""

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    async def exit_code(self) -> int:
        """Wait for the end."""
        assert self._process is not None
        async with asyncio.timeout(TIMEOUT_S):
            while self._process.poll() is None:
                await asyncio.sleep(0.01)
        return int(self._process.returncode)

    async def ready(self) -> None:
        """Wait until it can serve."""
        async with asyncio.timeout(TIMEOUT_S), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"{self.url}/readyz") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.02)


@pytest.fixture
async def start(database_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Start servers as processes."""
    started: list[Process] = []

    def make(**env: str) -> Process:
        (port,) = free_ports(1)
        server = Process(port, database_url, str(tmp_path / "server.log"), {"SSE_PG_HEARTBEAT_SECONDS": "60", **env})
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.kill()


async def test_a_server_is_killed_and_started_again(start: Start, database_url: str) -> None:
    server = start()
    await server.ready()
    poster = Poster(server.url)
    async with following(server.url) as follower, connection(database_url) as elsewhere:
        async with running(poster.run()):
            for number in range(2):
                count = len(poster.accepted)
                await eventually(lambda c=count: len(poster.accepted) > c + 50)
                server.kill()
                await insert(elsewhere, -number - 1)
                server.start()
                await server.ready()
            count = len(poster.accepted)
            await eventually(lambda: len(poster.accepted) > count + 50)
        await as_in_table(follower, database_url)
        assert follower.connects >= 3
        assert follower.gaps == []
    poster.check(await table(database_url))


async def test_clients_alternate_between_two_servers(start: Start, database_url: str) -> None:
    """At every drop the client goes to the other server, which may have read less or more."""
    servers = [start(), start()]
    for server in servers:
        await server.ready()
    urls = [server.url for server in servers]
    poster = Poster(*urls)
    followers = [Follower(*urls, drop_every=every) for every in (1, 3, 10, 40)]

    async def write(base: int) -> None:
        async with connection(database_url, autocommit=False) as conn:
            for number in itertools.count(base):
                await insert(conn, number)
                await asyncio.sleep(0.003)
                if number % 5 == 0:
                    await conn.rollback()
                elif number % 3 == 0:
                    await conn.commit()

    async with running(*(follower.run() for follower in followers)):
        for follower in followers:
            await asyncio.wait_for(follower.opened.wait(), TIMEOUT_S)
        async with running(poster.run(), write(1_000_000), write(2_000_000)):
            await followers[0].until(lambda: followers[0].connects > 40)
        for follower in followers:
            await as_in_table(follower, database_url)
            assert follower.gaps == []
        assert followers[0].connects > followers[-1].connects > 1
    poster.check(await table(database_url))


async def test_sigterm_under_load(start: Start, database_url: str) -> None:
    """Streams end one after the other over the drain time, publishes are answered truthfully, the exit code is 0."""
    count, drain = 20, 2.0
    server = start(SSE_PG_DRAIN_SECONDS=str(drain), SSE_PG_HEARTBEAT_SECONDS="0.5")
    await server.ready()
    clock = asyncio.get_running_loop().time
    opened = 0
    ends: list[float] = []

    async def follow(session: aiohttp.ClientSession) -> None:
        nonlocal opened
        async with session.get(f"{server.url}/api/events/stream?channels=a") as response:
            assert response.status == 200
            opened += 1
            async for _ in response.content.iter_any():
                pass
        ends.append(clock())

    posters = [Poster(server.url, base=base * 1_000_000) for base in range(4)]
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        following_all = asyncio.gather(*(follow(session) for _ in range(count)))
        await eventually(lambda: opened == count)
        async with running(*(poster.run(0) for poster in posters)):
            await eventually(lambda: all(len(poster.accepted) > 20 for poster in posters))
            server.signal(signal.SIGTERM)
            assert await server.exit_code() == 0
            await eventually(lambda: all(poster.refused for poster in posters))
        await asyncio.wait_for(following_all, TIMEOUT_S)  # each was ended in good order: no exception
    ends.sort()
    assert len(ends) == count
    assert ends[-1] - ends[0] > drain / 2
    assert max(later - earlier for earlier, later in itertools.pairwise(ends)) < drain / 2
    rows = await table(database_url)
    for poster in posters:
        assert poster.accepted <= set(rows)
        assert not poster.refused & set(rows)


async def test_sigterm_while_publishes_wait_for_the_database(start: Start, database_url: str) -> None:
    """They were accepted, so they are committed and answered before the server ends."""
    server = start(SSE_PG_DRAIN_SECONDS="0")
    await server.ready()
    posters = [Poster(server.url, base=base) for base in range(20)]
    async with aiohttp.ClientSession() as session, connection(database_url, autocommit=False) as locking:
        await locking.execute("LOCK TABLE sse_pg.events IN SHARE MODE")
        posting = asyncio.gather(*(poster.one(session) for poster in posters))
        async with connection(database_url) as looking, asyncio.timeout(TIMEOUT_S):
            while not await _waiting_for_locks(looking):
                await asyncio.sleep(0.01)
        server.signal(signal.SIGTERM)
        await _refuses(server)
        await locking.rollback()
        await posting
        assert await server.exit_code() == 0
    rows = await table(database_url)
    for poster in posters:
        poster.check(rows)
    assert sum(len(poster.accepted) for poster in posters) > 0


async def test_a_frozen_client_is_cut_off_and_costs_nobody_anything(
    launch: Launcher, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = await launch()
    caplog.set_level("INFO", "sse_pg.api.stream")
    others = [Follower(server.url) for _ in range(3)]
    async with running(*(other.run() for other in others)), connection(database_url) as conn:
        for other in others:
            await asyncio.wait_for(other.opened.wait(), TIMEOUT_S)
        before = set(server.bus.hub.streams)
        with _child(["curl", "-sN", "-o", "/dev/null", f"{server.url}/api/events/stream?channels=a"]) as client:
            await eventually(lambda: len(server.bus.hub.streams) == 4)
            (frozen,) = server.bus.hub.streams - before
            await eventually(lambda: frozen.live)
            client.send_signal(signal.SIGSTOP)
            sent = 0
            while frozen in server.bus.hub.streams:
                assert sent < 4000, "80 MB are not read, and the client is still there"
                await conn.execute(
                    "INSERT INTO sse_pg.events (channel, payload) SELECT 'a', to_jsonb(g || repeat('x', 20000))"
                    " FROM generate_series(%s::int, %s::int) g",
                    (sent, sent + 9),  # small enough for one write: larger batches are read from the ring
                )
                sent += 10
                for other in others:
                    await other.until(lambda o=other, n=sent: len(o.payloads) >= n)
        for other in others:
            assert [int(payload.rstrip("x")) for payload in other.payloads] == [*range(sent)]
            assert other.connects == 1
    assert sum("slow" in record.getMessage() for record in caplog.records) == 1


async def test_a_client_that_is_gone_without_a_word(launch: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's network is down, so not even a reset comes back. The heartbeats notice."""
    monkeypatch.setattr("sse_pg.http.takeover.UNACKNOWLEDGED_MS", 1000)
    server = await launch(heartbeat=0.2)
    with _network() as (address, inside, link):
        await web.TCPSite(server.runner, address, 0).start()
        port = server.runner.addresses[-1][1]
        with _child(
            [*inside, "curl", "-sN", "-o", "/dev/null", f"http://{address}:{port}/api/events/stream?channels=a"]
        ):
            await eventually(lambda: len(server.bus.hub.streams) == 1)
            (stream,) = server.bus.hub.streams
            await eventually(lambda: stream.live)
            subprocess.run([*inside, "ip", "link", "set", link, "down"], check=True)
            await eventually(lambda: not server.bus.hub.streams)


# ------------------------------------------------------------------ helpers


async def _waiting_for_locks(conn: object) -> bool:
    cursor = await conn.execute(  # type: ignore[attr-defined]
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return await cursor.fetchone() is not None


async def _refuses(server: Process) -> None:
    """Wait until a server takes no more connections, or says that it stops."""
    async with asyncio.timeout(TIMEOUT_S), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{server.url}/readyz") as response:
                    if response.status == 503:
                        return
            except aiohttp.ClientError:
                return
            await asyncio.sleep(0.01)


@contextmanager
def _child(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program as long as the block."""
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def _network() -> Iterator[tuple[str, list[str], str]]:
    """A separate network for a client: this side's address, how to run a program there, and its link."""
    name = f"sse-pg-{os.getpid()}-{next(_numbers)}"
    here, there = f"sp{os.getpid() % 100000}a", f"sp{os.getpid() % 100000}b"
    address = f"10.231.{os.getpid() % 256}"
    inside = ["ip", "netns", "exec", name]
    commands = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name],
        ["ip", "addr", "add", f"{address}.1/30", "dev", here],
        ["ip", "link", "set", here, "up"],
        [*inside, "ip", "addr", "add", f"{address}.2/30", "dev", there],
        [*inside, "ip", "link", "set", there, "up"],
        [*inside, "curl", "--version"],
    ]
    try:
        for command in commands:
            try:
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                said = getattr(error, "stderr", b"") or str(error).encode()
                pytest.skip(f"a network cannot be made here: {said.decode().strip()}")
        yield f"{address}.1", inside, there
    finally:
        for command in (["ip", "link", "del", here], ["ip", "netns", "del", name]):
            subprocess.run(command, check=False, capture_output=True)


ROWS = 1_000_000
DATA = re.compile(rb"^data: (\d+)$", re.MULTILINE)


def _peak(pid: int) -> int:
    """Return the most memory that a process had, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


async def _numbers_of(url: str, count: int) -> list[int]:
    """Follow a channel of numbers until enough came, and resume with the last id after each drop."""
    numbers: list[int] = []
    last_id = b"0"
    async with aiohttp.ClientSession(read_bufsize=2**20) as session:
        while len(numbers) < count:
            async with session.get(
                f"{url}/api/events/stream?channels=a",
                headers={"Last-Event-ID": last_id.decode()},
                timeout=aiohttp.ClientTimeout(total=None, sock_read=60),
            ) as response:
                rest = b""
                async for data in response.content.iter_any():
                    blocks, end, rest = (rest + data).rpartition(b"\n\n")
                    if end:
                        numbers += map(int, DATA.findall(blocks + end))
                        last_id = blocks.rpartition(b"id: ")[2].partition(b"\n")[0] or last_id
                    if len(numbers) >= count:
                        break
    return numbers


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
async def test_a_copy_of_a_million_rows(start: Start, database_url: str) -> None:
    """One transaction: all of it becomes visible at once, and goes out in order, in bounded memory."""
    server = start()
    await server.ready()
    before = _peak(server.pid)
    async with connection(database_url) as conn:
        reading = asyncio.create_task(_numbers_of(server.url, ROWS + 1))
        async with conn.cursor().copy("COPY sse_pg.events (channel, payload) FROM STDIN") as copy:
            for first in range(0, ROWS, 10_000):
                await copy.write("".join([f"a\t{number}\n" for number in range(first, first + 10_000)]))
        await insert(conn, ROWS)
        numbers = await reading
    assert numbers == [*range(ROWS + 1)]
    assert _peak(server.pid) - before < 100
