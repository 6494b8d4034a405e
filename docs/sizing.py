"""How much it takes: servers, standbys, connections, bytes per second and gigabytes, from figures that were measured.

    python docs/sizing.py --clients 50000 --events 200 --channels 10000 --payload 300 --days 7

The figures are those of a small machine with two cores, so the answer errs towards too much. Put your own in: `bench
limits`, `bench idle` and `bench servers` print them (docs/performance.md).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

#: name -> (value, where it was measured). Bytes, seconds, shares of a core.
FIGURES: dict[str, tuple[float, str]] = {
    "memory of a stream": (2.2 * 1024, "bench idle: the process, 50,000 streams on one channel"),
    "more memory for channels of its own": (8.5 * 1024, "bench growth: 20 channels that no other stream has"),
    "memory of the kernel for a stream": (9.9 * 1024 / 2, "bench idle: half of what both ends take"),
    "memory of a process": (69e6, "bench connects: after a million streams"),
    "recent events in memory": (64 * 2**20, "SSE_PG_RING_BYTES"),
    "idle stream": (0.097 / 50_000, "bench idle: a heartbeat every 15 s"),
    "delivery": (13.0e-6, "bench idle: one event at a time, so the dearest kind"),
    "read of an event by a process": (28e-6, "docs/scaling.md: a server and its backend at 10,000 commits/s"),
    "streams of a process": (15_000, "SSE_PG_MAX_STREAMS"),
    "connections of an idle process": (2, "bench idle: 8 of 4 processes, after a minute"),
    "connections of a process": (10, "SSE_PG_POOL_SIZE + 2"),
    "frame of an event": (60, "id, event and data of the stream"),
    "packet": (88, "Ethernet, IP, TCP and TLS around a delivery"),
    "heartbeat": (3 + 88, "a comment and its packet, every 15 s"),
    "ids of a partition": (1_000_000, "SSE_PG_PARTITION_SIZE"),
    "memory of a session for a partition": (16_869, "bench limits: a statement that plans over all of them"),
}
#: Events per second with one primary that shares two cores with its publishers and a server, by events of a commit.
MOST_EVENTS: dict[int, dict[int, float]] = {  # payload in bytes: commits of 1, 10, 100 and 1,000 events; bench limits
    100: {1: 16_682, 10: 62_085, 100: 184_572, 1000: 223_596},
    1000: {1: 13_631, 10: 46_506, 100: 91_094, 1000: 100_052},
    10_000: {1: 4_023, 10: 5_192, 100: 5_476, 1000: 4_960},
}
#: Of an event, by payload; bench limits.
WAL_BYTES: dict[int, float] = {100: 386, 1000: 1_286, 10_000: 11_147}
STORED_BYTES: dict[int, float] = {100: 235, 1000: 1_232, 10_000: 12_419}
#: The database's share of a core for one more process with streams that get none of the events, by events per second;
#: bench servers. The last is not measured: half of what the process and its backend take together.
BACKEND: dict[int, float] = {0: 0.001, 50: 0.014, 500: 0.026, 10_000: 0.14}
#: A core is full at this share; what is above it is for bursts.
FULL = 0.6
#: Commits after which autovacuum freezes a partition that is still there: autovacuum_freeze_max_age.
FREEZE_AFTER = 200_000_000


def figure(name: str) -> float:
    """Return a measured figure."""
    return FIGURES[name][0]


def between(table: dict[int, float], at: float) -> float:
    """Read a table at a value between its keys, or beyond them in a straight line."""
    keys = sorted(table)
    upper = next((key for key in keys[1:] if at <= key), keys[-1])
    lower = keys[keys.index(upper) - 1]
    return table[lower] + (table[upper] - table[lower]) * (at - lower) / (upper - lower)


def answer(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return what it takes, as (what, how much)."""
    clients, events, payload = options.clients, options.events, options.payload
    audience = min(clients, clients * options.follows / options.channels)
    deliveries = events * audience
    stream = figure("memory of a stream") + figure("memory of the kernel for a stream")
    if options.channels * options.follows > clients:  # most streams share their channels with nobody
        stream += figure("more memory for channels of its own") * min(1, options.follows / 20)

    by_streams = math.ceil(clients / figure("streams of a process"))
    spread = deliveries * figure("delivery") + clients * figure("idle stream")
    own = events * figure("read of an event by a process")
    if own >= FULL:
        raise SystemExit(f"one process cannot read {events:,.0f} events per second: see docs/scaling.md")
    processes = max(by_streams, math.ceil(spread / (FULL - own)), 2)  # two, so that one may stop

    most = between({size: between(by_rows, options.rows) for size, by_rows in MOST_EVENTS.items()}, payload)
    tails = processes * between(BACKEND, events)
    spare = max(0.0, options.cores * FULL - options.cores * events / most)
    standbys = 0 if tails <= spare else math.ceil((tails - spare) / (options.cores * FULL))
    kept = events * options.days * 86400
    partitions = math.ceil(kept / figure("ids of a partition"))
    connections = processes * figure("connections of a process")
    caches = connections * partitions * figure("memory of a session for a partition")
    out = deliveries * (payload + figure("frame of an event") + figure("packet")) + clients / 15 * figure("heartbeat")
    memory = clients * stream + processes * (figure("memory of a process") + figure("recent events in memory"))
    return [
        ("server processes", f"{processes} ({by_streams} because of the streams)"),
        ("cores that they use", f"{spread + own * processes:.1f}"),
        ("memory of all of them", f"{memory / 1e9:.1f} GB"),
        ("deliveries", f"{deliveries:,.0f} per second, {audience:,.1f} for each event"),
        ("to the clients", f"{out / 1e6:,.1f} MB/s"),
        ("from the database to the servers", f"{processes * events * (payload + 100) / 1e6:,.1f} MB/s"),
        ("primary", f"{events / most:.0%} of a primary with two cores that does nothing else"),
        ("reads of the servers", f"{tails:.2f} cores of the database"),
        ("standbys that serve reads", f"{standbys}, if the primary has {options.cores} cores"),
        (
            "connections to the database",
            f"{processes * figure('connections of an idle process'):.0f} when idle, at most {connections:.0f}",
        ),
        ("WAL", f"{events * between(WAL_BYTES, payload) / 1e6:,.2f} MB/s"),
        ("events that are kept", f"{kept:,.0f} in {partitions:,} partitions"),
        ("disk for them", f"{kept * between(STORED_BYTES, payload) / 1e9:,.1f} GB"),
        ("memory of the sessions for partitions", f"{caches / 1e6:,.0f} MB"),
        (
            "freezing of old partitions",
            "none because of the events' own commits: they are dropped before"
            if kept / options.rows < FREEZE_AFTER
            else "once for each partition, by autovacuum",
        ),
    ]  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Read the options, and print the answer as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, required=True, help="streams that are open at the same time")
    parser.add_argument("--events", type=float, required=True, help="events per second, at the busiest time")
    parser.add_argument("--channels", type=int, required=True, help="channels that the events are spread over")
    parser.add_argument("--follows", type=int, default=1, help="channels that a client follows (1)")
    parser.add_argument("--payload", type=int, default=300, help="bytes of a payload (300)")
    parser.add_argument("--days", type=float, default=7, help="how long events are kept (7)")
    parser.add_argument("--rows", type=int, default=1, help="events of a commit (1)")
    parser.add_argument("--cores", type=int, default=4, help="cores of the primary (4)")
    rows = answer(parser.parse_args(words))
    width = max(len(what) for what, _ in rows)
    sys.stdout.write("".join(f"{what:{width}}  {how_much}\n" for what, how_much in rows))


if __name__ == "__main__":
    main()
