"""Four ways to tell readers of committed rows, side by side, while an unrelated transaction stays open."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from bench.crowd import Recorder
from bench.notify_reader import arrivals
from bench.sql_publish import DROP, INSERT, LOCKED, USUAL, pgbench
from bench.stack import Stack
from bench.table import Result, Rounds, percentile

HORIZON = f"""{DROP}
ALTER TABLE sse_pg.events ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id();
CREATE INDEX ON sse_pg.events (xid, id);"""
DATABASES = {"row": USUAL, "lock": LOCKED, "horizon": HORIZON}
LABELS = {
    "bell": "sse_pg, delivered to a stream",
    "row": "a row trigger with pg_notify(row_to_json), delivered to one LISTEN connection",
    "lock": "one advisory lock held to commit, so that ids commit in order; a reader polls every 5 ms for id > last",
    "horizon": "each row has its transaction id; a reader polls every 5 ms for rows below the oldest one that runs",
}
CLIENTS = 32
#: Commits a second to each of the four, while a transaction stays open.
RATE = 250
#: Seconds for which it stays open, and seconds before and after it.
HELD_S, MARGIN_S = 60.0, 6.0


class Reader:
    """A reader process of a database."""

    def __init__(self, stack: Stack, name: str) -> None:
        self._path = stack.directory / f"{name}.arrivals"
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "bench.notify_reader", name, stack.database(name), str(self._path)],
            cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        if not self._popen.stdout.readline():
            raise RuntimeError(f"the reader of {name} did not start")

    def close(self) -> None:
        """Let it read what is there, write what it has, and end."""
        self._popen.stdin.close()
        if self._popen.wait(60):
            raise RuntimeError("a reader has failed")

    def arrivals(self) -> dict[int, float]:
        """Return when each event came, by id."""
        return arrivals(self._path)


def run(rounds: int = 2, seconds: float = 4.0) -> Result:
    """Measure."""
    result = Result("notify", "Four ways to tell readers of committed rows")
    with Stack() as stack:
        stack.sql("SELECT sse_pg.make_partitions()")
        for name, statement in DATABASES.items():
            stack.copy_database(name, statement)
        server = stack.serve()
        script = stack.directory / "insert.sql"
        script.write_text(INSERT)
        rates = _at_full_speed(stack, script, Recorder(server), rounds, seconds)
        for name, text in LABELS.items():
            ratio = rates.ratio(name, "row")
            result.add(
                f"{text}: commits/s, {CLIENTS} clients", f"{rates.median(name):,.0f}; {ratio:.1f} times the row trigger"
            )
        delays = _while_held(stack, script, Recorder(server))
        for name in LABELS:
            free, held = delays[name]
            result.add(
                f"{name}, delay insert to reader, ms, {RATE} commits/s",
                f"p50 {percentile(free, 0.5):.1f}, p99 {percentile(free, 0.99):.1f}; while a transaction is open: "
                f"p50 {percentile(held, 0.5):,.1f}, p99 {percentile(held, 0.99):,.1f}, max {held[-1]:,.0f}",
                "p99 below 50 while it is open" if name == "bell" else "",
                percentile(held, 0.99) < 50 if name == "bell" else None,
            )
    result.notes = [
        f"The transaction has written to a table that nobody follows, and stays open for {HELD_S:.0f} s. In this part "
        f"all four run at the same time, with {4 * RATE} commits/s together.",
        "The delay counts from the INSERT (created_at), so the commit's disk flush is part of it.",
    ]
    return result


def _at_full_speed(stack: Stack, script: Path, stream: Recorder, rounds: int, seconds: float) -> Rounds:
    """Run one after the other, each with its reader."""
    rates = Rounds()
    for round_number in range(rounds):
        order = list(LABELS)
        for name in order if round_number % 2 == 0 else reversed(order):
            reader = None if name == "bell" else Reader(stack, name)
            rates.add(name, pgbench(stack, reader and name, script, CLIENTS, seconds))
            if reader is not None:
                reader.close()
    stream.close()
    return rates


def _while_held(stack: Stack, script: Path, stream: Recorder) -> dict[str, tuple[list[float], list[float]]]:
    """Run all at the same time; return the sorted delays, in ms, while no transaction was open and while one was."""
    databases = {name: None if name == "bell" else name for name in LABELS}
    first = {
        name: stack.sql("SELECT coalesce(max(id), 0) FROM sse_pg.events", database)[0][0]
        for name, database in databases.items()
    }
    readers = {name: Reader(stack, name) for name in DATABASES}
    rate = f"--rate={RATE}"
    threads = [
        threading.Thread(target=pgbench, args=(stack, database, script, 4, HELD_S + 2 * MARGIN_S, rate))
        for database in databases.values()
    ]
    for thread in threads:
        thread.start()
    time.sleep(MARGIN_S)
    with ExitStack() as held:
        for database in databases.values():
            conn = held.enter_context(psycopg.connect(stack.database(database)))
            conn.execute("CREATE TABLE public.unrelated (n integer)")
        began = time.time()
        time.sleep(HELD_S)
        ended = time.time()
    for thread in threads:
        thread.join()
    for reader in readers.values():
        reader.close()
    stream.close()
    delays = {}
    for name, database in databases.items():
        came = stream.arrivals() if database is None else readers[name].arrivals()
        rows = stack.sql(
            f"SELECT id, extract(epoch FROM created_at)::float8 FROM sse_pg.events WHERE id > {first[name]}", database
        )
        if lost := [number for number, _ in rows if number not in came]:
            raise RuntimeError(f"{name}: {len(lost)} of {len(rows)} events did not come")
        free = [(came[n] - at) * 1e3 for n, at in rows if at < began - 1]
        busy = [(came[n] - at) * 1e3 for n, at in rows if began <= at < ended]
        delays[name] = sorted(free), sorted(busy)
    return delays
