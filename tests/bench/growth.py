"""Growth: publish, replay, a history page and a purge with few, many and very many stored events; many channels.

Each size is a database of its own, with a server of its own; they are measured in turns. 30 million events take five
minutes to load and 10 GB. Alone, and with at most so many: ``PYTHONPATH=.:tests python -m bench.growth ROUNDS MOST``.
"""

from __future__ import annotations

import http.client
import json
import random
import shutil
import socket
import sys
import threading
import time

import psycopg

from bench.crowd import Crowd, Recorder
from bench.fan_out import Poster
from bench.stack import Server, Stack, memory
from bench.table import Result, Rounds, percentile

MILLION = 1_000_000
SIZES = (10_000, MILLION, 30_000_000)
#: Disk that a stored event takes with its indexes and the log of its writing, in bytes.
BYTES_PER_EVENT = 600
CHANNELS = 20
#: Each database begins with partitions of so many ids, which are purged one by one; then come those of the usual size.
SMALL, SMALLS = 1000, 6
PARTITION = MILLION
SAMPLES = 200
FILL = (
    "INSERT INTO sse_pg.events (channel, payload)"
    " SELECT 'c' || g %% %s, jsonb_build_object('message', 'Hello from the server!', 'n', g) FROM generate_series(1, %s) g"
)
WIDE_CHANNELS = 1000
MANY_CHANNELS = 100_000
CROWD, OWN = 5000, 20


def run(rounds: int = 3, most: int = SIZES[-1]) -> Result:
    """Measure."""
    result = Result("growth", "Growth: the same work with more stored")
    options = {"max_wal_size": "8GB", "checkpoint_timeout": "30min", "wal_level": "minimal", "max_wal_senders": "0"}
    found = Rounds()
    with Stack(options) as stack:
        sizes = [
            size for size in SIZES if size <= most and size * BYTES_PER_EVENT < shutil.disk_usage(stack.directory).free
        ]
        for size in sizes:
            stack.copy_database(f"stored{size}", "SELECT 1")
            started = time.monotonic()
            _fill(stack.database(f"stored{size}"), size, CHANNELS)
            result.notes.append(f"{size:,} events were loaded in {time.monotonic() - started:.0f} s")
        stack.copy_database("channels", "SELECT 1")
        _fill(stack.database("channels"), 1_000_000, MANY_CHANNELS)
        servers = {f"{size:,} events": _serve(stack, f"stored{size}") for size in sizes}
        servers["channels"] = _serve(stack, "channels")
        for _ in range(rounds):
            _measure(servers, found)
        for number in range(min(rounds, SMALLS - 2)):
            for size in sizes:
                _purge(stack.database(f"stored{size}"), number, f"{size:,} events", found)
        _purge_whole(stack.database(f"stored{sizes[-1]}"), found)
        for server in servers.values():
            server.process.stop()
        _own_channels(stack, found)
    base = f"{sizes[0]:,} events"
    for what in ("publish", "replay", "history", "purge"):
        times = ", ".join(f"{found.median(f'{size:,} events {what}') * 1e3:.2f}" for size in sizes)
        worst = max(found.ratio(f"{size:,} events {what}", f"{base} {what}") for size in sizes)
        result.add(
            f"{DESCRIPTIONS[what]}, ms, with {' / '.join(f'{size:,}' for size in sizes)} events",
            f"{times}: at most {worst:.2f} times the smallest", "1.3 times", worst <= 1.3,
        )  # fmt: skip
    for what in ("publish", "replay", "history") if MILLION in sizes else ():
        result.add(
            f"{DESCRIPTIONS[what]}, ms, with 1,000,000 events in {MANY_CHANNELS:,} channels, and in {CHANNELS}",
            f"{found.median(f'channels {what}') * 1e3:.2f}, {found.median(f'1,000,000 events {what}') * 1e3:.2f}",
        )
    for what in ("wide replay", "wide delay", "narrow delay"):
        result.add(f"{DESCRIPTIONS[what]}, ms", f"{found.median(what) * 1e3:.2f}")
    if "whole" in found.values:
        whole, wait = found.median("whole"), found.median("wait")
        result.add("purge of a partition of 1,000,000 events, ms", f"{whole * 1e3:.0f}", "a second", whole < 1)
        result.add("longest wait of 4 publishers meanwhile, ms", f"{wait * 1e3:.1f}", "50", wait <= 0.05)
    result.add(
        f"{CROWD:,} streams, each on {OWN} channels of its own: KiB a stream; delay to one of them, p50 ms",
        f"{found.median('own memory') / 1024:.1f}; {found.median('own delay') * 1e3:.2f}",
    )
    result.data = dict(found.values)
    return result


