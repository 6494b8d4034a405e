"""Several server processes on one port: serving, replacing those that die, renewing, and stopping all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.client import Client
from support.cluster import directory
from support.process import CHECKOUT, SSE_PG, Process, environment, left_behind, one_line, process, run
from support.waiting import TIMEOUT_S, wait_for

import sse_pg.workers.supervisor
from sse_pg.client import Event, subscribe
from sse_pg.config import Settings
from sse_pg.errors import SettingError
from sse_pg.workers.port import SharedPort
from sse_pg.workers.supervisor import Supervisor

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

#: With so many connections both workers have some: the probability that one has none is 2^-39.
MANY = 40
#: Makes stdin the controlling terminal and runs a command there.
HAVE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def data() -> Iterator[Path]:
    """A data directory that the account of PostgreSQL can enter."""
    with directory() as made:
        yield made / "data"


# ---- processes


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Return the worker processes of a supervisor."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (each / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid and b"sse_pg.workers.child" in (each / "cmdline").read_bytes().split(b"\0"):
                found.append(int(each.name))
    return found


@contextmanager
def serving(*words: str, **variables: str) -> Iterator[Process]:
    """A server of several workers on a free port; none of them outlives the block."""
    defaults = {"SSE_PG_DRAIN_SECONDS": "0", "SSE_PG_RETRY_MS": "20", "SSE_PG_WORKERS": "2"}
    with process("serve", "--port", "0", *words, **{**defaults, **variables}) as server:
        try:
            yield server
        finally:
            # A frozen supervisor starts no others in the meantime.
            with contextlib.suppress(ProcessLookupError):
                server.popen.send_signal(signal.SIGSTOP)
            for pid in children(server.popen.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], object], what: str = "it") -> Awaitable[None]:
    """Wait for something that other processes do, while the event loop runs."""
    return asyncio.to_thread(wait_for, condition, what)


def url_of(server: Process) -> Awaitable[str]:
    return asyncio.to_thread(server.url)


# ---- what they serve


async def get(url: str, path: str) -> Any:
    """Send a request over a new connection, so that any worker may respond."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url + path) as answer:
        assert answer.status == 200, (path, answer.status, await answer.text())
        return await answer.json()


async def connections(url: str) -> dict[int, int]:
    """Return the number of open streams of each process."""
    answer = await get(url, "/api/events/active-connections")
    counts = {server["pid"]: server["activeConnections"] for server in answer["servers"]}
    assert answer["activeConnections"] == sum(counts.values())
    return counts


async def counted(url: str, total: int, but: int = 0) -> dict[int, int]:
    """Wait until both workers report ``total`` streams of two workers, neither of which is ``but``."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with contextlib.suppress(AssertionError, aiohttp.ClientError):
                answers = await asyncio.gather(*(connections(url) for _ in range(10)))
                if all(len(each) == 2 and sum(each.values()) == total and but not in each for each in answers):
                    return answers[0]
            await asyncio.sleep(0.02)


async def ready(url: str) -> None:
    """Wait until all workers are ready."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with contextlib.suppress(AssertionError, aiohttp.ClientError):
                await asyncio.gather(*(get(url, "/readyz") for _ in range(20)))
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def followers(url: str, count: int) -> AsyncIterator[list[list[int]]]:
    """Clients that follow a channel and reconnect; yields what each has received so far."""
    got: list[list[int]] = [[] for _ in range(count)]

    async def follow(mine: list[int]) -> None:
        async with subscribe(url, ["c"], cursor="0") as events:
            async for event in events:
                assert isinstance(event, Event), event
                mine.append(event.json())

    tasks = [asyncio.create_task(follow(mine)) for mine in got]
    try:
        yield got
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


def publish(db: psycopg.Connection[Any], number: int) -> None:
    db.execute("SELECT sse_pg.publish('c', 'message', to_jsonb(%s::int))", [number])


async def test_events_reach_the_streams_of_all_workers(database_url: str) -> None:
    with serving(DATABASE_URL=database_url) as server:
        url = await url_of(server)
        # The URL is printed when all workers listen, so no connection is refused from here on.
        await asyncio.gather(*(get(url, "/healthz") for _ in range(MANY)))
        await ready(url)
        async with Client(url) as client, AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(client.stream("c")) for _ in range(MANY)]
            counts = await counted(url, MANY)
            assert set(counts) == set(children(server.popen.pid))
            assert all(counts.values()), counts
            number = await client.publish("c", "hello")
            for stream in streams:
                event = await stream.event()
                assert (event.id, event.json()) == (str(number), "hello")
        await counted(url, 0)
        assert await asyncio.to_thread(server.end) == 0
        with psycopg.connect(database_url) as db:
            assert db.execute("SELECT count(*) FROM sse_pg.servers").fetchone() == (0,)


