"""Idle delay: from before the publish to the client, one event at a time with nothing else going on.

Against what a program can do at best with PostgreSQL alone: INSERT and NOTIFY in one commit, a blocking psycopg connection that LISTENs and
reads the row with one SELECT; and, for publishing over HTTP, against the same behind the smallest aiohttp handler. The ways take turns, event
by event.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import socket
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import psycopg

from bench.stack import Server, Stack, free_port
from bench.table import Result, percentile

PAUSE_S = 0.03
WARM_UP_EVENTS = 40
INSERT = "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('bench', 'message', '{\"n\": 1}')"
BARE = """CREATE TABLE bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, channel text, event_type text, payload jsonb,
 created_at timestamptz DEFAULT clock_timestamp())"""
#: One round trip, as the one INSERT is.
BARE_PUBLISH = INSERT.replace("sse_pg.events", "bare") + "; NOTIFY bare"


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
        "bare HTTP: the same POST to an aiohttp handler that does the bare INSERT and NOTIFY (bare_http.py), and the bare listener",
        f"They take turns, one event every {PAUSE_S * 1e3:.0f} ms.",
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
    delays: dict[str, list[float]] = {"bare LISTEN": [], "INSERT": [], "bare HTTP": [], "HTTP": []}
    apis = {"bare HTTP": _Api(_serve_bare(stack)), "HTTP": _Api(server)}
    with psycopg.connect(stack.url, autocommit=True) as conn:
        for number in range(events + WARM_UP_EVENTS):
            for way, found in delays.items():
                time.sleep(PAUSE_S)
                started = time.monotonic()
                if way == "bare LISTEN":
                    conn.execute(BARE_PUBLISH)
                elif way == "INSERT":
                    conn.execute(INSERT)
                else:
                    apis[way].publish()
                if not arrivals.poll(10):
                    raise RuntimeError(f"event {number} by {way} did not arrive within 10 s")
                arrived = arrivals.recv()
                if number >= WARM_UP_EVENTS:
                    found.append(arrived - started)
    for reader in readers:
        reader.terminate()
        reader.join()
    flush = "with the disk's flush" if disk else "without it (fsync off)"
    for way, found in delays.items():
        found.sort()
        ratio = median(found) / median(delays["bare LISTEN"])
        ours = not way.startswith("bare")
        with_http = f", {median(found) / median(delays['bare HTTP']):.2f} times bare HTTP" if way == "HTTP" else ""
        result.add(
            f"{way}, {flush}, ms",
            f"p50 {median(found) * 1e3:.2f}, p99 {percentile(found, 0.99) * 1e3:.2f}; {ratio:.2f} times bare{with_http}",
            "p50 within 1.5 times" if ours else "",
            ratio <= 1.5 if ours and disk else None,
        )
    result.data["flushed" if disk else "unflushed"] = delays


class _Api:
    """A kept connection that publishes."""

    def __init__(self, server: Server) -> None:
        self._sock = socket.create_connection(("127.0.0.1", server.port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = json.dumps({"channel": "bench", "payload": {"n": 1}})
        # One packet, as curl and browsers send it; http.client makes two.
        self._request = (
            f"POST {server.publish} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def publish(self) -> None:
        """Publish, and read the answer."""
        self._sock.sendall(self._request)
        answer = self._sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 201 "), answer


def _serve_bare(stack: Stack) -> Server:
    port = free_port()
    program = str(Path(__file__).with_name("bare_http.py"))
    process = stack.start([sys.executable, program, str(port), stack.url, BARE_PUBLISH])
    process.wait_for(f"http://127.0.0.1:{port}/healthz")
    return Server("bare", port, process, "", "/publish")


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