DESCRIPTIONS = {
    "publish": "publish over HTTP",
    "replay": "open a stream and read 100 stored events",
    "history": "history, 100 events from anywhere",
    "purge": f"purge of {SMALL:,} events",
    "wide replay": f"open a stream on {WIDE_CHANNELS:,} channels and read 100 events of them, with {MANY_CHANNELS:,} channels",
    "wide delay": f"publish to such a stream, delay p50, in the database with {MANY_CHANNELS:,} channels",
    "narrow delay": "the same to a stream on 1 channel",
}


def _fill(url: str, size: int, channels: int) -> None:
    """Load events, with the partitions made ahead as a server would have made them."""
    with psycopg.connect(url, autocommit=True) as conn:
        _partitions(conn, SMALLS - 1, SMALL)
        left = size
        while left:
            _partitions(conn, 3, PARTITION)
            count = min(left, PARTITION)
            conn.execute(FILL, (channels, count))
            left -= count
        conn.execute("VACUUM (ANALYZE) sse_pg.events")
        conn.execute("CHECKPOINT")


def _partitions(conn: psycopg.Connection, ahead: int, size: int) -> None:
    while conn.execute("SELECT sse_pg.make_partitions(%s, %s)", (ahead, size)).fetchone()[0] != 0:
        pass


def _serve(stack: Stack, database: str) -> Server:
    return stack.serve(
        DATABASE_URL=stack.database(database), SSE_PG_KEEP_EVENTS="0", SSE_PG_MAINTENANCE_SECONDS="86400",
        SSE_PG_RING_EVENTS="0", SSE_PG_HEARTBEAT_SECONDS="3600", SSE_PG_MAX_CHANNELS="1000",
    )  # fmt: skip


