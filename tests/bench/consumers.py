"""A consumer that waits: how soon it has an event, and what it costs those who publish.

The consumer is the loop of sse_pg.client, with an empty body, so each batch is a commit. The delay is from before the INSERT, commit included,
to the body of the loop. A server runs too. Under load, another connection publishes to a channel that the consumer does not read, until the
server polls and publishers do not ring.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import psycopg

from bench.sql_publish import _pgbench
from bench.stack import Stack, cpu_seconds
from bench.table import Result, Rounds, percentile
from sse_pg.client import consume

PAUSE_S = 0.03
WARM_UP_EVENTS = 20
LOAD_EVENTS_S = 300
CLIENTS = 8
INSERT = "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('{}', 'message', '{{\"n\": 1}}')"
AWAKE = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = sse_pg.lock_class('tail') AND objid = 2"
)


def run(rounds: int = 3) -> Result:
    """Measure."""
    result = Result("consumers", "A consumer that waits")
    with Stack() as stack:
        stack.serve()
        with _consumer(stack.url, "bench") as (arrivals, _), psycopg.connect(stack.url, autocommit=True) as conn:
            _delay(conn, arrivals, 60 * rounds, "nothing else published", result)
            with _load(stack.url):
                deadline = time.monotonic() + 10
                while conn.execute(AWAKE).fetchone() == (0,):
                    if time.monotonic() > deadline:
                        raise RuntimeError("the server does not wake up under load")
                    time.sleep(0.01)
                _delay(conn, arrivals, 60 * rounds, f"beside {LOAD_EVENTS_S} events/s of another channel", result)
        _idle(stack, result)
        _price(stack, rounds, result)
    return result


def _delay(conn: psycopg.Connection, arrivals: Connection, events: int, what: str, result: Result) -> None:
    found = []
    for number in range(events + WARM_UP_EVENTS):
        time.sleep(PAUSE_S)
        started = time.monotonic()
        conn.execute(INSERT.format("bench"))
        if not arrivals.poll(10):
            raise RuntimeError(f"event {number} did not arrive within 10 s")
        if number >= WARM_UP_EVENTS:
            found.append(arrivals.recv() - started)
        else:
            arrivals.recv()
    found.sort()
    p50, p99 = (percentile(found, share) * 1000 for share in (0.5, 0.99))
    result.add(f"delay, {what}", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms", "p50 10 ms", p50 < 10)


def _idle(stack: Stack, result: Result) -> None:
    """Processor time of a consumer that has nothing to do, and of its backend."""
    with _consumer(stack.url, "empty") as (_, pid):
        backends = stack.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'sse-pg consumer'")
        time.sleep(1)
        pids = [pid, *(backend for (backend,) in backends)]
        before = sum(map(cpu_seconds, pids))
        time.sleep(5)
        result.add(
            "processor time of one that has nothing to do",
            f"{(sum(map(cpu_seconds, pids)) - before) / 5 * 1000:.1f} ms a second",
        )


def _price(stack: Stack, rounds: int, result: Result) -> None:
    """What publishers to another channel pay while a consumer waits."""
    script = stack.directory / "publish.sql"
    script.write_text(INSERT.format("other") + ";\n")
    rates = Rounds()
    for _ in range(rounds):
        rates.add("without", _pgbench(stack, None, script, CLIENTS, 4))
        with _consumer(stack.url, "bench") as (_, pid):
            backends = stack.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'sse-pg consumer'")
            pids = [pid, *(backend for (backend,) in backends)]
            before = sum(map(cpu_seconds, pids))
            rates.add("with", _pgbench(stack, None, script, CLIENTS, 4))
            rates.add("processor", (sum(map(cpu_seconds, pids)) - before) / 4)
    result.add(
        f"{CLIENTS} publishers to another channel, of what they do without a consumer",
        f"{rates.ratio('with', 'without'):.2f}; it uses {rates.median('processor') * 1000:.0f} ms of processor a second",
    )


@contextlib.contextmanager
def _consumer(url: str, channel: str) -> Iterator[tuple[Connection, int]]:
    arrivals, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_consume, args=(url, channel, theirs), daemon=True)
    process.start()
    try:
        assert process.pid is not None
        with psycopg.connect(url, autocommit=True) as conn:
            asleep = (
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sse-pg consumer' AND state = 'idle'"
            )
            while conn.execute(asleep).fetchone() == (0,):
                time.sleep(0.01)
        yield arrivals, process.pid
    finally:
        process.kill()
        process.join()


def _consume(url: str, channel: str, found: Connection) -> None:
    async def work() -> None:
        async for batch, _ in consume(url, f"bench-{channel}", [channel]):
            now = time.monotonic()
            for _ in batch:
                found.send(now)

    asyncio.run(work())


@contextlib.contextmanager
def _load(url: str) -> Iterator[None]:
    ending = threading.Event()

    def publish() -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            while not ending.wait(1 / LOAD_EVENTS_S):
                conn.execute(INSERT.format("other"))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
