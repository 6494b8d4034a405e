"""Where one primary ends: events per second, WAL and disk by rows a commit and payload; vacuum, freezing, partitions.

Alone, and only one part: ``PYTHONPATH=.:tests python -m bench.limits publish`` (or ``vacuum``, ``autovacuum``,
``catalog``).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter

import psycopg

from bench.stack import Stack
from bench.table import Result, Rounds

ROWS = (1, 10, 100, 1000)
PAYLOADS = {"100 B": 100, "1 kB": 1000, "10 kB": 10_000}
SYNCHRONOUS = ("on", "off")
#: Sessions that publish, by rows a commit. Many small commits share a flush.
SESSIONS = {1: 32, 10: 8, 100: 8, 1000: 8}
SECONDS = 1.6
VACUUMED = 500_000
#: A cluster in which transaction ids are frozen two thousand times as early as by default.
FREEZE_MAX_AGE, KEPT, PARTITION, COMMITS = 100_000, 40_000, 10_000, 260_000
PARTITIONS = 500
INSERT = (
    "INSERT INTO sse_pg.events (channel, event_type, payload) SELECT 'c' || n % 20, 'message', payload FROM {table}"
)
STORED = "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('sse_pg.events')"
CATALOG = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace"
CACHES = "SELECT sum(used_bytes) FROM pg_backend_memory_contexts"


def run(rounds: int = 1, part: str | None = None) -> Result:
    """Measure."""
    result = Result("limits", "Where one primary ends")
    for name, measure in {
        "publish": _publish,
        "vacuum": _vacuum,
        "autovacuum": _autovacuum,
        "catalog": _catalog,
    }.items():
        if part in (None, name):
            measure(result, rounds)
    return result


def _publish(result: Result, rounds: int) -> None:
    found = Rounds()
    with Stack({"max_wal_size": "8GB", "checkpoint_timeout": "30min"}) as stack:
        with psycopg.connect(stack.url, autocommit=True) as conn:
            for size in PAYLOADS.values():
                # Digits of digests: what pglz cannot compress.
                conn.execute(f"CREATE TABLE payloads{size} (n integer PRIMARY KEY, payload jsonb)")
                conn.execute(
                    f"INSERT INTO payloads{size} SELECT n, jsonb_build_object('data', (SELECT left(string_agg(md5("
                    f"n || ' ' || m), ''), {size - 12}) FROM generate_series(1, {size // 32 + 1}) m))"
                    " FROM generate_series(1, 1000) n"
                )
            while conn.execute("SELECT sse_pg.make_partitions(20)").fetchone() != (0,):
                pass
            conn.execute("VACUUM ANALYZE")
        stack.serve(SSE_PG_KEEP_EVENTS="0")
        for _ in range(rounds):
            for label, size in PAYLOADS.items():
                for rows in ROWS:
                    for synchronous in SYNCHRONOUS:
                        _one(stack, found, label, size, rows, synchronous)
    for label in PAYLOADS:
        for rows in ROWS:
            name = f"{label} {rows}"
            result.add(
                f"{label}, {rows:,} a commit: events/s with synchronous_commit = on, off",
                ", ".join(f"{found.median(f'{name} {each}'):,.0f}" for each in SYNCHRONOUS),
            )
            result.add(
                f"{label}, {rows:,} a commit: bytes of WAL, stored bytes an event",
                f"{found.median(f'{name} wal'):,.0f}, {found.median(f'{name} stored'):,.0f}",
            )
    result.notes.append(
        f"{SESSIONS} sessions by rows a commit, and one server without streams, share the cores with PostgreSQL. A "
        "transaction that publishes flushes its commit with synchronous_commit = off, too: it raises off to local."
    )
    result.data |= dict(found.values)


def _one(stack: Stack, found: Rounds, label: str, size: int, rows: int, synchronous: str) -> None:
    script = stack.directory / "publish.sql"
    script.write_text(
        f"\\set n random(1, {1001 - rows})\n"
        f"{INSERT.format(table=f'payloads{size}')} WHERE n BETWEEN :n AND :n + {rows - 1};\n"
    )
    ((before, wal),) = stack.sql(f"SELECT ({STORED}), pg_current_wal_insert_lsn() FROM (SELECT 1) x")
    rate, commits = pgbench(stack, script, SESSIONS[rows], f"-T{SECONDS:.0f}", synchronous)
    ((stored, written),) = stack.sql(
        f"SELECT ({STORED}) - {before}, pg_current_wal_insert_lsn() - '{wal}'::pg_lsn FROM (SELECT 1) x"
    )
    name = f"{label} {rows}"
    found.add(f"{name} {synchronous}", rate * rows)
    found.add(f"{name} wal", float(written) / commits / rows)
    found.add(f"{name} stored", float(stored) / commits / rows)


def pgbench(stack: Stack, script: object, sessions: int, length: str, synchronous: str = "on") -> tuple[float, int]:
    """Run a script; return transactions per second, and how many there were."""
    program, env = stack.pg_program("pgbench")
    command = [program, "-n", "-M", "prepared", "-f", str(script), f"-c{sessions}", f"-j{min(2, sessions)}", length]
    env |= {"PGOPTIONS": f"-c synchronous_commit={synchronous}"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **env})
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    commits = re.search(r"actually processed: (\d+)", done.stdout)
    assert rate
    assert commits
    return float(rate[1]), int(commits[1])


def _vacuum(result: Result, _rounds: int) -> None:
    """Vacuum and freeze full partitions by hand."""
    with (
        Stack({"autovacuum": "off", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}) as stack,
        psycopg.connect(stack.url, autocommit=True) as conn,
    ):
        while conn.execute("SELECT sse_pg.make_partitions(3, %s)", (VACUUMED,)).fetchone() != (0,):
            pass
        payload = "jsonb_build_object('data', left(md5(g || 'a') || md5(g || 'b') || md5(g || 'c'), 88))"
        for _ in range(2 * VACUUMED // 1000):
            conn.execute(
                "INSERT INTO sse_pg.events (channel, event_type, payload)"
                f" SELECT 'c' || g % 20, 'message', {payload} FROM generate_series(1, 1000) g"
            )
        first, second, *_ = [part for (part,) in conn.execute("SELECT part::text FROM sse_pg.partitions()")]
        for part, how, what in (
            (first, "", "VACUUM"),
            (first, "FREEZE", "VACUUM FREEZE after it"),
            (first, "FREEZE", "VACUUM FREEZE once more"),
            (second, "FREEZE", "after a checkpoint, VACUUM FREEZE at once"),
        ):
            if part == second:  # the first change of each page writes all of it to the WAL
                conn.execute("CHECKPOINT")
            ((wal,),) = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchall()
            started = time.monotonic()
            conn.execute(f"VACUUM ({how or 'FREEZE false'}) {part}")
            seconds = time.monotonic() - started
            ((written,),) = conn.execute("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", (wal,)).fetchall()
            result.add(
                f"{what}, a partition of {VACUUMED:,} events of 100 B: ms, bytes of WAL",
                f"{seconds * 1e3:,.0f}, {written:,}",
            )
        ((size,),) = conn.execute(f"SELECT pg_total_relation_size('{first}')").fetchall()
        started = time.monotonic()
        conn.execute("SELECT sse_pg.purge(1)")
        result.add(f"purge of such a partition of {size:,} bytes, ms", f"{(time.monotonic() - started) * 1e3:,.0f}")


def _autovacuum(result: Result, _rounds: int) -> None:
    """Let transaction ids run out early, with a log that is purged and one that is not."""
    options = {
        "autovacuum_freeze_max_age": str(FREEZE_MAX_AGE),
        "autovacuum_naptime": "1s",
        "log_autovacuum_min_duration": "0",
        "autovacuum_vacuum_cost_delay": "0",
        "fsync": "off",
    }
    for kept in (KEPT, 0):
        with Stack(options) as stack:
            script = stack.directory / "publish.sql"
            script.write_text(
                "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('c', 'message', '{\"a\": 1}');\n"
            )
            stack.serve(
                SSE_PG_KEEP_EVENTS=str(kept),
                SSE_PG_PARTITION_SIZE=str(PARTITION),
                SSE_PG_MAINTENANCE_SECONDS="0.2",
            )
            sessions = 8
            for _ in range(4):
                pgbench(stack, script, sessions, f"-t{COMMITS // sessions // 4}")
                time.sleep(3)
            text = (stack.directory / "data" / "postgres.log").read_text()
        kinds: dict[str, Counter[str]] = {}
        for kind, table in re.findall(r"automatic (.*?vacuum.*?) of table \"\w+\.sse_pg\.(events_\w+)\"", text):
            kinds.setdefault(table, Counter())["wraparound" if "wraparound" in kind else "usual"] += 1
        empty = kinds.pop("events_default", Counter())["wraparound"]
        counts = list(kinds.values())
        result.add(
            f"autovacuum of {COMMITS:,} commits in partitions of {PARTITION:,}, "
            + (f"{kept:,} kept" if kept else "all kept")
            + f", autovacuum_freeze_max_age {FREEZE_MAX_AGE:,}",
            f"{len(counts)} partitions vacuumed: {sum(each['usual'] for each in counts)} times as usual, "
            f"{sum(each['wraparound'] for each in counts)} times to prevent wraparound, "
            f"of one partition at most {max((each['wraparound'] for each in counts), default=0)} times; "
            f"the empty default partition {empty} times",
        )


def _catalog(result: Result, _rounds: int) -> None:
    """Make many partitions, and drop them."""
    with Stack() as stack, psycopg.connect(stack.url, autocommit=True) as conn:
        ((before,),) = conn.execute(CATALOG).fetchall()
        caches = _caches(stack)
        started, made = time.monotonic(), 0
        while made < PARTITIONS:
            ((more,),) = conn.execute("SELECT sse_pg.make_partitions(%s, 1000)", (PARTITIONS,)).fetchall()
            made += more or 0
            if not more:
                break
        seconds = time.monotonic() - started
        ((after,),) = conn.execute(CATALOG).fetchall()
        result.add(
            f"catalog of a partition, bytes, over {made} of them; ms to make one",
            f"{(after - before) / made:,.0f}; {seconds / made * 1e3:.1f}",
        )
        result.add(
            "memory of a session whose statement plans over all partitions, bytes for each",
            f"{(_caches(stack) - caches) / made:,.0f}",
        )


def _caches(stack: Stack) -> int:
    with psycopg.connect(stack.url, autocommit=True) as conn:
        conn.execute("SELECT FROM sse_pg.events WHERE channel = 'a'")
        return int(conn.execute(CACHES).fetchall()[0][0])


if __name__ == "__main__":
    print(run(1, *sys.argv[1:2]).text())
