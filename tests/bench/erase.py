"""Erasing 10,000 of 10 million events, and what publishers wait meanwhile; the same for keep().

Loading takes two to four minutes and 4 GB.
"""

from __future__ import annotations

import threading
import time
import urllib.request

import psycopg

from bench.stack import Server, Stack
from bench.table import Result, Rounds

EVENTS = 10_000_000
ERASED = 10_000
PARTITION = 1_000_000
PUBLISHERS = 4
IN_MEMORY = 5_000
#: Persons 0 to 9 have a channel each, with a thousandth of the events. A twentieth is in the channel "orders", where a
#: fiftieth is of each user. The rest is in "bulk", with a thousandth of all events for each shop.
FILL = """
    INSERT INTO sse_pg.events (channel, payload)
    SELECT CASE WHEN g %% 1000 < 10 THEN 'person' || g %% 1000 WHEN g %% 1000 < 60 THEN 'orders' ELSE 'bulk' END,
           jsonb_build_object('message', 'Hello from the server!', 'user', g / 1000 %% 50, 'shop', g %% 1000)
      FROM generate_series(1, %s) g
"""


def run(rounds: int = 3, events: int = EVENTS) -> Result:
    """Measure."""
    result = Result("erase", f"Erasing {ERASED:,} of {events:,} events")
    options = {"max_wal_size": "8GB", "checkpoint_timeout": "30min"}
    with Stack(options) as stack:
        load(stack.url, events)
        found = measure(stack, rounds)
    for what, target in (("a channel", 2.0), ("of 500,000 in a channel", None), ("of 9.4 million in a channel", None)):
        seconds, wait = found.median(what), max(found.values[f"{what}, wait"])
        held = None if target is None else seconds <= target
        result.add(f"erase {ERASED:,} events: {what}, s", f"{seconds:.2f}", "2" if target else "", held)
        result.add("longest wait of a publisher meanwhile, ms", f"{wait * 1e3:.1f}", "50", wait <= 0.05)
    seconds, wait = found.median("keep"), max(found.values["keep, wait"])
    result.add(f"keep() deletes {ERASED:,} events in steps, s", f"{seconds:.2f}")
    result.add("longest wait of a publisher meanwhile, ms", f"{wait * 1e3:.1f}", "50", wait <= 0.05)
    result.add("longest wait of a publisher without any of it, ms", f"{max(found.values['nothing, wait']) * 1e3:.1f}")
    memory = max(found.values["memory"])
    result.add(f"{IN_MEMORY:,} erased events leave a server's memory, ms", f"{memory * 1e3:.0f}", "1000", memory <= 1)
    result.data = dict(found.values)
    return result


def load(url: str, events: int) -> None:
    """Load the events, with the partitions made ahead as a server would have made them."""
    with psycopg.connect(url, autocommit=True) as conn:
        while events:
            while conn.execute("SELECT sse_pg.make_partitions(3, %s)", (PARTITION,)).fetchone() != (0,):
                pass
            count = min(events, PARTITION)
            conn.execute(FILL, (count,))
            events -= count
        conn.execute("VACUUM (ANALYZE) sse_pg.events")
        conn.execute("CHECKPOINT")


def measure(stack: Stack, rounds: int) -> Rounds:
    """Erase one thing after the other."""
    found = Rounds()
    server = stack.serve(SSE_PG_KEEP_EVENTS="0", SSE_PG_MAINTENANCE_SECONDS="86400")
    for number in range(rounds):
        _timed(stack, found, "nothing", "SELECT pg_sleep(1)")
        _timed(stack, found, "a channel", f"SELECT sse_pg.erase('person{number}')")
        one = f"containing => '{{\"user\": {number}}}')"
        _timed(stack, found, "of 500,000 in a channel", f"SELECT sse_pg.erase('orders', {one}")
        one = f"containing => '{{\"shop\": {number + 100}}}')"
        _timed(stack, found, "of 9.4 million in a channel", f"SELECT sse_pg.erase('bulk', {one}")
        with psycopg.connect(stack.url, autocommit=True) as conn:
            conn.execute(f"UPDATE sse_pg.events SET created_at = '2020-01-01' WHERE channel = 'person{9 - number}'")  # type: ignore[arg-type]
            conn.execute(f"SELECT sse_pg.keep('person{9 - number}', '1 hour')")  # type: ignore[arg-type]
        time.sleep(3)  # the server notes what it has read every two seconds
        _timed(stack, found, "keep", *["SELECT deleted FROM sse_pg.purge()"] * (ERASED // 1000))
        found.add("memory", _forget(stack, server, f"fresh{number}"))
    server.process.stop()
    return found


def _timed(stack: Stack, found: Rounds, what: str, *statements: str) -> None:
    """Time statements, and the longest of the commits of others meanwhile."""
    longest = [0.0] * PUBLISHERS
    stop = threading.Event()

    def publish(number: int) -> None:
        with psycopg.connect(stack.url, autocommit=True) as conn:
            while not stop.is_set():
                started = time.perf_counter()
                conn.execute("SELECT sse_pg.publish('live', 'm', '{\"message\": \"Hello from the server!\"}')")
                longest[number] = max(longest[number], time.perf_counter() - started)
                time.sleep(0.001)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(PUBLISHERS)]
    with psycopg.connect(stack.url, autocommit=True) as conn:
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        longest[:] = [0.0] * PUBLISHERS
        started = time.perf_counter()
        counts = [conn.execute(statement).fetchone() for statement in statements]  # type: ignore[arg-type]
        seconds = time.perf_counter() - started
    stop.set()
    for thread in threads:
        thread.join()
    found.add(what, seconds)
    found.add(f"{what}, wait", max(longest))
    found.add(f"{what}, events", sum(row[0] for row in counts if row and isinstance(row[0], int)))


def _forget(stack: Stack, server: Server, channel: str) -> float:
    """Return how long it takes until events are out of the memory of a server after they were erased."""
    with psycopg.connect(stack.url, autocommit=True) as conn:
        before, count = _erased(server), IN_MEMORY
        conn.execute(FILL.replace("CASE", "CASE WHEN true THEN %s"), (channel, count))  # type: ignore[arg-type]
        time.sleep(1.0)
        conn.execute("SELECT sse_pg.erase(%s)", (channel,))
        started = time.perf_counter()
        while _erased(server) < before + count:
            time.sleep(0.002)
        return time.perf_counter() - started


def _erased(server: Server) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("sse_pg_erased_from_memory_total"):
                return float(line.split()[-1])
    raise RuntimeError("the metric is missing")