def _measure(servers: dict[str, Server], found: Rounds) -> None:
    """Time each kind of request, one after the other and server by server in turns: noise then falls on all of them."""
    conns = {name: http.client.HTTPConnection("127.0.0.1", server.port) for name, server in servers.items()}
    times: dict[str, list[float]] = {
        f"{name} {what}": [] for name in servers for what in ("publish", "replay", "history")
    }
    body = json.dumps({"channel": "c7", "payload": {"message": "Hello from the server!"}})
    for _ in range(SAMPLES):
        for name, server in servers.items():
            times[f"{name} publish"].append(_ask(conns[name], "POST", server.publish, body, 201)[0])
    last = {name: _published(conns[name], server) for name, server in servers.items()}
    for number in range(SAMPLES // 4):
        for name, server in servers.items():
            # So far back that 100 events of the channel follow; each its own, so that no page is shared.
            after = last[name] - SAMPLES - (MANY_CHANNELS if name == "channels" else 100 * CHANNELS) - number
            times[f"{name} replay"].append(_stream(server, "c7", after, 100))
    for _ in range(SAMPLES):
        for name in servers:
            after = random.randrange(SMALL * SMALLS, last[name] - SAMPLES - 100 * CHANNELS)
            path = f"/api/events/history?channel=c7&limit=100&after={after}"
            times[f"{name} history"].append(_ask(conns[name], "GET", path, None, 200)[0])
    for name, values in times.items():
        found.add(name, percentile(sorted(values), 0.5))
    server = servers["channels"]
    wide = ",".join(f"c{number}" for number in range(WIDE_CHANNELS))
    for number in range(5):
        found.add("wide replay", _stream(server, wide, last["channels"] - SAMPLES - MANY_CHANNELS - number, 100))
    for channels, what in ((wide, "wide delay"), ("c7", "narrow delay")):
        found.add(what, _delay(server, f"/api/events/stream?channels={channels}", "c7"))
    for conn in conns.values():
        conn.close()


def _ask(
    conn: http.client.HTTPConnection, method: str, path: str, body: str | None, status: int
) -> tuple[float, bytes]:
    started = time.monotonic()
    conn.request(method, path, body, {"Content-Type": "application/json"} if body else {})
    answer = conn.getresponse()
    text = answer.read()
    if answer.status != status:
        raise RuntimeError(f"{answer.status}: {text[:300]!r}")
    return time.monotonic() - started, text


def _published(conn: http.client.HTTPConnection, server: Server, channel: str = "c7") -> int:
    return int(
        json.loads(_ask(conn, "POST", server.publish, json.dumps({"channel": channel, "payload": 1}), 201)[1])["id"]
    )


def _stream(server: Server, channels: str, after: int, count: int) -> float:
    """Open a stream; return the seconds until so many events are there."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        path = f"/api/events/stream?channels={channels}&lastEventId={after}"
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        blocks = 0
        while blocks < count + 1:  # the hello is one
            data = sock.recv(262144)
            if not data:
                raise RuntimeError(f"the stream ended after {blocks} blocks")
            blocks += data.count(b"\n\n")
        return time.monotonic() - started


def _delay(server: Server, path: str, channel: str, count: int = 100) -> float:
    """Return the median from before a publish until it is at a stream."""
    recorder = Recorder(Server(server.name, server.port, server.process, path, server.publish))
    sent, conn = {}, http.client.HTTPConnection("127.0.0.1", server.port)
    for _ in range(count):
        started = time.time()
        sent[_published(conn, server, channel)] = started
        time.sleep(0.03)  # slow enough for the server to sleep in between
    time.sleep(0.3)
    arrived = recorder.arrivals()
    recorder.close()
    conn.close()
    return percentile(sorted(arrived[number] - started for number, started in sent.items()), 0.5)


def _purge(url: str, number: int, name: str, found: Rounds) -> None:
    """Drop the lowest partition, one of the small ones."""
    with psycopg.connect(url, autocommit=True) as conn:
        low = conn.execute("SELECT min(first_id) FROM sse_pg.partitions()").fetchone()[0]
        keep = conn.execute("SELECT sse_pg.last_id()").fetchone()[0] - low - SMALL
        started = time.monotonic()
        state, partitions = conn.execute("SELECT state, partitions FROM sse_pg.purge(%s)", (keep,)).fetchone()
        found.add(f"{name} purge", time.monotonic() - started)
        if partitions != 1:
            raise RuntimeError(f"purge {number} of {name}: {partitions} partitions, {state}")


def _purge_whole(url: str, found: Rounds) -> None:
    """Drop a full partition of the usual size while others publish."""
    with psycopg.connect(url, autocommit=True) as conn:
        rows = conn.execute("SELECT first_id, last_id FROM sse_pg.partitions() ORDER BY first_id").fetchall()
        whole = [first for first, last in rows if last - first + 1 == PARTITION]
        last = conn.execute("SELECT sse_pg.last_id()").fetchone()[0]
        if not whole or whole[0] + PARTITION > last:
            return
        _purge_to(conn, whole[0], last)
        over, waits = threading.Event(), []
        threads = [threading.Thread(target=_publish_on, args=(url, over, waits)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        waits.clear()
        started = time.monotonic()
        _purge_to(conn, whole[0] + PARTITION, last)
        found.add("whole", time.monotonic() - started)
        time.sleep(0.1)
        over.set()
        for thread in threads:
            thread.join()
        found.add("wait", max(waits))


def _purge_to(conn: psycopg.Connection, first: int, last: int) -> None:
    """Purge, as a server does, until the oldest partition begins there."""
    while conn.execute("SELECT min(first_id) FROM sse_pg.partitions()").fetchone()[0] < first:
        last = conn.execute("SELECT sse_pg.last_id()").fetchone()[0]
        conn.execute("SELECT sse_pg.purge(%s)", (last - first,))


def _publish_on(url: str, over: threading.Event, waits: list[float]) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        while not over.is_set():
            started = time.monotonic()
            conn.execute("SELECT sse_pg.publish('c1', 'message', '{}')")
            waits.append(time.monotonic() - started)


def _own_channels(stack: Stack, found: Rounds) -> None:
    """Thousands of streams with channels that nobody else has."""
    stack.copy_database("own", "SELECT 1")
    server = _serve(stack, "own")
    names = ",".join(f"own{{n}}-{number}" for number in range(OWN))
    path = f"/api/events/stream?channels={names}"
    streams = Server(server.name, server.port, server.process, path, server.publish)
    with Crowd() as crowd:
        crowd.open(streams, 500)
        time.sleep(1.0)
        before = memory(server.process.pid)["now"]
        crowd.open(streams, CROWD)
        time.sleep(1.0)
        found.add("own memory", (memory(server.process.pid)["now"] - before) / CROWD)
        Poster(server).post()
        found.add("own delay", _delay(server, path.replace("{n}", "17"), "own17-3"))
    server.process.stop()


if __name__ == "__main__":
    print(run(*map(int, sys.argv[1:])).text())
