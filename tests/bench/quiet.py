"""What a server that nobody uses asks the database, and how long it takes to come back after it has let go of it."""

from __future__ import annotations

import sys
import time
import urllib.request

import psycopg

from bench.stack import Server, Stack
from bench.table import Result, Rounds, percentile

#: Time for which statements are counted.
COUNTED_S = 300.0
#: Time that a server gets to finish what it does when it starts.
SETTLE_S = 5.0
LET_GO_AFTER_S = 1.0
#: How often each server comes back, in a round.
RETURNS = 10
COUNT = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query !~ 'pg_stat'"
CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'sse-pg%'"
EVENT = b'{"channel": "bench", "payload": 1}'


def run(rounds: int = 3, counted_s: float = COUNTED_S) -> Result:
    """Measure; statements are counted once."""
    result = Result("quiet", "A server that nobody uses")
    found = Rounds()
    with Stack(options={"shared_preload_libraries": "pg_stat_statements"}) as stack:
        stack.sql("CREATE EXTENSION pg_stat_statements")
        per_hour = statements(stack, counted_s) * 3600 / counted_s
        server = stack.serve(SSE_PG_LET_GO_AFTER_SECONDS=str(LET_GO_AFTER_S))
        with psycopg.connect(stack.url, autocommit=True) as conn:
            for _ in range(rounds * RETURNS):
                found.add("publish", _after_rest(conn, server, server.publish, EVENT))
                found.add("stream", _after_rest(conn, server, server.stream, None))
    result.add("statements an hour", f"{per_hour:.0f}", "at most 120", per_hour <= 120)
    for name in ("publish", "stream"):
        times = sorted(found.values[name])
        result.add(
            f"first {name} after a rest, ms: median, longest",
            f"{percentile(times, 0.5) * 1000:.0f}, {times[-1] * 1000:.0f}",
            "below 1000",
            times[-1] < 1,
        )
    result.data = {"statements an hour": per_hour, **found.values}
    return result


def statements(stack: Stack, counted_s: float) -> int:
    """Count what a server with default settings asks in a time, apart from what it asks when it starts."""
    server = stack.serve()
    time.sleep(SETTLE_S)
    before = stack.sql(COUNT)[0][0]
    time.sleep(counted_s)
    after = stack.sql(COUNT)[0][0]
    server.process.stop()
    return int(after - before)


def _after_rest(conn: psycopg.Connection, server: Server, path: str, body: bytes | None) -> float:
    """Wait until a server has no connection; return the seconds until the first byte of the next response."""
    while conn.execute(CONNECTED).fetchall() != [(0,)]:
        time.sleep(0.05)
    since = time.perf_counter()
    request = urllib.request.Request(server.url + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        response.read(1)
        return time.perf_counter() - since


if __name__ == "__main__":
    print(run(counted_s=float(sys.argv[1])).text())
