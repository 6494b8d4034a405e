"""What each further server costs the database: processor time and statements of N servers on one log.

Alone: ``PYTHONPATH=. python -m bench.servers``, in the folder ``tests``.
"""

from __future__ import annotations

import time

import psycopg

from bench.stack import Stack, cpu_seconds
from bench.table import Result

COUNTS = (1, 2, 4, 8)
#: Events a second that one connection publishes by SQL, each in a commit of its own.
RATES = (0, 50, 500)
SECONDS = 8.0


def run() -> Result:
    """Measure."""
    result = Result("servers", "the cost of N servers on one database, no streams open")
    with Stack() as stack:
        for count in COUNTS:
            name = f"servers{count}"
            stack.copy_database(name, "SELECT 1")
            url = stack.database(name)
            servers = [stack.serve(DATABASE_URL=url) for _ in range(count)]
            with psycopg.connect(url, autocommit=True) as conn:
                for rate in RATES:
                    _one(result, conn, [server.process.pid for server in servers], rate)
            for server in servers:
                server.process.stop()
    result.notes = [
        "Processor time is in ms per second of one core; that of a server, and that of its LISTEN connection."
    ]
    return result


def _one(result: Result, conn: psycopg.Connection, pids: list[int], rate: int) -> None:
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'sse-pg tail' AND datname = current_database()"
    tails = [pid for (pid,) in conn.execute(query)]
    if len(tails) != len(pids):
        raise RuntimeError(f"{len(tails)} of {len(pids)} servers listen")
    commits, started = _commits(conn), time.monotonic()
    before = [sum(map(cpu_seconds, each)) for each in (pids, tails)]
    published = 0
    while (elapsed := time.monotonic() - started) < SECONDS:
        if published < elapsed * rate:
            conn.execute("SELECT sse_pg.publish('bench', 'message', '{}')")
            published += 1
        else:
            time.sleep(0.001)
    server, tail = (
        (sum(map(cpu_seconds, each)) - then) / elapsed / len(pids) * 1000
        for each, then in zip((pids, tails), before, strict=True)
    )
    others = (_commits(conn) - commits - published) / elapsed / len(pids)
    result.add(
        f"{len(pids)} servers, {published / elapsed:.0f} events/s",
        f"server {server:.1f} ms/s, its backend {tail:.1f} ms/s, {others:.0f} statements/s, each",
    )


def _commits(conn: psycopg.Connection) -> int:
    """Return the commits in this database; backends report theirs once in a second at least."""
    time.sleep(1.2)
    conn.execute("SELECT pg_stat_force_next_flush()")
    row = conn.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])


if __name__ == "__main__":
    print(run().text())
