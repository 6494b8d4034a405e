"""The database itself fails: restarts, crashes, absence, a full disk, a full queue of notifications."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.client import Client
from support.cluster import NOT_DURABLE, binaries, throwaway
from support.server import Launcher
from support.waiting import TIMEOUT_S, eventually

from faults.helpers import Poster, as_in_table, connection, following, insert, running, table
from faults.launcher import QuietLauncher
from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres

OPTIONS = {"max_connections": "50", "synchronous_commit": "on"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that tests may stop, kill and start."""
    options = dict(OPTIONS)
    if binaries().major >= 17:
        options["max_notify_queue_pages"] = "64"  # the least there can be
    with throwaway(**options) as server:
        yield server


@pytest.fixture
def database_url(cluster: EmbeddedPostgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of this test's own, in the cluster that may be stopped."""
    name = f"bus_{abs(hash(request.node.nodeid))}"
    admin = make_conninfo(cluster.url, dbname="postgres")
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    migrate(make_conninfo(cluster.url, dbname=name))
    yield make_conninfo(cluster.url, dbname=name)
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _shut_down(cluster: EmbeddedPostgres, how: str) -> None:
    number = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill -9": signal.SIGKILL}[how]
    os.kill(cluster.pid, number)
    cluster.stop()


@pytest.mark.parametrize("how", ["fast", "immediate", "kill -9"])
async def test_the_database_is_restarted(
    launch: Launcher, cluster: EmbeddedPostgres, database_url: str, how: str
) -> None:
    """Streams stay open, nothing is lost or doubled, and every response to a publish is true."""
    server = await launch(pool_timeout=0.5)
    posters = [Poster(server.url, base=base) for base in (0, 1_000_000)]
    async with following(server.url) as follower:
        async with running(*(poster.run() for poster in posters)):
            await eventually(lambda: all(len(poster.accepted) > 20 for poster in posters))
            await asyncio.to_thread(_shut_down, cluster, how)
            await asyncio.to_thread(cluster.start)
            counts = [len(poster.accepted) for poster in posters]
            await eventually(lambda: all(len(p.accepted) > c + 20 for p, c in zip(posters, counts, strict=True)))
        await as_in_table(follower, database_url)
        assert follower.connects == 1
        assert follower.gaps == []
    rows = await table(database_url)
    for poster in posters:
        poster.check(rows)


async def test_the_database_is_away_for_a_while(launch: Launcher, cluster: EmbeddedPostgres, database_url: str) -> None:
    server = await launch(pool_timeout=0.3)
    async with Client(server.url) as client, client.stream("a") as stream, client.stream("a") as other:
        first = await client.publish("a", 1)
        assert (await stream.event()).json() == 1
        cursor = stream.last_id
        await asyncio.to_thread(cluster.stop)
        try:
            await eventually(lambda: not server.bus.tail.listening.is_set())
            for _ in range(3):
                status, body, response = await client.request(
                    "POST", "/api/events/publish", json={"channel": "a", "payload": "refused"}
                )
                assert status == 503, body
                assert body["type"] == "about:blank"
                assert int(response.headers["Retry-After"]) > 0
            for path in ("/readyz", "/api/events/history?channel=a", "/api/events/stream?channels=a"):
                status, body, response = await client.request("GET", path)
                assert status == 503, body
                assert int(response.headers["Retry-After"]) > 0
            assert (await client.get("/healthz"))[0] == 200
        finally:
            await asyncio.to_thread(cluster.start)
        await eventually(server.bus.tail.listening.is_set)
        await _until_published(client, 2)
        for each in (stream, other):
            events = await each.events(2 if each is other else 1)
            assert events[-1].json() == 2
        assert (await client.get("/readyz"))[0] == 200
        async with client.stream("a", last_event_id=cursor) as came_back:
            assert (await came_back.event()).json() == 2
        assert first == 1
    assert await table(database_url) == [1, 2]


async def test_a_server_stops_while_the_database_is_away(
    launch: Launcher, cluster: EmbeddedPostgres, database_url: str
) -> None:
    """Stopping does not use the pool: a request would wait ten minutes for a connection here."""
    server = await launch(pool_timeout=600.0)
    async with Client(server.url) as client, client.stream("a") as stream:
        await asyncio.to_thread(cluster.stop)
        try:
            await eventually(lambda: not server.bus.tail.listening.is_set())
            async with asyncio.timeout(TIMEOUT_S):
                await server.stop()
                await stream.ended()
        finally:
            await asyncio.to_thread(cluster.start)


async def test_a_replay_waits_for_the_database(launch: Launcher, cluster: EmbeddedPostgres, database_url: str) -> None:
    """A client in the middle of a long replay keeps its stream over a restart."""
    count = 60_000
    async with connection(database_url) as conn:
        await conn.execute(
            "INSERT INTO sse_pg.events (channel, payload)"
            " SELECT 'a', jsonb_build_object('n', g, 'filler', repeat('x', 200)) FROM generate_series(1, %s::int) g",
            (count,),
        )
    server = await launch(pool_timeout=0.5)
    async with Client(server.url) as client, client.stream("a", last_event_id="0") as stream:
        (open_stream,) = server.bus.hub.streams
        await eventually(lambda: open_stream.transport.get_write_buffer_size() > 0)
        await asyncio.to_thread(cluster.stop)
        reading = asyncio.create_task(stream.events(count))
        await eventually(lambda: open_stream.transport.get_write_buffer_size() == 0)
        await asyncio.to_thread(cluster.start)
        assert [e.json()["n"] for e in await reading] == [*range(1, count + 1)]


async def test_a_server_that_starts_before_its_database(
    launch: Launcher, cluster: EmbeddedPostgres, database_url: str
) -> None:
    await asyncio.to_thread(cluster.stop)
    server = await launch(ready=False, pool_timeout=0.3)
    async with Client(server.url) as client:
        try:
            for path in ("/readyz", "/api/events/stream?channels=a"):
                assert (await client.get(path))[0] == 503
        finally:
            await asyncio.to_thread(cluster.start)
        await eventually(server.bus.tail.listening.is_set)
        await _until_published(client, 0)  # the pool's attempts to connect have pauses of their own
        async with client.stream("a") as stream:
            await _until_published(client, 1)
            assert (await stream.event()).json() == 1


# ------------------------------------------------------------------ notifications


async def test_the_queue_of_notifications_is_full(
    launch: Launcher, cluster: EmbeddedPostgres, database_url: str
) -> None:
    """A session that listens inside a transaction fills the queue: publishers that ring are refused."""
    async with connection(database_url) as conn:
        if conn.info.server_version < 170000:
            pytest.skip("before PostgreSQL 17 the queue cannot be made small")
        server = await launch(safety_read=0.1)
        async with Client(server.url) as client, client.stream("a") as stream:
            async with connection(database_url, autocommit=False) as lazy:
                await lazy.execute("LISTEN other")
                await lazy.commit()
                await lazy.execute("SELECT 1")
                await _fill_queue(conn, "rpad(gen_random_uuid()::text, 7000, 'x')")
                await _fill_queue(conn, "gen_random_uuid()::text")  # what is left in the last page
                status, body, response = await client.request(
                    "POST", "/api/events/publish", json={"channel": "a", "payload": "refused"}
                )
                assert status == 503, body
                assert body["type"] == "about:blank"
                assert int(response.headers["Retry-After"]) > 0
                with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                    await insert(conn, -1)
                # Without the bell it goes on, and what was committed is delivered.
                await conn.execute("SET sse_pg.bell = 'off'")
                for number in range(3):
                    await insert(conn, number)
                    assert (await stream.event()).json() == number
                await lazy.rollback()
            await _until_published(client, "after")
            assert (await stream.event()).json() == "after"
    assert await table(database_url) == [0, 1, 2, "after"]


async def _fill_queue(conn: psycopg.AsyncConnection[Any], payload: str) -> None:
    """Notify until the queue is full."""
    with contextlib.suppress(psycopg.errors.ProgramLimitExceeded):
        while True:
            await conn.execute(f"SELECT pg_notify('sse_pg', {payload})")


# ------------------------------------------------------------------ a full disk


@contextmanager
def _small_disk(size: str) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="sse-pg-disk-", dir="/tmp"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "none", str(directory)], capture_output=True
    )
    if done.returncode:
        directory.rmdir()
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
        directory.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
