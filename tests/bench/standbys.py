"""What standbys take off the primary: three servers that read from it, or two of them from a standby each.

Measured are the processor time of the servers' sessions on the primary and their statements there, and the delay
of an event from before its INSERT to a client.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from multiprocessing.connection import Connection

import psycopg
from psycopg.conninfo import conninfo_to_dict
from support.standby import standby_of

from bench.polling import INSERT, collect, follow
from bench.servers import cpu
from bench.stack import Server, Stack
from bench.table import Result

#: Events a second, one a commit, and for how long.
RATE = 500
SECONDS = 8.0
#: The first part of the load does not count.
WARM_UP_S = 2.0
#: A standby needs at least as much as its primary.
OPTIONS = {"max_connections": "150", "max_wal_senders": "10"}
SERVERS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'sse-pg%'"
SENDERS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender'"


def run(rounds: int = 1) -> Result:
    """Measure."""
    result = Result("standbys", f"Three servers, each with a stream of {RATE} events a second")
    with Stack({"wal_level": "replica", "fsync": "off", **OPTIONS}) as stack, contextlib.ExitStack() as stops:
        dbname = str(conninfo_to_dict(stack.url)["dbname"])
        standbys = [stops.enter_context(standby_of(stack.postgres, stack.binaries, **OPTIONS)) for _ in range(2)]
        ways: dict[str, list[dict[str, str]]] = {
            "primary alone": [{}, {}, {}],
            "primary and two standbys": [
                {},
                *({"SSE_PG_READ_DATABASE_URL": standby.url(dbname)} for standby in standbys),
            ],
        }
        for _ in range(rounds):
            for way, each in ways.items():
                servers = [stack.serve(**env) for env in each]
                _measure(stack, way, servers, result)
                for server in servers:
                    server.process.stop()
    result.notes = ["Both standbys replicate in both cases. All of it runs on one machine; fsync is off."]
    return result


def _measure(stack: Stack, way: str, servers: list[Server], result: Result) -> None:
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    readers = []
    for number, server in enumerate(servers, 1):
        name = f"{way}: server {number}"
        pipes[name], theirs = multiprocessing.Pipe()
        readers.append(context.Process(target=follow, args=(server.port, server.stream, theirs), daemon=True))
        readers[-1].start()
        pipes[name].recv()
    with psycopg.connect(stack.url, autocommit=True) as conn, psycopg.connect(stack.url, autocommit=True) as writer:
        warm_up = _publish(writer, WARM_UP_S)  # what comes at the beginning only is over
        backends, senders = ([pid for (pid,) in conn.execute(query)] for query in (SERVERS, SENDERS))
        statements, before = _commits(conn), (cpu(backends), cpu(senders), time.monotonic())
        sent = _publish(writer, SECONDS)
        own, sending, elapsed = (
            now - then for now, then in zip((cpu(backends), cpu(senders), time.monotonic()), before, strict=True)
        )
        statements = _commits(conn) - statements - sent
    result.add(
        f"{way}: on the primary",
        f"sessions of the servers {own / elapsed * 1e3:.0f} ms/s, {statements / elapsed:.0f} statements/s, "
        f"{len(backends)} connections; WAL senders {sending / elapsed * 1e3:.0f} ms/s",
    )
    collect(pipes, warm_up + sent, "delay, ms", result)
    for reader in readers:
        reader.terminate()
        reader.join()


def _publish(writer: psycopg.Connection, seconds: float) -> int:
    count = int(seconds * RATE)
    due = time.monotonic()
    for _ in range(count):
        time.sleep(max(0.0, due - time.monotonic()))
        due += 1 / RATE
        writer.execute(INSERT, [time.monotonic()], prepare=True)
    return count


def _commits(conn: psycopg.Connection) -> int:
    """Return the commits on the primary so far. Sessions report theirs once in a second at least."""
    time.sleep(1.2)
    conn.execute("SELECT pg_stat_force_next_flush()")
    row = conn.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])