async def test_a_killed_worker_is_replaced_and_its_clients_miss_nothing(
    database_url: str, db: psycopg.Connection[Any]
) -> None:
    with serving(DATABASE_URL=database_url) as server:
        url = await url_of(server)
        await ready(url)
        async with followers(url, MANY) as got:
            before = await counted(url, MANY)
            victim = next(iter(before))
            published = 0
            for published in range(1, 101):
                publish(db, published)
                if published == 50:
                    os.kill(victim, signal.SIGKILL)
                await asyncio.sleep(0)
            reason = server.line(f"process {victim}\\).* ended: killed by SIGKILL", err=True)
            assert reason
            after = await counted(url, MANY, but=victim)
            assert set(before) & set(after) == set(before) - {victim}
            publish(db, published + 1)
            wanted = list(range(1, published + 2))
            async with asyncio.timeout(TIMEOUT_S):
                while not all(len(each) >= len(wanted) for each in got):
                    await asyncio.sleep(0.02)
            assert all(each == wanted for each in got)
        assert await asyncio.to_thread(server.end) == 0
        assert not any(map(alive, [*before, *after]))


async def test_renewal_refuses_nobody_and_loses_nothing(database_url: str, db: psycopg.Connection[Any]) -> None:
    with serving(DATABASE_URL=database_url) as server:
        url = await url_of(server)
        await ready(url)
        over = asyncio.Event()
        asked = 0

        async def ask() -> None:
            nonlocal asked
            while not over.is_set():
                await get(url, "/readyz")
                async with Client(url) as client, client.stream("d"):
                    asked += 1

        async with followers(url, MANY) as got:
            before = await counted(url, MANY)
            asking = [asyncio.create_task(ask()) for _ in range(4)]
            server.popen.send_signal(signal.SIGHUP)
            published = 0
            while not any("have been renewed" in line for line in server.err):
                published += 1
                publish(db, published)
                await asyncio.sleep(0.02)
            over.set()
            await asyncio.gather(*asking)
            assert asked
            after = await counted(url, MANY)
            assert not set(before) & set(after)
            async with asyncio.timeout(TIMEOUT_S):
                while not all(len(each) >= published for each in got):
                    await asyncio.sleep(0.02)
            assert all(each == list(range(1, published + 1)) for each in got)
        assert await asyncio.to_thread(server.end) == 0


# ---- the end


@pytest.mark.parametrize(
    ("whom", "number"),
    [
        ("parent", signal.SIGTERM),
        ("parent", signal.SIGINT),
        ("group", signal.SIGINT),
        ("everybody", signal.SIGTERM),
    ],
)
async def test_one_signal_ends_all_with_streams_open(database_url: str, number: signal.Signals, whom: str) -> None:
    with serving(DATABASE_URL=database_url, SSE_PG_DRAIN_SECONDS="0.2") as server:
        url = await url_of(server)
        await ready(url)
        pids = children(server.popen.pid)
        assert len(pids) == 2
        async with Client(url) as client, AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(client.stream("c")) for _ in range(MANY)]
            if whom == "group":
                os.killpg(server.popen.pid, number)
            else:
                server.popen.send_signal(number)
            if whom == "everybody":
                for pid in pids:
                    os.kill(pid, number)
            for stream in streams:
                await stream.ended()
        assert await asyncio.to_thread(server.wait) == 0
        # Without waiting: every process has ended by now.
        assert not any(map(alive, pids))
        assert not any("Traceback" in line for line in server.err)


@pytest.mark.parametrize(
    ("number", "started"), [(signal.SIGTERM, 0), (signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)]
)
def test_a_signal_while_workers_start_leaves_no_process(
    database_url: str, number: signal.Signals, started: int
) -> None:
    with serving(DATABASE_URL=database_url) as server:
        if started:
            server.line(f"worker {started} is process", err=True)
        else:
            wait_for(lambda: children(server.popen.pid))
        pids = children(server.popen.pid)
        assert server.end(number) == 0
        assert not any(map(alive, pids))
        assert children(server.popen.pid) == []
        assert not any("Traceback" in line for line in server.err)


async def test_no_worker_outlives_a_killed_supervisor(data: Path) -> None:
    with serving("--data-dir", str(data)) as server:
        url = await url_of(server)
        await ready(url)
        pids = children(server.popen.pid)
        async with Client(url) as client, client.stream("c") as stream:
            server.popen.kill()
            await stream.ended()
        await until(lambda: not any(map(alive, pids)), "the end of the workers")
        await until(lambda: left_behind(data) == [], "the end of PostgreSQL")


