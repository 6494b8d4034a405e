"""50,000 idle streams on one machine: several server processes, several client processes, several source addresses.

A process may have 20,000 files here, and between two addresses and a port there are some 28,000 connections.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
import urllib.request
from pathlib import Path

from bench.crowd import Crowd
from bench.stack import Server, Stack, cpu_seconds, memory
from bench.table import Result

STREAMS, PROCESSES = 50_000, 4
#: Two heartbeats of each stream.
IDLE_SECONDS = 30.0


def run(rounds: int = 1, streams: int = STREAMS, idle: float = IDLE_SECONDS) -> Result:
    """Measure; one round."""
    del rounds
    result = Result("idle", f"{streams:,} idle streams in {PROCESSES} processes")
    with Stack() as stack, contextlib.ExitStack() as crowds:
        server = stack.serve(SSE_PG_WORKERS=str(PROCESSES))
        pids = [each["pid"] for each in _servers(server)]
        if len(pids) != PROCESSES:
            raise RuntimeError(f"{len(pids)} of {PROCESSES} workers serve")
        clients = [crowds.enter_context(Crowd()) for _ in range(PROCESSES)]
        before, kernel = sum(memory(pid)["now"] for pid in pids), _kernel_bytes()
        used, started = _used(pids), time.monotonic()
        for number, crowd in enumerate(clients):
            crowd.send(
                "open", port=server.port, path=server.stream, count=streams // PROCESSES, source=f"127.0.0.{number + 2}"
            )
        for crowd in clients:
            answer = crowd.answer()
            if answer["opened"] < streams // PROCESSES or answer["ended"]:
                raise RuntimeError(f"not all streams opened: {answer}")
        seconds, used = time.monotonic() - started, _used(pids) - used
        result.add(
            "opening them: s; processor of the servers, µs a stream", f"{seconds:.1f}; {used / streams * 1e6:.0f}"
        )
        time.sleep(3.0)
        grown, in_kernel = sum(memory(pid)["now"] for pid in pids) - before, _kernel_bytes() - kernel
        result.add(
            "memory of the servers, KiB a stream; MiB in all", f"{grown / streams / 1024:.1f}; {grown / 2**20:.0f}"
        )
        result.add("memory of the kernel, KiB for both ends of a stream", f"{in_kernel / streams / 1024:.1f}")
        counts = [each["activeConnections"] for each in _servers(server)]
        result.add("streams a process", " ".join(f"{count:,}" for count in counts), f"{streams:,} in all",
                   sum(counts) == streams)  # fmt: skip
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'sse-pg%'"
        result.add("connections to the database", str(stack.sql(query)[0][0]))
        backends = [pid for (pid,) in stack.sql(query.replace("count(*)", "pid"))]
        used, database = _used(pids), _used(backends)
        time.sleep(idle)
        used, database = (_used(pids) - used) / idle, (_used(backends) - database) / idle
        result.add(
            "idle: processor of the servers, and of their backends, % of a core",
            f"{used * 100:.1f}, {database * 100:.2f}",
        )
        for crowd in clients:
            crowd.ask("begin")
        used, started = _used(pids), time.monotonic()
        stack.sql("SELECT sse_pg.publish('bench', 'message', '{\"message\": \"Hello from the server!\"}')")
        for crowd in clients:
            crowd.send("wait", seconds=60)
        seen = [crowd.answer() for crowd in clients]
        if any(each["missing"] or each["ended"] for each in seen):
            raise RuntimeError(f"not all streams got the event: {seen}")
        used = _used(pids) - used
        first, last = (
            min(each["first"] for each in seen) - started,
            max(each["last"] for each in seen) - started,
        )
        result.add(
            "one event to all: ms until the first stream has it; the last", f"{first * 1e3:.1f}; {last * 1e3:.0f}"
        )
        result.add("processor of the servers, µs a delivery", f"{used / streams * 1e6:.1f}")
    result.notes = ["Servers, clients and PostgreSQL share the cores. All streams are on one channel."]
    return result


def _servers(server: Server) -> list[dict]:
    with urllib.request.urlopen(f"{server.url}/api/events/active-connections", timeout=10) as answer:
        return json.load(answer)["servers"]


def _used(pids: list[int]) -> float:
    return sum(map(cpu_seconds, pids))


def _kernel_bytes() -> int:
    """Return what the kernel has for itself: sockets, descriptors, epoll."""
    text = Path("/proc/meminfo").read_text()
    return sum(int(re.search(rf"{name}:\s+(\d+)", text)[1]) * 1024 for name in ("Slab", "KernelStack"))


if __name__ == "__main__":
    print(run(1, *map(int, sys.argv[1:])).text())
