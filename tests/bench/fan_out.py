"""Fan-out: thousands of streams on one channel, against nchan (one worker) and the Express server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from array import array

from bench.crowd import Crowd
from bench.http_publish import PLAIN, load
from bench.stack import Missing, Server, Stack, cpu_seconds
from bench.table import Result, Rounds, percentile

STREAMS = 5000
BURST = 100
#: Streams while some clients do not read: few enough that the two cores are not busy, so that a delay would show.
FEWER_STREAMS = 1000
HEAVY_CLIENTS = 20
#: Events of a steady rate that come before those that count. After a pause Linux acknowledges the next 16 packets of a connection at once
#: (TCP_MAX_QUICKACKS), which makes sending cost half as much again; whether there was one depends on how long the part before took.
WARM_UP_EVENTS = 20
EVENT = {
    "channel": "bench",
    "eventType": "message",
    "payload": {"message": "Hello from the server!", "priority": "high"},
}
BODY = json.dumps(EVENT).encode()
HEAVY = json.dumps({**EVENT, "channel": "heavy", "payload": "x" * 131072}).encode()
NAMES = ("sse-pg", "nchan", "node")


def run(rounds: int = 3, seconds: float = 5.0) -> Result:
    """Measure."""
    result = Result("fanout", f"Fan-out to {STREAMS:,} streams on one channel")
    found = Rounds()
    delays: dict[str, list[float]] = {}
    with Stack() as stack:
        stack.copy_database("rival", PLAIN)
        for round_number in range(rounds):
            for name in NAMES if round_number % 2 == 0 else reversed(NAMES):
                try:
                    server = _start(stack, name)
                except Missing as missing:
                    result.notes.append(str(missing))
                    continue
                with Crowd() as crowd:
                    crowd.open(server, STREAMS)
                    _one_at_a_time(server, crowd, found)
                    _bursts(server, crowd, found)
                    _paced(stack, server, crowd, found, delays, seconds * 4)
                    _saturated(stack, server, crowd, found, seconds)
                server.process.stop()
        _unread(stack, found, rounds, seconds * 2)
    _tell(result, found)
    result.data = {**found.values, "delays": {name: values[::50] for name, values in delays.items()}}
    return result


def _start(stack: Stack, name: str) -> Server:
    if name == "sse-pg":
        return stack.serve(SSE_PG_HEARTBEAT_SECONDS="3600", SSE_PG_POSITION_SECONDS="86400")
    return stack.serve_nchan() if name == "nchan" else stack.serve_node("rival")


class Poster:
    """A kept connection that publishes."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._conn.connect()
        self._conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, body: bytes = BODY) -> None:
        """Publish, and read the answer."""
        self._conn.request("POST", self._server.publish, body, {"Content-Type": "application/json"})
        answer = self._conn.getresponse()
        answer.read()
        if answer.status not in (200, 201, 202):
            raise RuntimeError(f"{self._server.name}: {answer.status}")

    def burst(self) -> None:
        """Publish BURST events: in one request where the server can, else pipelined on one connection."""
        if self._server.name == "sse-pg":
            self.post(json.dumps([EVENT] * BURST).encode())
            return
        head = (
            f"POST {self._server.publish} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(BODY)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self._server.port)) as sock:
            sock.settimeout(60)
            sock.sendall((head.encode() + BODY) * BURST)
            answers = b""
            while answers.count(b"HTTP/1.1 20") < BURST:
                data = sock.recv(65536)
                if not data:
                    raise RuntimeError(f"{self._server.name} closed a pipelined connection")
                answers += data


def _one_at_a_time(server: Server, crowd: Crowd, found: Rounds) -> None:
    """Publish the next event when all have the one before: nothing can be sent together."""
    poster = Poster(server)
    events = 20
    used, started = cpu_seconds(server.worker_pid()), time.monotonic()
    for _ in range(events):
        crowd.ask("begin", events=1)
        crowd.send("wait", seconds=30)
        poster.post()
        answer = crowd.answer()
        if answer["missing"]:
            raise RuntimeError(f"{server.name}: {answer}")
    took = time.monotonic() - started
    found.add(f"{server.name} one", events * STREAMS / took)
    found.add(f"{server.name} one cpu", (cpu_seconds(server.worker_pid()) - used) / events / STREAMS * 1e6)


def _bursts(server: Server, crowd: Crowd, found: Rounds) -> None:
    """Publish a burst and wait until all have all of it."""
    poster = Poster(server)
    bursts = 5 if server.name == "sse-pg" else 2
    used, took = cpu_seconds(server.worker_pid()), 0.0
    for _ in range(bursts):
        crowd.ask("begin", events=BURST)
        crowd.send("wait", seconds=90)
        started = time.monotonic()
        poster.burst()
        answer = crowd.answer()
        if answer["missing"]:
            raise RuntimeError(f"{server.name}: {answer}")
        took += answer["last"] - started
    found.add(f"{server.name} burst", bursts * BURST * STREAMS / took)
    found.add(f"{server.name} burst cpu", (cpu_seconds(server.worker_pid()) - used) / bursts / BURST / STREAMS * 1e6)


def _paced(
    stack: Stack, server: Server, crowd: Crowd, found: Rounds, delays: dict[str, list[float]], seconds: float
) -> None:
    """Publish 10 events/s; take the delay of each event on each stream from before its request."""
    values = delays(stack, server, crowd, seconds)
    delays.setdefault(server.name, []).extend(values)
    for share in (50, 99):
        found.add(f"{server.name} p{share}", percentile(values, share / 100))


def delays(stack: Stack, server: Server, crowd: Crowd, seconds: float) -> list[float]:
    """Publish 10 events/s; return the delay of each event on each stream, sorted."""
    poster = Poster(server)
    count = WARM_UP_EVENTS + int(seconds * 10)
    crowd.ask("begin", events=count, stamping=True)
    sent = array("d")
    begin = time.monotonic() + 0.1
    for number in range(count):
        time.sleep(max(0.0, begin + number / 10 - time.monotonic()))
        sent.append(time.monotonic())
        poster.post()
    answer = crowd.ask("wait", seconds=30)
    if answer["missing"]:
        raise RuntimeError(f"{server.name}: {answer}")
    times, numbers = crowd.stamps(stack.directory / "stamps")
    return sorted(when - sent[number] for when, number in zip(times, numbers, strict=True) if number >= WARM_UP_EVENTS)


def _saturated(stack: Stack, server: Server, crowd: Crowd, found: Rounds, seconds: float) -> None:
    """Publish single events over 8 connections as fast as they are taken, until all that was taken has arrived."""
    crowd.ask("begin")
    started = time.monotonic()
    used = cpu_seconds(server.worker_pid())
    seen = load(stack, server, 8, seconds)
    answer = crowd.ask("quiet", silence=2.0, seconds=60)
    found.add(f"{server.name} saturated", answer["total"] / (answer["last"] - started))
    found.add(f"{server.name} saturated share", answer["total"] / seen["requests"] / STREAMS)
    found.add(f"{server.name} saturated published", seen["rate"])
    found.add(f"{server.name} saturated cpu", (cpu_seconds(server.worker_pid()) - used) / max(1, answer["total"]) * 1e6)


def _unread(stack: Stack, found: Rounds, rounds: int, seconds: float) -> None:
    """Take the delays with some clients on a second, heavy channel that read, and with as many that read nothing."""
    for _ in range(rounds):
        for name in ("reading", "not reading"):
            server = _start(stack, "sse-pg")
            path = f"{server.stream},heavy"
            with Crowd() as crowd, Crowd() as readers, contextlib.ExitStack() as unread:
                crowd.open(server, FEWER_STREAMS)
                if name == "reading":
                    readers.ask("open", port=server.port, path=path, count=HEAVY_CLIENTS)
                else:
                    for _ in range(HEAVY_CLIENTS):
                        unread.enter_context(_deaf(server, path))
                time.sleep(0.5)
                open_files = len(os.listdir(f"/proc/{server.process.pid}/fd"))
                over = threading.Event()
                heavy = threading.Thread(target=_publish_heavy, args=(server, over))
                heavy.start()
                values = delays(stack, server, crowd, seconds)
                over.set()
                heavy.join()
                found.add(f"{name} cut", open_files - len(os.listdir(f"/proc/{server.process.pid}/fd")))
            for share in (50, 99):
                found.add(f"{name} p{share}", percentile(values, share / 100))
            server.process.stop()


def _deaf(server: Server, path: str) -> socket.socket:
    """Open a stream and leave it unread."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock


def _publish_heavy(server: Server, over: threading.Event) -> None:
    poster = Poster(server)
    while not over.wait(0.125):
        poster.post(HEAVY)


def _tell(result: Result, found: Rounds) -> None:
    titles = {
        "one": "single events, the next when all have the last, deliveries/s",
        "saturated": "single events at saturation (8 publishers), deliveries/s",
        "burst": f"bursts of {BURST}, deliveries/s",
    }
    targets = {("saturated", "nchan"): 1.5, ("saturated", "node"): 3.0, ("burst", "nchan"): 10.0}
    for kind, title in titles.items():
        rates = ", ".join(f"{name} {found.median(f'{name} {kind}'):,.0f}" for name in NAMES if _has(found, name))
        result.add(title, rates)
        for rival in NAMES[1:]:
            if _has(found, rival):
                ratio = found.ratio(f"sse-pg {kind}", f"{rival} {kind}")
                target = targets.get((kind, rival))
                result.add(
                    f"... times {rival}",
                    f"{ratio:.2f}",
                    f"{target:g}" if target else "",
                    ratio >= target if target else None,
                )
        costs = ", ".join(f"{name} {found.median(f'{name} {kind} cpu'):.2f}" for name in NAMES if _has(found, name))
        result.add("... processor time of the server a delivery, µs", costs)
    shares = ", ".join(
        f"{name} {found.median(f'{name} saturated published'):,.0f} events/s, {found.median(f'{name} saturated share'):.0%} of them delivered"
        for name in NAMES
        if _has(found, name)
    )
    result.add("at saturation, published", shares)
    for name in NAMES:
        if _has(found, name):
            p99, theirs = found.median(f"{name} p99"), found.values.get("nchan p99")
            main = name == "sse-pg" and theirs is not None
            result.add(
                f"10 events/s, delay of {name}, ms",
                f"p50 {found.median(f'{name} p50') * 1e3:.1f}, p99 {p99 * 1e3:.1f}",
                "p99 below nchan's" if main else "",
                p99 < found.median("nchan p99") if main else None,
            )
    reading, unread = found.median("reading p99"), found.median("not reading p99")
    cut = found.median("not reading cut")
    result.add(
        f"10 events/s to {FEWER_STREAMS:,} streams, and 1 MiB/s to {HEAVY_CLIENTS} others, p99, ms",
        f"the others read {reading * 1e3:.1f}; they read nothing {unread * 1e3:.1f} ({cut:.0f} of them were cut off)",
        "no difference: at most 1.1 times",
        unread <= reading * 1.1,
    )
    result.notes.append("The client, one process that reads and counts, runs on the same two cores.")
    result.notes.append("sse-pg and node insert a row and flush it for each event; nchan keeps events in memory only.")


def _has(found: Rounds, name: str) -> bool:
    return f"{name} one" in found.values
