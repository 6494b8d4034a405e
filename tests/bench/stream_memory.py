"""Memory of an idle stream: what a server's process grows by while thousands of streams open."""

from __future__ import annotations

import time

from bench.crowd import Crowd
from bench.stack import Missing, Server, Stack, memory
from bench.table import Result, Rounds

FIRST, MORE = 500, 4500


def run(rounds: int = 3) -> Result:
    """Measure."""
    result = Result("memory", f"Memory of an idle stream, over {MORE:,} of them")
    found = Rounds()
    with Stack() as stack:
        stack.copy_database(
            "rival", "DROP TRIGGER announce ON sse_pg.events; DROP TRIGGER close_window ON sse_pg.events;"
        )
        for _ in range(rounds):
            for name in ("sse-pg", "node", "nchan"):
                try:
                    server = {
                        "sse-pg": stack.serve,
                        "node": lambda: stack.serve_node("rival"),
                        "nchan": stack.serve_nchan,
                    }[name]()
                except Missing as missing:
                    result.notes.append(str(missing))
                    continue
                found.add(name, _growth(server) / MORE / 1024)
                server.process.stop()
    ours = found.median("sse-pg")
    result.add("sse-pg, KiB a stream", f"{ours:.1f}", "at most 12", ours <= 12)
    for name in ("node", "nchan"):
        if name in found.values:
            result.add(
                f"{name}, KiB a stream", f"{found.median(name):.1f}; sse-pg has {ours / found.median(name):.2f} of it"
            )
    result.data = dict(found.values)
    return result


def _growth(server: Server) -> int:
    """Return by how many bytes the process grows after the first streams; those warm it up."""
    with Crowd() as crowd:
        crowd.open(server, FIRST)
        time.sleep(1.0)
        before = memory(server.worker_pid())["now"]
        crowd.open(server, MORE)
        time.sleep(1.0)
        return memory(server.worker_pid())["now"] - before
