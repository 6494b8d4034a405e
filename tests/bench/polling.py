"""What it costs that nothing listens: the delay of an event, by how long nothing has come before, and the idle load.

Three servers on one database read the same events: one LISTENs, one LISTENs past a PgBouncer in transaction mode, and one polls through it.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import selectors
import socket
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import psycopg
from support.pgbouncer import PGBOUNCER, PgBouncer

from bench.stack import Missing, Server, Stack
from bench.table import Result, percentile

INSERT = "INSERT INTO sse_pg.events (channel, payload) VALUES ('bench', jsonb_build_object('t', %s::float8))"
#: Pause before each event, up to twice as long, and how many events.
PAUSES_S = {"after 30 to 60 ms": (0.03, 200), "after 1 to 2 s": (1.0, 12), "after 4 to 8 s": (4.0, 4)}
LOAD_S = 4.0
IDLE_S = 6.0


def run(rounds: int = 1) -> Result:
    """Measure."""
    if PGBOUNCER is None:
        raise Missing("pgbouncer is not on this machine (Debian: pgbouncer)")
    result = Result("polling", "Without LISTEN: delay from before the INSERT to the client, p50 and the largest, ms")
    with Stack() as stack:
        directory = stack.directory / "pgbouncer"
        directory.mkdir()
        pgbouncer = PgBouncer(directory, stack.url, "transaction")
        pgbouncer.start()
        try:
            ways = {
                "LISTEN": {},
                "LISTEN past PgBouncer": {"DATABASE_URL": pgbouncer.url, "SSE_PG_LISTEN_DATABASE_URL": stack.url},
                "polling through PgBouncer": {
                    "DATABASE_URL": pgbouncer.url,
                    "SSE_PG_LISTEN_DATABASE_URL": "none",
                },
            }
            for way in ("LISTEN", "polling through PgBouncer"):
                server = stack.serve(**ways[way])
                with socket.create_connection(("127.0.0.1", server.port)) as sock:
                    sock.sendall(f"GET {server.stream} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                    time.sleep(6.0)  # what it does at its start is over, and the pauses have grown
                    before = _cpu_ms(stack.postgres_pid)
                    time.sleep(IDLE_S)
                    used = (_cpu_ms(stack.postgres_pid) - before) / IDLE_S
                result.add(f"{way}, one idle stream: processor time of PostgreSQL", f"{used:.1f} ms/s", "")
                server.process.stop()
            _delays(stack, {way: stack.serve(**env) for way, env in ways.items()}, result, rounds)
        finally:
            pgbouncer.kill()
    result.notes = [
        "One publisher with a connection of its own to PostgreSQL; each event is read by all three servers."
    ]
    return result


def _delays(stack: Stack, servers: dict[str, Server], result: Result, rounds: int) -> None:
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for way, server in servers.items():
        pipes[way], theirs = multiprocessing.Pipe()
        context.Process(target=follow, args=(server.port, server.stream, theirs), daemon=True).start()
        pipes[way].recv()
    with psycopg.connect(stack.url, autocommit=True) as conn:

        def publish(count: int) -> None:
            for _ in range(count):
                conn.execute(INSERT, [time.monotonic()], prepare=True)

        for name, (pause, count) in PAUSES_S.items():
            for _ in range(count * rounds):
                time.sleep(random.uniform(pause, 2 * pause))
                publish(1)
            collect(pipes, count * rounds, name, result)
        until, sent = time.monotonic() + LOAD_S, 0
        while time.monotonic() < until:
            publish(10)
            sent += 10
        collect(pipes, sent, f"one publisher at full speed, {sent / LOAD_S:.0f} events/s", result)


def collect(pipes: dict[str, Connection], count: int, name: str, result: Result) -> None:
    """Ask each reader for its delays, now that all events are published."""
    for pipe in pipes.values():
        pipe.send(count)
    for way, pipe in pipes.items():
        if not pipe.poll(60):
            raise RuntimeError(f"{way} has not brought {count} events")
        found = sorted(pipe.recv())
        result.add(
            f"{way}, {name}",
            f"p50 {median(found) * 1e3:.1f}, p99 {percentile(found, 0.99) * 1e3:.1f}, max {found[-1] * 1e3:.1f}",
            "",
        )
        result.data[f"{way}, {name}"] = found


def follow(port: int, path: str, pipe: Connection) -> None:
    """Note how long each event took, and send that when there are as many as were asked for.

    Nothing is sent while events come: a full pipe would hold up the reader, and that would count as delay.
    """
    rest, delays, wanted = "", list[float](), 0
    with socket.create_connection(("127.0.0.1", port)) as sock, selectors.DefaultSelector() as ready:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        ready.register(sock, selectors.EVENT_READ)
        ready.register(pipe, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is pipe:
                    try:
                        wanted = pipe.recv()
                    except EOFError:  # the benchmark has ended
                        return
                    continue
                text = rest + sock.recv(262144).decode()
                now = time.monotonic()
                if "sse-pg.hello" in text:
                    pipe.send(None)
                delays += [now - json.loads(data)["t"] for data in re.findall(r"data: (\{\"t\".*\})\n", text)]
                rest = text[text.rfind("\n\n") + 2 :] if "\n\n" in text else text
            if wanted and len(delays) >= wanted:
                pipe.send(delays)
                delays, wanted = [], 0


def _cpu_ms(postmaster: int) -> float:
    """Return the processor time of PostgreSQL's processes so far."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if postmaster in (int(fields[1]), int(stat.parent.name)):
            total += int(fields[11]) + int(fields[12])
    return total * 10.0
