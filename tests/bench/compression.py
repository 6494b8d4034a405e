"""Compressed streams beside plain ones of the same server: bytes, the server's processor time, memory while idle."""

from __future__ import annotations

import contextlib
import http.client
import json
import selectors
import socket
import time
import zlib

from bench.stack import Server, Stack, cpu_seconds, memory
from bench.table import Result, Rounds

STREAMS = 400
IDLE_STREAMS = 2000
BURSTS = {1: 100, 10: 40, 100: 10}
"""Events of a burst, and how many such bursts are measured."""
QUIET = {
    "SSE_PG_COMPRESSION": "on",
    "SSE_PG_HEARTBEAT_SECONDS": "3600",
    "SSE_PG_POSITION_SECONDS": "86400",
}
CODINGS = ("identity", "gzip")


def run(rounds: int = 3) -> Result:
    """Measure."""
    result = Result("compression", f"Compressed streams, {STREAMS} on one channel")
    found = Rounds()
    with Stack() as stack:
        for round_number in range(rounds):
            server = stack.serve(**QUIET)
            for coding in CODINGS if round_number % 2 == 0 else reversed(CODINGS):
                _measure(server, coding, found)
            server.process.stop()
            for coding in CODINGS:
                server = stack.serve(**QUIET)
                found.add(f"{coding} idle", _idle(server, coding))
                server.process.stop()
    for events in BURSTS:
        plain, packed = (f"{coding} {events}" for coding in CODINGS)
        share = found.ratio(f"{packed} bytes", f"{plain} bytes")
        result.add(
            f"bursts of {events}: bytes an event",
            f"{found.median(f'{packed} bytes'):.0f} of {found.median(f'{plain} bytes'):.0f}: {share:.2f}",
            "at most 0.4" if events == 10 else "",
            share <= 0.4 if events == 10 else None,
        )
        result.add(
            f"bursts of {events}: µs of the server a delivery",
            f"{found.median(f'{packed} cpu'):.2f}; uncompressed {found.median(f'{plain} cpu'):.2f}",
        )
    idle = [found.median(f"{coding} idle") for coding in reversed(CODINGS)]
    result.add("an idle stream, KiB", f"{idle[0]:.1f}; uncompressed {idle[1]:.1f}")
    result.data = dict(found.values)
    return result


class _Reader:
    """A stream that is decoded as it arrives."""

    def __init__(self, server: Server, coding: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.sendall(
            f"GET {server.stream} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: {coding}\r\n\r\n".encode()
        )
        self.bytes = 0
        self._raw = b""
        self._in_body = False
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16) if coding == "gzip" else None

    def read(self) -> bytes:
        """Return what has arrived, decoded."""
        data = self.socket.recv(1 << 20)
        if not data:
            raise RuntimeError("a stream has ended")
        self.bytes += len(data)
        self._raw += data
        if not self._in_body:
            _, found, rest = self._raw.partition(b"\r\n\r\n")
            if not found:
                return b""
            self._in_body, self._raw = True, rest
        text = b""
        while True:
            size, found, rest = self._raw.partition(b"\r\n")
            if not found or len(rest) < int(size, 16) + 2:
                return text
            chunk, self._raw = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
            text += chunk if self._inflate is None else self._inflate.decompress(chunk)


def _measure(server: Server, coding: str, found: Rounds) -> None:
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        readers = [_Reader(server, coding) for _ in range(STREAMS)]
        for reader in readers:
            stack.callback(reader.socket.close)
            selector.register(reader.socket, selectors.EVENT_READ, reader)
        _wait(selector, readers, b"\n\n", 1)
        publisher = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        stack.callback(publisher.close)
        serial = 0
        for events, bursts in BURSTS.items():
            deliveries = events * bursts * STREAMS
            cpu, sent = cpu_seconds(server.worker_pid()), sum(reader.bytes for reader in readers)
            for _ in range(bursts):
                items = []
                for _ in range(events):
                    serial += 1
                    payload = {"order": 7 * serial, "state": ("paid", "sent", "open")[serial % 3], "cents": serial * 31}
                    items.append({"channel": "bench", "eventType": "order.changed", "payload": payload})
                publisher.request("POST", server.publish, json.dumps(items), {"Content-Type": "application/json"})
                assert publisher.getresponse().read()
                _wait(selector, readers, b"event: order.changed", events)
            found.add(f"{coding} {events} cpu", (cpu_seconds(server.worker_pid()) - cpu) / deliveries * 1e6)
            found.add(f"{coding} {events} bytes", (sum(reader.bytes for reader in readers) - sent) / deliveries)


def _wait(selector: selectors.BaseSelector, readers: list[_Reader], mark: bytes, count: int) -> None:
    """Read until each stream has a mark so many times."""
    lacks = dict.fromkeys(readers, count)
    until = time.monotonic() + 60
    while lacks:
        if time.monotonic() > until:
            raise RuntimeError(f"{len(lacks)} streams lack events")
        for key, _ in selector.select(1.0):
            seen = key.data.read().count(mark)
            if seen and key.data in lacks:
                lacks[key.data] -= seen
                if lacks[key.data] <= 0:
                    del lacks[key.data]


def _idle(server: Server, coding: str) -> float:
    """Return by how many KiB the process grows for an idle stream."""
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        grown = []
        for count in (STREAMS, IDLE_STREAMS):
            for _ in range(count):  # one by one: what many openings at once take is not what an idle stream takes
                reader = _Reader(server, coding)
                stack.callback(reader.socket.close)
                selector.register(reader.socket, selectors.EVENT_READ, reader)
                _wait(selector, [reader], b"\n\n", 1)
            grown.append(memory(server.worker_pid())["now"])
        return (grown[1] - grown[0]) / IDLE_STREAMS / 1024
