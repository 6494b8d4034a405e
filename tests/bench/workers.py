"""``serve --workers 2`` against one process: publishing over HTTP, and fan-out. Each has a database of its own.

Alone: ``PYTHONPATH=. python -m bench.workers [ROUNDS]``, in the folder ``tests``.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
import urllib.request
from statistics import median

from bench.crowd import Crowd
from bench.stack import Server, Stack, cpu_seconds
from bench.table import Result, Rounds

WORKERS = (1, 2)
CONNECTIONS = 64
SECONDS = 4.0
STREAMS = 1000
#: Published one by one, each when the one before is with all; and in one request.
SINGLE, BURST = 40, 1000
BODY = b'{"channel":"load","eventType":"message","payload":{"message":"Hello from the server!","priority":"high"}}'


def run(rounds: int = 5) -> Result:
    """Measure."""
    result, figures = Result("workers", f"{WORKERS[-1]} workers against 1, on {os.cpu_count()} cores"), Rounds()
    with Stack() as stack:
        for count in WORKERS:
            stack.copy_database(f"workers{count}", "SELECT 1")
        servers = {
            count: stack.serve(DATABASE_URL=stack.database(f"workers{count}"), SSE_PG_WORKERS=str(count))
            for count in WORKERS
        }
        pids = {count: _pids(server.url, count) for count, server in servers.items()}
        for number in range(rounds):
            for count in WORKERS if number % 2 == 0 else reversed(WORKERS):
                server = servers[count]
                used = sum(map(cpu_seconds, pids[count]))
                published = _publish(server.port)
                used = sum(map(cpu_seconds, pids[count])) - used
                figures.add(f"publish {count}", published / SECONDS)
                figures.add(f"publish cpu {count}", used / published * 1e6)
                with Crowd() as crowd:
                    crowd.open(server, STREAMS)
                    used = sum(map(cpu_seconds, pids[count]))
                    each = [_fan_out(crowd, server, 1) for _ in range(SINGLE)]
                    used = sum(map(cpu_seconds, pids[count])) - used
                    figures.add(f"single {count}", median(each) * 1e3)
                    figures.add(f"single cpu {count}", used / SINGLE / STREAMS * 1e6)
                    figures.add(f"burst {count}", STREAMS * BURST / _fan_out(crowd, server, BURST))
    for what, name, form in (
        ("publishes/s", "publish", ",.0f"),
        ("one event, ms until the last stream has it", "single", ".1f"),
        ("deliveries/s of a burst", "burst", ",.0f"),
    ):
        of = {count: format(figures.median(f"{name} {count}"), form) for count in WORKERS}
        result.add(f"{what}: 1 worker, 2 workers", f"{of[1]}, {of[2]}")
        result.add(f"{what}: 2 workers to 1", f"{figures.ratio(f'{name} 2', f'{name} 1'):.2f}")
    for what, name in (("publish", "publish cpu"), ("delivery of a single event", "single cpu")):
        of = {count: f"{figures.median(f'{name} {count}'):.1f}" for count in WORKERS}
        result.add(f"processor of the workers for a {what}, µs: 1 worker, 2 workers", f"{of[1]}, {of[2]}")
    result.notes = [
        f"Publishing: {CONNECTIONS} connections, one event a request, real fsync. Fan-out: {STREAMS} streams on one "
        f"channel; the burst is {BURST:,} events published in one request.",
        "Clients, servers and PostgreSQL share the cores; what a second worker gains is what those leave it.",
    ]
    result.data = dict(figures.values)
    return result


def _pids(url: str, count: int) -> list[int]:
    """Wait until so many processes serve; return them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{url}/api/events/active-connections", timeout=10) as answer:
            pids = [server["pid"] for server in json.load(answer)["servers"]]
        if len(pids) == count:
            return pids
        time.sleep(0.05)
    raise RuntimeError(f"there are not {count} workers")


def _publish(port: int) -> int:
    """Publish from another process for a while; return how many were answered 201."""
    command = [sys.executable, "-m", "bench.workers", "publish", str(port)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS + 60)
    return int(done.stdout)


def _fan_out(crowd: Crowd, server: Server, count: int) -> float:
    """Publish in one request; return the seconds until every stream has all."""
    crowd.ask("begin", events=count)
    started = time.monotonic()
    _publish_batch(server.url, count)
    seen = crowd.ask("wait", seconds=60)
    if seen["missing"] or seen["ended"]:
        raise RuntimeError(f"not all streams got all events: {seen}")
    return seen["last"] - started


def _publish_batch(url: str, count: int) -> None:
    event = {"channel": "bench", "eventType": "message", "payload": {"message": "Hello from the server!"}}
    body = json.dumps({"events": [event] * count}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/events/publish", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def _load(port: int) -> int:
    """Keep one request under way on each connection: a bare loop, so that little of the machine goes to it."""
    head = (
        f"POST /api/events/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    )
    request = head.encode() + BODY
    poll = select.epoll()
    sockets = {}
    for _ in range(CONNECTIONS):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
        sock.sendall(request)
    answered = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for fd, _ in poll.poll(1.0):
            # An answer is far smaller than a segment, so it comes whole.
            answer = os.read(fd, 65536)
            if not answer.startswith(b"HTTP/1.1 201 "):
                raise RuntimeError(f"answered {answer[:200]!r}")
            answered += 1
            os.write(fd, request)
    return answered


if __name__ == "__main__":
    if sys.argv[1:2] == ["publish"]:
        print(_load(int(sys.argv[2])))
    else:
        print(run(*map(int, sys.argv[1:])).text())