async def test_the_disk_of_the_events_is_full(cluster: EmbeddedPostgres, database_url: str, launch: Launcher) -> None:
    with _small_disk("4m") as disk:
        space = disk / "space"
        space.mkdir(mode=0o700)
        owner = next(cluster.data_dir.glob("postgres-*/PG_VERSION")).stat()
        os.chown(space, owner.st_uid, owner.st_gid)
        async with connection(database_url) as conn:
            await conn.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
            try:
                await conn.execute(f"ALTER DATABASE {conn.info.dbname} SET default_tablespace = small")
                await conn.execute("ALTER TABLE sse_pg.events_default SET TABLESPACE small")
                async for (name,) in await conn.execute(
                    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'sse_pg.events'::regclass"
                ):
                    async with connection(database_url) as moving:
                        await moving.execute(f"ALTER TABLE {name} SET TABLESPACE small")
                ballast = disk / "ballast"
                ballast.write_bytes(b"x" * 3_500_000)
                await _fill_and_free(launch, database_url, ballast)
            finally:
                await conn.execute(f"ALTER DATABASE {conn.info.dbname} RESET default_tablespace")
                await conn.execute("DROP TABLE sse_pg.events CASCADE")
                await conn.execute("DROP TABLESPACE small")


async def _fill_and_free(launch: Launcher, database_url: str, ballast: Path) -> None:
    server = await launch()
    accepted: list[Any] = []
    async with Client(server.url) as client, client.stream("a") as stream:

        async def publish(number: int) -> tuple[int, Any, Any]:
            # Random text, so that it is not compressed away.
            payload = {"n": number, "filler": os.urandom(10_000).hex()}
            return await client.request("POST", "/api/events/publish", json={"channel": "a", "payload": payload})

        number = 0
        while True:
            number += 1
            status, body, response = await publish(number)
            if status != 201:
                break
            accepted.append(number)
            assert number < 1000
        assert status == 503, body
        assert body["type"] == "about:blank"
        assert int(response.headers["Retry-After"]) > 0
        refused = number
        assert accepted
        ballast.unlink()
        for number in range(refused + 1, refused + 6):
            status, body, _ = await publish(number)
            assert status == 201, body
            accepted.append(number)
        assert [e.json()["n"] for e in await stream.events(len(accepted))] == accepted
    assert [payload["n"] for payload in await table(database_url)] == accepted


