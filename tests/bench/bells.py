"""What the bell costs: commits a second of many writers while no server runs, and while one does. Real fsync.

Alone: ``PYTHONPATH=. python -m bench bells``, in the folder ``tests``.
"""

from __future__ import annotations

from bench.sql_publish import DROP, INSERT, pgbench
from bench.stack import Stack
from bench.table import Result, Rounds

CLIENTS = 32
SECONDS = 4.0
RUNS = {
    "plain": "the same table without triggers",
    "nobody": "no server runs: every commit rings",
    "servers": "no server runs, sse_pg.bell = servers: no commit rings",
    "served": "one server runs and polls",
}


def run(rounds: int = 3) -> Result:
    """Measure."""
    result = Result("bells", f"Direct SQL with and without the bell: {CLIENTS} writers, one row a commit, real fsync")
    rates = Rounds()
    with Stack() as stack:
        script = stack.directory / "insert.sql"
        script.write_text(INSERT)
        stack.sql("SELECT sse_pg.make_partitions()")
        for name in RUNS:
            stack.copy_database(name, DROP if name == "plain" else "SELECT 1")
        stack.sql("ALTER DATABASE servers SET sse_pg.bell = 'servers'")
        stack.serve(DATABASE_URL=stack.database("served"))
        for number in range(rounds):
            for name in RUNS if number % 2 == 0 else reversed(RUNS):
                rates.add(name, pgbench(stack, name, script, CLIENTS, SECONDS))
    for name, what in RUNS.items():
        share = "" if name == "plain" else f"; {rates.ratio(name, 'plain'):.2f} of plain"
        result.add(what, f"{rates.median(name):,.0f} commits/s{share}")
    return result
