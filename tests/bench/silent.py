"""Memory of a server with ten thousand connections that send nothing, half a head, or a body byte by byte."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.request

from bench.stack import Server, Stack, memory
from bench.table import Result, Rounds

CONNECTIONS = 10_000
BYTES_SENT_LATER = 3
HEADS = {
    "silent": b"",
    "heads that drip": b"GET / HTTP/1.1\r\nX: a",
    "bodies that drip": b"POST /api/events/publish HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000000\r\n\r\n" + b" " * 100,
}


def run(rounds: int = 3, connections: int = CONNECTIONS) -> Result:
    """Measure."""
    result = Result("silent", f"Memory of {connections:,} connections without a request")
    found = Rounds()
    with Stack() as stack:
        for _ in range(rounds):
            for name, head in HEADS.items():
                server = stack.serve()
                found.add(name, _growth(server, head, connections) / connections / 1024)
                server.process.stop()
    for name in HEADS:
        result.add(f"{name}, KiB a connection", f"{found.median(name):.1f}", "at most 64", found.median(name) <= 64)
    result.data = dict(found.values)
    return result


def _growth(server: Server, head: bytes, connections: int) -> int:
    """Return by how many bytes the process grows; it still answers others."""
    before = memory(server.worker_pid())["now"]
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(connections):
            opened.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port))))
            opened[-1].sendall(head)
        for _ in range(BYTES_SENT_LATER if head else 0):
            for each in opened:
                each.sendall(b" ")
        time.sleep(1.0)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=30) as answer:
            assert answer.status == 200
        return memory(server.worker_pid())["now"] - before