@asynccontextmanager
async def _own_cluster(directory: Path) -> AsyncIterator[EmbeddedPostgres]:
    options = {**NOT_DURABLE, **OPTIONS, "min_wal_size": "32MB", "max_wal_size": "48MB", "shared_buffers": "16MB"}
    server = EmbeddedPostgres(directory, options=options)
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
async def test_the_disk_of_the_whole_cluster_is_full() -> None:
    """Without room for its log PostgreSQL stops; given room and started again, it has all that was answered 201."""
    with _small_disk("160m") as disk:
        async with _own_cluster(disk / "data") as cluster:
            migrate(cluster.url)
            launcher = QuietLauncher(cluster.url)
            server = await launcher(pool_timeout=0.5)
            poster = Poster(server.url)
            try:
                async with following(server.url) as follower, running(poster.run()):
                    await eventually(lambda: len(poster.accepted) > 20)
                    ballast = disk / "ballast"
                    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                        while file.write(b"x" * 65536):
                            pass
                    async with connection(cluster.url) as conn:
                        with pytest.raises(psycopg.Error):
                            await _write_for_ever(conn)
                    await eventually(lambda: poster.answers)
                    ballast.unlink()
                    await asyncio.to_thread(cluster.stop)
                    await asyncio.to_thread(cluster.start)
                    count = len(poster.accepted)
                    await eventually(lambda: len(poster.accepted) > count + 20)
                    poster_rows = len(poster.accepted)
                    await follower.until(lambda: len(follower.payloads) >= poster_rows)
                await _compare(cluster.url, poster, server.url)
            finally:
                await launcher.close()


async def _write_for_ever(conn: psycopg.AsyncConnection[Any]) -> None:
    while True:
        await conn.execute(
            "INSERT INTO sse_pg.events (channel, payload)"
            " SELECT 'b', to_jsonb(repeat(gen_random_uuid()::text, 100)) FROM generate_series(1, 500)"
        )


async def _compare(database_url: str, poster: Poster, url: str) -> None:
    poster.check(await table(database_url))
    async with following(url, cursor="0") as newcomer:
        await as_in_table(newcomer, database_url)


async def _until_published(client: Client, payload: Any) -> None:
    """Publish; repeat while the response says that nothing was published because the database is unavailable."""
    async with asyncio.timeout(20):
        while True:
            status, body = await client.post("/api/events/publish", {"channel": "a", "payload": payload})
            if status == 201:
                return
            assert (status, body["type"]) == (503, "about:blank"), body
            await asyncio.sleep(0.05)
