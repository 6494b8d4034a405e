"""A reader of one of the ways in bench.notify, in a process of its own: notes when each event came.

``python -m bench.notify_reader NAME CONNINFO FILE``: prints a line once it reads, ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import psycopg

POLL_S = 0.005
LOCK = "SELECT id FROM sse_pg.events WHERE id > %s ORDER BY id"
HORIZON = (
    "SELECT id, xid::text::bigint FROM sse_pg.events "
    "WHERE (xid, id) > (%s::text::xid8, %s) AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, id"
)


def arrivals(path: Path) -> dict[int, float]:
    """Return what a reader wrote: when (wall clock) each event came, by id."""
    times, numbers = array("d"), array("q")
    data = path.read_bytes()
    half = len(data) // 2
    numbers.frombytes(data[:half])
    times.frombytes(data[half:])
    return dict(zip(numbers, times, strict=True))


def _notified(conn: psycopg.Connection) -> Iterator[list[int]]:
    conn.execute("LISTEN events")
    while True:
        yield [json.loads(notification.payload)["id"] for notification in conn.notifies(timeout=POLL_S)]


def _locked(conn: psycopg.Connection) -> Iterator[list[int]]:
    ((last,),) = conn.execute("SELECT coalesce(max(id), 0) FROM sse_pg.events").fetchall()
    while True:
        found = [number for (number,) in conn.execute(LOCK, (last,)).fetchall()]
        last = found[-1] if found else last
        yield found


def _below_horizon(conn: psycopg.Connection) -> Iterator[list[int]]:
    ((last, number),) = conn.execute(
        "SELECT xid::text::bigint, id FROM sse_pg.events ORDER BY xid DESC, id DESC LIMIT 1"
    ).fetchall() or [(0, 0)]
    while True:
        found = conn.execute(HORIZON, (last, number)).fetchall()
        if found:
            number, last = found[-1]
        yield [number for number, _ in found]


def main() -> None:
    """Read until standard input ends and nothing new comes."""
    name, conninfo, path = sys.argv[1:]
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    numbers, times = array("q"), array("d")
    with psycopg.connect(conninfo, autocommit=True) as conn:
        source = {"row": _notified, "lock": _locked, "horizon": _below_horizon}[name](conn)
        quiet = 0
        started = False
        while not (ended.is_set() and quiet > 20):
            found = next(source)
            now = time.time()
            numbers.extend(found)
            times.extend([now] * len(found))
            quiet = 0 if found else quiet + 1
            if not started:
                started = True
                sys.stdout.write("reading\n")
                sys.stdout.flush()
            if name != "row":
                time.sleep(POLL_S)
    Path(path).write_bytes(numbers.tobytes() + times.tobytes())


if __name__ == "__main__":
    main()
