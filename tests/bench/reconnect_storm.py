"""Reconnect storm: thousands of streams are cut at once and come back, each some events behind."""

from __future__ import annotations

import time

from bench.crowd import Crowd
from bench.fan_out import Poster
from bench.stack import Server, Stack, cpu_seconds, forget_peak, memory
from bench.table import Result, Rounds

STREAMS = 5000
MISSED_EVENTS = 100
#: Settings of a ring that holds what was missed, and of one that does not.
RINGS = {"ring of 10,000": "10000", "ring of 20": "20"}


def run(rounds: int = 3) -> Result:
    """Measure."""
    result = Result("storm", f"Reconnect storm: {STREAMS:,} streams at once, each {MISSED_EVENTS} events behind")
    found = Rounds()
    options = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "top"}
    with Stack(options) as stack:
        stack.sql("CREATE EXTENSION pg_stat_statements")
        for _ in range(rounds):
            for name, size in RINGS.items():
                server = stack.serve(
                    SSE_PG_RING_EVENTS=size, SSE_PG_HEARTBEAT_SECONDS="3600", SSE_PG_POSITION_SECONDS="86400"
                )
                _storm(stack, server, name, found)
                server.process.stop()
    for name in RINGS:
        queries = found.median(f"{name} queries")
        from_ring = name == "ring of 10,000"
        result.add(f"{name}: until all have caught up, s", f"{found.median(f'{name} seconds'):.2f}")
        result.add(
            f"{name}: queries meanwhile, of them reads of the log by streams",
            f"{queries:,.0f}, {found.median(f'{name} pages'):,.0f}",
            "without thousands of queries" if from_ring else "",
            queries < 1000 if from_ring else None,
        )
        result.add(
            f"{name}: peak memory, MiB",
            f"{found.median(f'{name} peak') / 2**20:.0f}; {found.median(f'{name} idle') / 2**20:.0f} "
            f"with the streams idle before",
        )
        result.add(f"{name}: processor time of the server a stream, µs", f"{found.median(f'{name} cpu'):.0f}")
        missing = max(found.values[f"{name} missing"])
        result.add(f"{name}: streams that lack an event", f"{missing:.0f}", "0", missing == 0)
    result.data = dict(found.values)
    return result


def _storm(stack: Stack, server: Server, name: str, found: Rounds) -> None:
    pid = server.process.pid
    poster = Poster(server)
    with Crowd() as crowd:
        crowd.open(server, STREAMS, ids=True)
        found.add(f"{name} idle", memory(pid)["now"])
        poster.post()  # from here on each has a cursor
        crowd.ask("wait", seconds=30)
        crowd.ask("cut")
        for _ in range(MISSED_EVENTS):
            poster.post()
        time.sleep(2.0)
        forget_peak(pid)
        stack.sql("SELECT pg_stat_statements_reset()")
        used = cpu_seconds(pid)
        answer = crowd.ask("storm", port=server.port, path=server.stream, events=MISSED_EVENTS, seconds=120)
        found.add(f"{name} cpu", (cpu_seconds(pid) - used) / STREAMS * 1e6)
        found.add(f"{name} seconds", answer["seconds"])
        found.add(f"{name} missing", answer["missing"])
        found.add(f"{name} peak", memory(pid)["peak"])
        ((queries,),) = stack.sql("SELECT sum(calls) FROM pg_stat_statements")
        ((pages,),) = stack.sql(
            "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query LIKE '%purged_to%' AND query LIKE '%events%'"
        )
        found.add(f"{name} queries", float(queries))
        found.add(f"{name} pages", float(pages))
