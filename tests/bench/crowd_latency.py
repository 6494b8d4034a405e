"""How long others wait while a server does something for a whole crowd, and what a crowd gets from few publishers."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

from bench.crowd import Crowd
from bench.fan_out import EVENT, Poster, delays
from bench.stack import Missing, Server, Stack, cpu_seconds
from bench.table import Result, Rounds, percentile

STREAMS = 10_000
#: Streams that open at once.
OPENED_AT_ONCE = 5000
#: Streams of the serial publisher.
SERIAL_STREAMS = 3000
#: Streams of the steady rate of 10 events/s.
STEADY_STREAMS = 5000
#: Time between two events for the whole crowd.
EVENT_INTERVAL_S = 0.4
#: Time between two requests of those who wait.
PING_INTERVAL_S = 0.02
OTHER = json.dumps({**EVENT, "channel": "other"}).encode()
#: Steps that touch every stream, in the order in which they are measured.
STEPS = ("opening", "metrics", "revocation", "reconnect of LISTEN", "ending")


class Waiting(threading.Thread):
    """Sends a request every 20 ms and notes how long each took, from when it was due: a stall delays those after it."""

    def __init__(self, server: Server, method: str, path: str, body: bytes | None = None) -> None:
        super().__init__(daemon=True)
        self.seconds: list[float] = []
        self._conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._conn.connect()
        self._conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = (method, path, body, {"Content-Type": "application/json"} if body else {})
        self._over = threading.Event()

    def run(self) -> None:
        """Send until stopped."""
        due = time.monotonic()
        while not self._over.is_set():
            self._conn.request(*self._request)
            answer = self._conn.getresponse()
            answer.read()
            if answer.status not in (200, 201):
                raise RuntimeError(f"{self._request}: {answer.status}")
            now = time.monotonic()
            self.seconds.append(now - due)
            due += PING_INTERVAL_S
            time.sleep(max(0.0, due - now))

    def stop(self) -> None:
        """Send no more, and end the connection."""
        self._over.set()
        self.join()
        self._conn.close()


@contextlib.contextmanager
def waits(server: Server, found: Rounds, name: str, *, publishing: bool = False) -> Iterator[None]:
    """Note how long others wait meanwhile."""
    waiting = {"healthz": Waiting(server, "GET", "/healthz")}
    if publishing:
        waiting["publish"] = Waiting(server, "POST", server.publish, OTHER)
    for each in waiting.values():
        each.start()
    try:
        yield
    finally:
        for each in waiting.values():
            each.stop()
    for kind, each in waiting.items():
        values = sorted(each.seconds)
        for share in (50, 99):
            found.add(f"{name} {kind} p{share}", percentile(values, share / 100))
        found.add(f"{name} {kind} max", values[-1])


def run(rounds: int = 3, seconds: float = 10.0) -> Result:
    """Measure."""
    result = Result("crowd", f"Others, while {STREAMS:,} streams are served")
    found = Rounds()
    with Stack() as stack:
        for _ in range(rounds):
            one_server(stack, stack.serve, found, seconds)
        for round_number in range(rounds):
            for start in (stack.serve, stack.serve_nchan) if round_number % 2 else (stack.serve_nchan, stack.serve):
                with contextlib.suppress(Missing):
                    against_nchan(stack, start, found, seconds)
    _tell(result, found)
    result.data = dict(found.values)
    return result


def one_server(stack: Stack, serve: Callable[..., Server], found: Rounds, seconds: float) -> None:
    """Measure the waits at one server."""
    server = serve(SSE_PG_HEARTBEAT_SECONDS="3600", SSE_PG_POSITION_SECONDS="86400")
    with Crowd() as crowd:
        with waits(server, found, "opening"):
            crowd.open(server, OPENED_AT_ONCE, at_once=OPENED_AT_ONCE)
        crowd.open(server, STREAMS)
        _events(server, crowd, found, "one channel", seconds)
        with waits(server, found, "metrics"):
            for _ in range(10):
                with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
                    answer.read()
        with waits(server, found, "revocation"):
            stack.sql("SELECT sse_pg.revoke()", server.database)
            time.sleep(2.0)
        with waits(server, found, "reconnect of LISTEN"):
            stack.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'sse-pg tail' AND datname = current_database()",
                server.database,
            )
            time.sleep(3.0)
        crowd.ask("begin")
        with waits(server, found, "ending"):
            crowd.ask("cut")
            time.sleep(1.0)
    with Crowd() as crowd:
        crowd.open(server, STREAMS, path=server.stream + ",own.{n}")
        _events(server, crowd, found, "own channels", seconds)
    server.process.stop()


def _events(server: Server, crowd: Crowd, found: Rounds, name: str, seconds: float) -> None:
    """Publish an event for the whole crowd every 0.4 s."""
    poster = Poster(server)
    count = int(seconds / EVENT_INTERVAL_S)
    crowd.ask("begin", events=count)
    used = cpu_seconds(server.worker_pid()), cpu_seconds(crowd.pid)
    with waits(server, found, name, publishing=True):
        begin = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, begin + number * EVENT_INTERVAL_S - time.monotonic()))
            poster.post()
        answer = crowd.ask("wait", seconds=30)
    if answer["missing"]:
        raise RuntimeError(f"{server.name}: {answer}")
    for kind, pid, before in zip(("server", "clients"), (server.worker_pid(), crowd.pid), used, strict=True):
        found.add(f"{name} {kind} cpu", (cpu_seconds(pid) - before) / count / STREAMS * 1e6)


def against_nchan(stack: Stack, start: Callable[..., Server], found: Rounds, seconds: float) -> None:
    """Measure what a crowd gets from one publisher that sends one event after the other, and at 10 events/s."""
    server = start()
    with Crowd() as crowd:
        crowd.open(server, SERIAL_STREAMS)
        _serial(server, crowd, found, seconds / 2)
    with Crowd() as crowd:
        crowd.open(server, STEADY_STREAMS)
        values = delays(stack, server, crowd, seconds)
        for share in (50, 99):
            found.add(f"{server.name} p{share}", percentile(values, share / 100))
    server.process.stop()


def _serial(server: Server, crowd: Crowd, found: Rounds, seconds: float) -> None:
    poster = Poster(server)
    crowd.ask("begin")
    used = cpu_seconds(server.worker_pid()), cpu_seconds(crowd.pid)
    crowd.send("quiet", silence=1.0, seconds=seconds + 60)
    count, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        poster.post()
        count += 1
    answer = crowd.answer()
    took = answer["last"] - started
    name = f"{server.name} serial"
    found.add(name, answer["total"] / took)
    found.add(f"{name} events", count / took)
    found.add(f"{name} share", answer["total"] / count / SERIAL_STREAMS)
    for kind, pid, before in zip(("server", "clients"), (server.worker_pid(), crowd.pid), used, strict=True):
        found.add(f"{name} {kind} cpu", (cpu_seconds(pid) - before) / max(1, answer["total"]) * 1e6)


def _tell(result: Result, found: Rounds) -> None:
    for name, title in (("one channel", "on one channel"), ("own channels", "each with a channel of its own besides")):
        for kind, what in (("healthz", "GET /healthz"), ("publish", "publishing to another channel")):
            p99, longest = found.median(f"{name} {kind} p99"), max(found.values[f"{name} {kind} max"])
            result.add(
                f"an event every {EVENT_INTERVAL_S} s to {STREAMS:,} streams {title}: {what}, ms",
                f"p50 {found.median(f'{name} {kind} p50') * 1e3:.1f}, p99 {p99 * 1e3:.1f}, max {longest * 1e3:.0f}",
                "p99 below 15, max below 60",
                p99 < 0.015 and longest < 0.06,
            )
        result.add(
            "... processor time a delivery, µs",
            f"server {found.median(f'{name} server cpu'):.1f}, clients {found.median(f'{name} clients cpu'):.1f}",
        )
    for name in STEPS:
        count = OPENED_AT_ONCE if name == "opening" else STREAMS
        longest = max(found.values[f"{name} healthz max"])
        result.add(f"longest wait for /healthz, {name}, {count:,} streams, ms", f"{longest * 1e3:.0f}")
    if "nchan serial" not in found.values:
        result.notes.append("nchan is not on this machine.")
        return
    ratio = found.ratio("sse-pg serial", "nchan serial")
    result.add(
        f"one publisher, one event after the other, to {SERIAL_STREAMS:,} streams, deliveries/s",
        f"sse-pg {found.median('sse-pg serial'):,.0f}, nchan {found.median('nchan serial'):,.0f}: {ratio:.2f} times",
        "1.5 times",
        ratio >= 1.5,
    )
    for name in ("sse-pg", "nchan"):
        result.add(
            f"... {name}",
            f"{found.median(f'{name} serial events'):,.0f} events/s, {found.median(f'{name} serial share'):.0%} delivered; "
            f"processor time a delivery, µs: server {found.median(f'{name} serial server cpu'):.2f}, "
            f"clients {found.median(f'{name} serial clients cpu'):.2f}",
        )
    ours, theirs = found.median("sse-pg p99"), found.median("nchan p99")
    lower = sum(a < b for a, b in zip(found.values["sse-pg p99"], found.values["nchan p99"], strict=True))
    result.add(
        f"10 events/s to {STEADY_STREAMS:,} streams, delay, ms",
        f"sse-pg p50 {found.median('sse-pg p50') * 1e3:.1f}, p99 {ours * 1e3:.1f}; "
        f"nchan p50 {found.median('nchan p50') * 1e3:.1f}, p99 {theirs * 1e3:.1f}; "
        f"lower in {lower} of {len(found.values['nchan p99'])} rounds",
        "p99 below nchan's, in each round",
        lower == len(found.values["nchan p99"]),
    )
