"""``PYTHONPATH=. python -m bench all``, in the folder ``tests``: runs benchmarks, prints their tables, keeps the numbers.

With ``--plots DIRECTORY`` it draws them, too (needs matplotlib).
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from bench.stack import Missing

#: name -> module with run(); in the order of "all".
BENCHMARKS = {
    "sql": "sql_publish",
    "bells": "bells",
    "delay": "idle_delay",
    "order": "order_wait",
    "memory": "stream_memory",
    "http": "http_publish",
    "fanout": "fan_out",
    "crowd": "crowd_latency",
    "deliver": "deliver",
    "answers": "answers",
    "compression": "compression",
    "storm": "reconnect_storm",
    "workers": "workers",
    "growth": "growth",
    "connects": "connects",
    "silent": "silent",
    "quiet": "quiet",
    "large": "large",
    "outage": "outage",
    "price": "price",
    "tables": "table_changes",
    "consumers": "consumers",
    "erase": "erase",
    "limits": "limits",
    "idle": "idle_streams",
    "notify": "notify",
    "polling": "polling",
    "standbys": "standbys",
}


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("name", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the medians are taken (3)")
    parser.add_argument("--keep", type=Path, help="directory for the numbers, as JSON")
    parser.add_argument("--plots", type=Path, help="directory for the plots, as SVG")
    parser.add_argument("--against", type=Path, help="an older checkout, for price")
    arguments = parser.parse_args()
    missed = 0
    for name in BENCHMARKS if arguments.name == "all" else [arguments.name]:
        started = time.monotonic()
        try:
            options = {"against": arguments.against} if name == "price" else {}
            result = importlib.import_module(f"bench.{BENCHMARKS[name]}").run(rounds=arguments.rounds, **options)
        except Missing as missing:
            sys.stdout.write(f"### {name}: not measured, {missing}\n\n")
            continue
        sys.stdout.write(f"{result.text()}\n({time.monotonic() - started:.0f} s)\n\n")
        sys.stdout.flush()
        missed += sum(row.held is False for row in result.rows)
        if arguments.keep:
            result.save(arguments.keep)
        if arguments.plots:
            from bench.plots import draw

            draw(result, arguments.plots)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":  # the processes of a benchmark import this, too
    main()
