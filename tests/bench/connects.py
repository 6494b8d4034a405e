"""A long run of short streams: the memory of the server, sampled as they come and go, and its slope.

A million take about fifteen minutes. Fewer: ``PYTHONPATH=.:tests python -m bench.connects 100000``.
"""

from __future__ import annotations

import sys
from statistics import linear_regression

from bench.crowd import Crowd
from bench.stack import Stack, cpu_seconds, memory
from bench.table import Result

CONNECTS = 1_000_000
SAMPLES = 40
STREAMS_AT_A_TIME = 100
#: Seconds after which a run ends with what it has.
TIME_LIMIT_S = 1200.0


def run(rounds: int = 1, connects: int = CONNECTS) -> Result:
    """Measure; one round, whatever is asked for: it is long."""
    del rounds
    result = Result("connects", "Memory over a long run of short streams")
    opened, seconds = [0], 0.0
    with Stack() as stack:
        server = stack.serve()
        with Crowd() as crowd:
            order = {"port": server.port, "path": server.stream, "at_once": STREAMS_AT_A_TIME, "seconds": 120.0}
            crowd.ask("churn", count=5000, **order)  # warm
            used = cpu_seconds(server.process.pid)
            resident = [memory(server.process.pid)["now"]]
            while opened[-1] < connects and seconds < TIME_LIMIT_S:
                answer = crowd.ask("churn", count=connects // SAMPLES, **order)
                if answer["ended"]:
                    raise RuntimeError(f"the server ended {answer['ended']} streams")
                opened.append(opened[-1] + answer["done"])
                resident.append(memory(server.process.pid)["now"])
                seconds += answer["seconds"]
            used = cpu_seconds(server.process.pid) - used
    half = len(opened) // 2
    slope = linear_regression(opened[half:], resident[half:]).slope
    result.add("streams opened and closed", f"{opened[-1]:,} in {seconds:.0f} s, {STREAMS_AT_A_TIME} at a time")
    result.add("processor time of the server for one, µs", f"{used / opened[-1] * 1e6:.0f}")
    result.add(
        "resident memory at the start, the middle and the end, MiB",
        ", ".join(f"{resident[place] / 2**20:.1f}" for place in (0, half, -1)),
    )
    result.add("slope over the second half, bytes a stream", f"{slope:.2f}", "flat: below 1", slope < 1)
    result.data = {"opened": opened, "resident": resident}
    return result


if __name__ == "__main__":
    print(run(connects=int(sys.argv[1])).text())