async def test_a_worker_that_does_not_end_is_killed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse_pg.workers.supervisor, "REQUEST_GRACE_S", 0.0)
    monkeypatch.setattr(sse_pg.workers.supervisor, "EXIT_GRACE_S", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    settings = Settings(host="127.0.0.1", port=0, workers=2, drain=0.0, database_url=database_url)
    urls: list[str] = []
    with SharedPort(settings.host, settings.port) as port:
        supervisor = Supervisor(settings, port)
        running = asyncio.create_task(supervisor.run(urls.append, asyncio.Event()))
        try:
            await until(lambda: urls or running.done(), "the start")
            pids = list(await counted(urls[0], 0))
            os.kill(pids[0], signal.SIGSTOP)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await supervisor.stop()
    assert not any(map(alive, pids))


def test_the_server_ends_with_its_terminal(database_url: str) -> None:
    """SIGHUP means to renew, unless the terminal is gone."""
    master, terminal = pty.openpty()
    variables = {"DATABASE_URL": database_url, "SSE_PG_WORKERS": "2", "SSE_PG_DRAIN_SECONDS": "0"}
    server = subprocess.Popen(
        [sys.executable, "-c", HAVE_TERMINAL, *SSE_PG, "serve", "--port", "0"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env=environment(**variables),
        cwd="/",
    )
    pids: list[int] = []
    try:
        os.close(terminal)
        said = b""
        while b"listens on" not in said:
            said += os.read(master, 65536)
        pids = children(server.pid)
        assert len(pids) == 2
        os.close(master)
        master = -1
        server.wait(TIMEOUT_S)
        wait_for(lambda: not any(map(alive, pids)), "the end of the workers")
    finally:
        if master >= 0:
            os.close(master)
        server.kill()
        server.wait()
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


# ---- the start


@contextmanager
def stumbling(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Yield a file, and a PYTHONPATH with which every new worker exits with code 3 while the file exists."""
    flag = tmp_path / "stumble"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if 'sse_pg.workers.child' in sys.orig_argv and os.path.exists({str(flag)!r}):\n    os._exit(3)\n"
    )
    yield flag, f"{tmp_path}{os.pathsep}{CHECKOUT}"


def test_a_worker_that_cannot_start_is_one_line(database_url: str, tmp_path: Path) -> None:
    with stumbling(tmp_path) as (flag, path):
        flag.touch()
        done = run(
            "serve", "--port", "0", "--workers", "2", "--database-url", database_url,
            PYTHONPATH=path, SSE_PG_LOG_LEVEL="error",
        )  # fmt: skip
        assert one_line(done) == "sse-pg: worker 1 does not start: exit code 3\n"
        assert done.stdout == ""


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_in_use_is_one_line(database_url: str, shares: bool) -> None:
    """Even if the other process would share it: two buses on one port would get each other's clients."""
    with socket.socket() as taken:
        if shares:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--port", str(port), "--workers", "2", DATABASE_URL=database_url)
        why = "Address already in use; use another --port (0 picks a free one)"
        assert one_line(done) == f"sse-pg: cannot listen on 127.0.0.1:{port}: {why}\n"


def test_an_unavailable_database_is_one_line() -> None:
    done = run("serve", "--workers", "2", "--port", "0", DATABASE_URL="postgresql://nobody@127.0.0.1:1/x")
    assert "cannot be reached" in one_line(done)


def test_a_bad_number_is_one_line() -> None:
    assert "SSE_PG_WORKERS='0': allowed is a whole number from 1 " in one_line(run("serve", "--workers", "0"))


async def test_one_worker_is_the_process_itself(database_url: str) -> None:
    with serving("--workers", "1", DATABASE_URL=database_url) as server:
        url = await url_of(server)
        await ready(url)
        assert list(await connections(url)) == [server.popen.pid]
        assert children(server.popen.pid) == []
        assert await asyncio.to_thread(server.end) == 0


async def test_a_worker_that_dies_early_again_and_again_is_restarted_later(database_url: str, tmp_path: Path) -> None:
    with stumbling(tmp_path) as (flag, path), serving(DATABASE_URL=database_url, PYTHONPATH=path) as server:
        url = await url_of(server)
        await ready(url)
        before = await counted(url, 0)
        victim = next(iter(before))
        flag.touch()
        os.kill(victim, signal.SIGKILL)
        for pause in ("0.5", "1", "2"):
            await asyncio.to_thread(server.line, f"ended: .*; the next one starts in {pause} s", err=True)
        # In the meantime the other worker gets all connections.
        await asyncio.gather(*(get(url, "/readyz") for _ in range(MANY)))
        flag.unlink()
        after = await counted(url, 0, but=victim)
        assert set(before) - {victim} < set(after)
        assert await asyncio.to_thread(server.end) == 0


# ---- the port


def test_a_shared_port_is_picked_held_and_released() -> None:
    with SharedPort("127.0.0.1", 0) as port:
        (one,), (two,) = port.listen(), port.listen()
        with one, two:
            assert one.getsockname() == two.getsockname()
            number = one.getsockname()[1]
            with pytest.raises(SettingError, match=f"cannot listen on 127.0.0.1:{number}: Address already in use"):
                SharedPort("127.0.0.1", number)
        # No process listens, so a connection is refused, and does not wait on the socket that holds the port.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", number)).close()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", number))
    with SharedPort("127.0.0.1", number):
        pass


def test_a_name_with_two_addresses_has_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = (socket.SOCK_STREAM, 6, "")
    found = [(socket.AF_INET, *kind, ("127.0.0.1", 0)), (socket.AF_INET, *kind, ("127.0.0.2", 0))]
    away = (socket.AF_INET, *kind, ("192.0.2.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [away, *found])
    with SharedPort("here", 0) as port:
        made = port.listen()
        names = [each.getsockname() for each in made]
        for each in made:
            each.close()
    assert [host for host, _ in names] == ["127.0.0.1", "127.0.0.2"]
    assert names[0][1] == names[1][1]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [away])
    with pytest.raises(SettingError, match="cannot listen on here:0: Cannot assign requested address"):
        SharedPort("here", 0)


def test_a_name_that_is_unknown() -> None:
    with pytest.raises(SettingError, match=r"cannot listen on nowhere\.invalid:80: "):
        SharedPort("nowhere.invalid", 80)


# ---- their numbers


async def numbers(url: str) -> dict[str, float]:
    """Scrape over a new connection, so that any worker may respond."""
    async with Client(url) as client, client.session.get(url + "/metrics") as answer:
        assert answer.status == 200, await answer.text()
        families = text_string_to_metric_families(await answer.text())
        return {
            sample.name + "".join(sorted(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


async def add_up(url: str, **wanted: float) -> dict[str, float]:
    """Wait until every worker reports the same numbers."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with contextlib.suppress(AssertionError, aiohttp.ClientError):
                answers = [await numbers(url) for _ in range(8)]
                if all(each[f"sse_pg_{name}"] == value for each in answers for name, value in wanted.items()):
                    return answers[-1]
            await asyncio.sleep(0.02)


async def test_numbers_are_the_totals_of_all_workers_and_outlive_them(database_url: str) -> None:
    with serving(DATABASE_URL=database_url) as server:
        url = await url_of(server)
        await ready(url)
        for number in range(MANY):
            async with Client(url) as client:
                await client.publish("a", number)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(url)) for _ in range(MANY)]
            for client in clients:
                await stack.enter_async_context(client.stream("a"))
            counts = await counted(url, MANY)
            before = await add_up(
                url, workers=2, ready=2, listening=2, events_published_totalnosingle=MANY, events_read_total=2 * MANY,
                streamslive=MANY, streams_opened_total=MANY, position_id=MANY,
            )  # fmt: skip
            assert all(counts.values())
            assert before["process_resident_memory_bytes"] > 2**24
            victim, lost = next(iter(counts.items()))
            os.kill(victim, signal.SIGKILL)
            left = MANY - lost
            after = await add_up(
                url, workers=2, ready=2, events_published_totalnosingle=MANY, streamslive=left,
                streams_opened_total=MANY,
            )  # fmt: skip
        for name, value in before.items():
            if name.endswith(("_total", "_count", "_sum")):
                assert after[name] >= value, name
        await add_up(url, streamslive=0, streams_closed_totalclient=left)
        os.kill(server.popen.pid, signal.SIGHUP)
        await asyncio.to_thread(server.line, "the workers have been renewed", err=True)
        renewed = await add_up(
            url, workers=2, events_published_totalnosingle=MANY, streams_closed_totalclient=left,
            streams_opened_total=MANY,
        )  # fmt: skip
        assert renewed["process_cpu_seconds_total"] >= after["process_cpu_seconds_total"]
        assert await asyncio.to_thread(server.end) == 0


async def test_a_worker_that_hangs_counts_with_its_last_numbers(database_url: str) -> None:
    with serving(DATABASE_URL=database_url) as server:
        url = await url_of(server)
        await ready(url)
        async with Client(url) as client:  # one connection: one worker
            await client.publish("a", 1)
            await add_up(url, events_published_totalnosingle=1)
            own = int((await connections(url)).popitem()[0])
            os.kill(own, signal.SIGSTOP)
            try:
                async with asyncio.timeout(3 * TIMEOUT_S):
                    while True:  # half of the connections go to the one that hangs
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(4):
                                assert (await numbers(url))["sse_pg_events_published_totalnosingle"] == 1
                                break
            finally:
                os.kill(own, signal.SIGCONT)
        assert await asyncio.to_thread(server.end) == 0
