"""What each further server costs the database: processor time, statements and connections of N servers on one log.

Nobody on these servers follows what is published: each has no stream, or one stream of another channel. Alone:
``PYTHONPATH=. python -m bench.servers``, in the folder ``tests``. Arguments are the numbers of servers, and
``--without-streams``; with ``--few`` it measures only without events and with 500 a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import secrets
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import psycopg

from bench.stack import Server, Stack, ended_children_seconds
from bench.table import Result

COUNTS = (1, 4, 16, 32)
SECONDS = 2.0
#: Connections that publish, and how long the transactions of overlapping writers stay open after they have published.
WRITERS = 8
OPEN_S = 0.01
PUBLISH = "INSERT INTO sse_pg.events (channel, payload) SELECT 'c' || %s %% 1000, %s::jsonb FROM generate_series(1, %s)"


@dataclass(frozen=True)
class Load:
    """What is published: events a second, their size, how many a commit, and whether transactions overlap."""

    rate: int
    size: int = 1000
    rows: int = 1
    overlaps: bool = False

    def __str__(self) -> str:
        extra = f", {self.rows} a commit" if self.rows > 1 else ""
        return f"{self.rate}/s of {self.size // 1000} kB{extra}{', overlapping' if self.overlaps else ''}"


LOADS = (
    Load(0),
    Load(50),
    Load(500),
    Load(500, overlaps=True),
    Load(500, size=20_000),
    Load(5000, rows=10),
)


FEW = (LOADS[0], LOADS[2])


def run(counts: tuple[int, ...] = COUNTS, loads: tuple[Load, ...] = LOADS, *, streams: bool = True) -> Result:
    """Measure. With ``streams`` each server has one."""
    what = "one stream each" if streams else "no streams"
    result = Result("servers", f"the cost of N servers on one database, {what}; nobody follows what is published")
    with Stack({"max_connections": "300", "fsync": "off"}) as stack:
        for count in counts:
            name = f"servers{count}"
            stack.copy_database(name, "SELECT 1")
            url = stack.database(name)
            servers = [stack.serve(wait=False, DATABASE_URL=url) for _ in range(count)]
            for server in servers:
                server.process.wait_for(f"{server.url}/readyz")
            opened = [_stream(server) for server in servers] if streams else []
            with psycopg.connect(url, autocommit=True) as conn:
                for load in loads:
                    _one(result, stack, conn, servers, load)
            for stream in opened:
                stream.close()
            for server in servers:
                server.process.popen.terminate()
            for server in servers:
                server.process.stop()
    result.notes = [
        "Processor time is in ms per second of one core. That of the database is of all its processes, writers included.",
        "fsync is off: the disk is not what is measured.",
    ]
    return result


def _one(result: Result, stack: Stack, conn: psycopg.Connection, servers: list[Server], load: Load) -> None:
    spawn = multiprocessing.get_context("spawn")
    begin, end = spawn.Event(), spawn.Event()
    url = stack.database(conn.info.dbname)
    writer = spawn.Process(target=_write_until, args=(url, load, begin, end), daemon=True)
    writer.start()
    if not begin.wait(30):
        raise RuntimeError("nobody writes")
    ours = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'sse-pg%' AND datname = current_database()"
    pids = [server.process.pid for server in servers]
    backends = [pid for (pid,) in conn.execute(ours)]
    begun = _counts(conn)
    started, before = time.monotonic(), (cpu(pids), cpu(backends), _database_cpu(stack))
    time.sleep(SECONDS)
    elapsed, after = time.monotonic() - started, (cpu(pids), cpu(backends), _database_cpu(stack))
    commits, events, seconds = (now - then for now, then in zip(_counts(conn), begun, strict=True))
    end.set()
    writer.join(20)
    server, backend, database = ((now - then) / elapsed * 1000 for now, then in zip(after, before, strict=True))
    if writer.exitcode != 0:
        raise RuntimeError("the writers failed")
    rate, statements = events / seconds, (commits - events / load.rows) / seconds
    count = len(servers)
    result.add(
        f"{count} servers, {load}" if count > 1 else f"1 server, {load}",
        f"{rate:.0f} events/s; database {database:.0f} ms/s; each server {server / count:.1f} ms/s,"
        f" its backends {backend / count:.1f} ms/s, {statements / count:.0f} statements/s,"
        f" {len(backends) / count:.1f} connections",
    )
    print(result.rows[-1].what, "|", result.rows[-1].value, flush=True)


def _stream(server: Server) -> socket.socket:
    """Open a stream of a channel in which nothing is published."""
    stream = socket.create_connection(("127.0.0.1", server.port))
    stream.sendall(b"GET /api/events/stream?channels=quiet HTTP/1.1\r\nHost: localhost\r\n\r\n")
    if b"sse-pg.hello" not in stream.recv(1000) + stream.recv(1000):
        raise RuntimeError("the stream did not begin")
    return stream


def cpu(pids: list[int]) -> float:
    """Return the processor time of processes. A connection may have been closed since."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _database_cpu(stack: Stack) -> float:
    postmaster = stack.postgres_pid
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return ended_children_seconds(postmaster) + cpu([postmaster, *map(int, children)])


def _counts(conn: psycopg.Connection) -> tuple[int, int, float]:
    """Return the commits in this database, the last id, and the time. Backends report once in a second at least."""
    time.sleep(1.2)
    conn.execute("SELECT pg_stat_force_next_flush()")
    query = "SELECT xact_commit, sse_pg.last_id() FROM pg_stat_database WHERE datname = current_database()"
    row = conn.execute(query).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), time.monotonic()


# ------------------------------------------------------------------ the process that writes


def _write_until(url: str, load: Load, begin: Event, end: Event) -> None:
    asyncio.run(_write(url, load, begin, end))


async def _write(url: str, load: Load, begin: Event, end: Event) -> None:
    writers = WRITERS if load.rate else 0
    conns = [await psycopg.AsyncConnection.connect(url, autocommit=True) for _ in range(writers)]
    begin.set()
    await asyncio.gather(*(_publish(conn, load, number, end) for number, conn in enumerate(conns)))
    while not end.is_set():
        await asyncio.sleep(0.05)
    for conn in conns:
        await conn.close()


async def _publish(conn: psycopg.AsyncConnection, load: Load, number: int, end: Event) -> None:
    payload = '{"n": "' + secrets.token_hex((load.size - 9) // 2) + '"}'  # it compresses to half of its size
    pause = WRITERS * load.rows / load.rate
    due = time.monotonic() + pause * number / WRITERS
    while not end.is_set():
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due += pause
        number += WRITERS
        if load.overlaps:
            async with conn.transaction():
                await conn.execute(PUBLISH, (number, payload, load.rows), prepare=True)
                await asyncio.sleep(OPEN_S)
        else:
            await conn.execute(PUBLISH, (number, payload, load.rows), prepare=True)


if __name__ == "__main__":
    numbers = tuple(int(word) for word in sys.argv[1:] if word.isdigit())
    chosen = FEW if "--few" in sys.argv else LOADS
    print(run(numbers or COUNTS, chosen, streams="--without-streams" not in sys.argv).text())
