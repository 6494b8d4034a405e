"""Idle delay: from before the publish to the client, one event at a time with nothing else going on.

Against what a program can do at best with PostgreSQL alone: INSERT and NOTIFY in one commit, a blocking psycopg connection that LISTENs and
reads the row with one SELECT. The ways take turns, event by event.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import socket
import time
from multiprocessing.connection import Connection
from statistics import median

import psycopg

from bench.stack import Server, Stack
from bench.table import Result, percentile

PAUSE = 0.03
SETTLE = 40
INSERT = "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('bench', 'message', '{\"n\": 1}')"
BARE = """CREATE TABLE bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, channel text, event_type text, payload jsonb,
 created_at timestamptz DEFAULT clock_timestamp())"""
BARE_INSERT = INSERT.replace("sse_pg.events", "bare")


def run(rounds: int = 3) -> Result:
    """Measure, with the disk's flush and without."""
    result = Result("delay", "Idle delay, from before the publish to the client")
    for disk in (True, False):
        with Stack({} if disk else {"fsync": "off"}) as stack:
            stack.sql(BARE)
            _measure(stack, stack.serve(), result, 200 * rounds, disk)
    result.notes = [
        "bare LISTEN: psycopg, INSERT and NOTIFY in one commit; the listener, a blocking connection, reads the row with one SELECT",
        "INSERT: the same publisher connection inserts into sse_pg.events; the client is a socket that reads the stream",
        "HTTP: POST /api/events/publish on a kept connection, the same client",
        f"They take turns, one event every {PAUSE * 1e3:.0f} ms.",
    ]
    return result


def _measure(stack: Stack, server: Server, result: Result, events: int, disk: bool) -> None:
    arrivals, theirs = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    readers = [
        context.Process(target=_listen, args=(stack.url, theirs), daemon=True),
        context.Process(target=_stream, args=(server.port, server.stream, theirs), daemon=True),
    ]
    for reader in readers:
        reader.start()
    for _ in readers:
        arrivals.recv()
    delays: dict[str, list[float]] = {"bare LISTEN": [], "INSERT": [], "HTTP": []}
    api = socket.create_connection(("127.0.0.1", server.port))
    api.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = json.dumps({"channel": "bench", "payload": {"n": 1}})
    # One packet, as curl and browsers send it; http.client makes two.
    request = (
        f"POST {server.publish} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    with psycopg.connect(stack.url, autocommit=True) as conn:
        for number in range(events + SETTLE):
            for way, found in delays.items():
                time.sleep(PAUSE)
                started = time.monotonic()
                if way == "bare LISTEN":
                    # One round trip, as the one INSERT is.
                    conn.execute(f"{BARE_INSERT}; NOTIFY bare")
                elif way == "INSERT":
                    conn.execute(INSERT)
                else:
                    api.sendall(request)
                    answer = api.recv(65536)
                    assert answer.startswith(b"HTTP/1.1 201 "), answer
                if not arrivals.poll(10):
                    raise RuntimeError(f"event {number} by {way} did not arrive within 10 s")
                arrived = arrivals.recv()
                if number >= SETTLE:
                    found.append(arrived - started)
    api.close()
    for reader in readers:
        reader.terminate()
        reader.join()
    flush = "with the disk's flush" if disk else "without it (fsync off)"
    for way, found in delays.items():
        found.sort()
        ratio = median(found) / median(delays["bare LISTEN"])
        target = "p50 within 1.5 times" if way != "bare LISTEN" else ""
        result.add(
            f"{way}, {flush}, ms",
            f"p50 {median(found) * 1e3:.2f}, p99 {percentile(found, 0.99) * 1e3:.2f}; {ratio:.2f} times bare",
            target,
            ratio <= 1.5 if target and disk else None,
        )
    result.data["flushed" if disk else "unflushed"] = delays


def _listen(url: str, found: Connection) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("LISTEN bare")
        last = 0
        found.send(0)
        while True:
            for _ in conn.notifies(stop_after=1):
                pass  # the generator keeps the connection to itself until it ends
            rows = conn.execute(
                "SELECT id, channel, event_type, payload::text, created_at FROM bare WHERE id > %s ORDER BY id",
                [last],
                prepare=True,
            ).fetchall()
            if rows:
                last = rows[-1][0]
                found.send(time.monotonic())


def _stream(port: int, path: str, found: Connection) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        while True:
            data = sock.recv(65536)
            for _ in re.findall(rb"event: message\n|event: sse-pg.hello\n", data):
                found.send(time.monotonic())
