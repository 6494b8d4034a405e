"""Direct SQL, many writers: one row a commit, against the plain table, the usual NOTIFY trigger and one global lock."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from pathlib import Path

import psycopg

from bench.crowd import Recorder
from bench.stack import Server, Stack, cpu_seconds, ended_children_seconds
from bench.table import Result, Rounds, percentile

CLIENTS = (1, 8, 32, 64)
INSERT = (
    "INSERT INTO sse_pg.events (channel, event_type, payload) "
    """VALUES ('bench', 'message', '{"message": "Hello from the server!", "priority": "high"}');\n"""
)
DROP = "DROP TRIGGER announce ON sse_pg.events; DROP TRIGGER close_window ON sse_pg.events;"
USUAL = f"""{DROP}
CREATE FUNCTION usual() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('events', row_to_json(NEW)::text); RETURN NEW; END $$;
CREATE TRIGGER usual AFTER INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION usual();"""
LOCKED = f"""{DROP}
CREATE FUNCTION locked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
CREATE TRIGGER locked BEFORE INSERT ON sse_pg.events FOR EACH STATEMENT EXECUTE FUNCTION locked();"""
VARIANTS = {"plain": DROP, "usual": USUAL, "locked": LOCKED}
LABELS = {
    "sse_pg": "sse_pg, every event delivered to a stream",
    "plain": "the same table without triggers, nothing delivered",
    "usual": "row trigger with pg_notify(row_to_json), one LISTEN connection that reads",
    "locked": "one global advisory lock held to commit, nothing delivered",
}


def run(rounds: int = 3, seconds: float = 4.0) -> Result:
    """Measure."""
    result = Result("sql", "Direct SQL, many writers: one row a commit, real fsync")
    with Stack() as stack:
        stack.sql("SELECT sse_pg.make_partitions()")  # a server does; the default partition has a CHECK more
        for name, statement in VARIANTS.items():
            stack.copy_database(name, statement)
        server = stack.serve()
        return _measure(stack, server, result, rounds, seconds)


def _measure(stack: Stack, server: Server, result: Result, rounds: int, seconds: float) -> Result:
    script = stack.directory / "insert.sql"
    script.write_text(INSERT)
    tps, delays, cost, lost, worst = Rounds(), Rounds(), Rounds(), 0, 0.0
    spread: list[float] = []
    order = ["sse_pg", *VARIANTS]
    with psycopg.connect(stack.database("usual"), autocommit=True) as usual_listener:
        usual_listener.execute("LISTEN events")
        for round_number in range(rounds):
            for clients in CLIENTS:
                for name in order if round_number % 2 == 0 else reversed(order):
                    backends = ended_children_seconds(stack.postgres_pid)
                    if name == "sse_pg":
                        rate, seen = _delivered(stack, server, script, clients, seconds)
                        lost += seen["lost"]
                        worst = max(worst, seen["max"])
                        for key in ("p50", "p99", "max"):
                            delays.add(f"{clients} {key}", seen[key])
                        if clients == 32:
                            spread = seen["delays"]
                    elif name == "usual":
                        rate = _listened(stack, usual_listener, script, clients, seconds)
                    else:
                        rate = pgbench(stack, name, script, clients, seconds)
                    tps.add(f"{name} {clients}", rate)
                    time.sleep(0.3)  # the backends end
                    used = ended_children_seconds(stack.postgres_pid) - backends
                    cost.add(f"{name} {clients}", used / (rate * seconds) * 1e6)
                    if name == "sse_pg":
                        cost.add(f"server {clients}", seen["server"])
    for clients in CLIENTS:
        against = {name: tps.ratio(f"sse_pg {clients}", f"{name} {clients}") for name in VARIANTS}
        rates = ", ".join(f"{name} {tps.median(f'{name} {clients}'):,.0f}" for name in order)
        result.add(f"{clients} clients, commits/s", rates)
        at_32 = clients == 32
        result.add(
            f"{clients} clients, of the plain INSERT",
            f"{against['plain']:.2f}",
            "0.9; not below 0.6" if at_32 else "",
            against["plain"] >= 0.6 if at_32 else None,
        )
        result.add(
            f"{clients} clients, times the usual trigger",
            f"{against['usual']:.2f}",
            "3" if at_32 else "",
            against["usual"] >= 3 if at_32 else None,
        )
        result.add(f"{clients} clients, times one global lock", f"{against['locked']:.2f}")
        p50 = delays.median(f"{clients} p50")
        result.add(
            f"{clients} clients, delay insert to client, ms",
            f"p50 {p50 * 1e3:.1f}, p99 {delays.median(f'{clients} p99') * 1e3:.1f}, "
            f"max {delays.median(f'{clients} max') * 1e3:.0f}; the commit alone "
            f"{clients / tps.median(f'sse_pg {clients}') * 1e3:.1f}",
            "p50 below 20",
            p50 < 0.020,
        )
    for clients in CLIENTS:
        costs = ", ".join(f"{name} {cost.median(f'{name} {clients}'):.0f}" for name in [*order, "server"])
        result.add(f"{clients} clients, processor time a commit, µs: backends; server (tail and its backend)", costs)
    result.add("latest event of all runs, ms", f"{worst * 1e3:.0f}", "not later than the safety read, 1000", worst < 1)
    result.add("events lost", str(lost), "0", lost == 0)
    result.notes = [f"{name}: {text}" for name, text in LABELS.items()]
    result.notes.append("The delay counts from the INSERT (created_at), so the commit's disk flush is part of it.")
    result.data = {
        "tps": dict(tps.values),
        "cost": dict(cost.values),
        "delays": dict(delays.values),
        "spread": spread[:: max(1, len(spread) // 5000)],
    }
    return result


def pgbench(stack: Stack, database: str | None, script: Path, clients: int, seconds: float, *options: str) -> float:
    """Run a script with pgbench; return its transactions per second."""
    path, env = stack.pg_program("pgbench")
    command = [
        path, "--no-vacuum", "--protocol=prepared", f"--file={script}", f"--client={clients}",
        f"--jobs={min(2, clients)}", f"--time={seconds:.0f}", *options,
    ]  # fmt: skip
    if database:
        env = {**env, "PGDATABASE": database}
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=seconds + 60)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"pgbench: {done.stderr[-500:]}")
    return float(found[1])


def _delivered(stack: Stack, server: Server, script: Path, clients: int, seconds: float) -> tuple[float, dict]:
    """Run pgbench while a stream is open; return its rate and the delays of what the stream got."""
    before = stack.sql("SELECT coalesce(max(id), 0) FROM sse_pg.events")[0][0]
    recorder = Recorder(server)
    # The backend that the log is read with. Those of the pool come and go, and have nothing to do here.
    pids = [server.process.pid, *(pid for (pid,) in stack.sql(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'sse-pg tail'"))]  # fmt: skip
    used = sum(map(cpu_seconds, pids))
    rate = pgbench(stack, None, script, clients, seconds)
    time.sleep(1.5)
    used = sum(map(cpu_seconds, pids)) - used
    recorder.close()
    arrived = recorder.arrivals()
    rows = stack.sql(f"SELECT id, extract(epoch FROM created_at)::float8 FROM sse_pg.events WHERE id > {before}")
    delays = sorted(arrived[number] - created for number, created in rows if number in arrived)
    return rate, {
        "lost": len(rows) - len(delays),
        "p50": percentile(delays, 0.5),
        "p99": percentile(delays, 0.99),
        "max": delays[-1],
        "delays": delays,
        "server": used / len(rows) * 1e6,
    }


def _listened(stack: Stack, listener: psycopg.Connection, script: Path, clients: int, seconds: float) -> float:
    """Run pgbench while the listener reads its notifications."""
    rate: list[float] = []
    thread = threading.Thread(target=lambda: rate.append(pgbench(stack, "usual", script, clients, seconds)))
    thread.start()
    while thread.is_alive():
        for _ in listener.notifies(timeout=0.2):
            pass
    thread.join()
    return rate[0]
