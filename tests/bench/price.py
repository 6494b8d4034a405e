"""What publishing and reading cost, in processor time, compared with an older checkout in turns.

``--against DIRECTORY`` names the checkout, whose schema gets a database of its own on the same PostgreSQL. Both servers
run with the packages of this one.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psycopg

import sse_pg
from bench.crowd import Recorder
from bench.stack import Missing, Server, Stack
from bench.table import Result, Rounds

HERE = Path(sse_pg.__file__).parents[1]
#: Statements of one connection before it is the other's turn, and how often a round takes turns.
STATEMENTS = 4000
TURNS = 5
BURST = 20000
#: Time of one measurement over HTTP.
SECONDS = 2.0
TRACE = '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}'
PAYLOAD = '{"message": "Hello from the server!", "priority": "high"}'
INSERT = f"INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('bench', 'message', '{PAYLOAD}')"
PUBLISH = f"PERFORM sse_pg.publish('bench', 'message', '{PAYLOAD}')"
WITH_HEADERS = f"PERFORM sse_pg.publish('bench', 'message', '{PAYLOAD}', NULL, '{TRACE}')"
#: A plain publish may cost so much more than before.
TARGET = 1.03


def run(rounds: int = 3, against: Path | None = None) -> Result:
    """Measure."""
    if against is None:
        raise Missing("it compares with an older checkout: --against DIRECTORY")
    result = Result("price", "Processor time of an event, compared with an older checkout; fsync off")
    with Stack({"fsync": "off", "autovacuum": "off"}) as stack:
        checkouts = {"old": against.resolve(), "new": HERE}
        for name, checkout in checkouts.items():
            stack.sql(f"CREATE DATABASE {name}")
            subprocess.run(
                [sys.executable, "-m", "sse_pg", "migrate"], cwd=checkout, env=_env(stack, name, checkout), check=True
            )
        found = Rounds()
        _sql(stack, found, rounds)
        servers = {name: stack.serve(**_env(stack, name, checkout)) for name, checkout in checkouts.items()}
        for _ in range(rounds):
            _in_turns(lambda name: _http(stack, servers[name], name, found))
            _in_turns(lambda name: _delivery(stack, servers[name], name, found))
    for what, target in (
        ("INSERT", TARGET),
        ("publish()", TARGET),
        ("publish() with a traceparent", None),
        ("HTTP, 1 connection", TARGET),
        ("HTTP, 32 connections", TARGET),
        ("delivery of a burst to one stream", TARGET),
    ):
        old = "publish()" if what.startswith("publish()") else what
        ratio = found.ratio(f"{what} new", f"{old} old")
        result.add(
            what,
            f"{found.median(f'{old} old'):.2f} µs before, {found.median(f'{what} new'):.2f} now: {ratio:.3f} times",
            f"{target}" if target else "",
            ratio <= target if target else None,
        )
    result.notes.append(
        "SQL: the backend, for the statement alone, without its commit; HTTP and delivery: the server and its backends."
    )
    result.data = dict(found.values)
    return result


def _env(stack: Stack, name: str, checkout: Path) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": stack.database(name), "PYTHONPATH": str(checkout)}


def _in_turns(measure: Callable[[str], None]) -> None:
    for name in ("old", "new", "new", "old"):
        measure(name)


def _sql(stack: Stack, found: Rounds, rounds: int) -> None:
    """Statements in a loop inside the backend. Commit, network and bell cost the same in both, and would hide a part."""
    statements = {
        "old": {"INSERT": INSERT, "publish()": PUBLISH},
        "new": {"INSERT": INSERT, "publish()": PUBLISH, "publish() with a traceparent": WITH_HEADERS},
    }
    with (
        psycopg.connect(stack.database("old"), autocommit=True) as old,
        psycopg.connect(stack.database("new"), autocommit=True) as new,
    ):
        conns = {"old": old, "new": new}

        def measure(name: str) -> None:
            conn = conns[name]
            for what, statement in statements[name].items():
                before = _nanoseconds(conn.info.backend_pid)
                conn.execute(f"DO $$ BEGIN FOR i IN 1 .. {STATEMENTS} LOOP {statement}; END LOOP; END $$".encode())
                found.add(f"{what} {name}", (_nanoseconds(conn.info.backend_pid) - before) / STATEMENTS / 1000)

        for conn in conns.values():
            conn.execute("SET sse_pg.bell = 'off'")
        _in_turns(measure)
        found.values.clear()  # these were to warm up
        for _ in range(rounds * TURNS):
            _in_turns(measure)


def _http(stack: Stack, server: Server, name: str, found: Rounds) -> None:
    for connections, what in ((1, "HTTP, 1 connection"), (32, "HTTP, 32 connections")):
        pids = _pids(stack, server, name)
        before = sum(map(_nanoseconds, pids))
        requests = asyncio.run(_post(server, connections))
        found.add(f"{what} {name}", (sum(map(_nanoseconds, pids)) - before) / requests / 1000)


async def _post(server: Server, connections: int) -> int:
    """Publish for a while over so many connections; return how often."""
    body = b'{"channel":"bench","eventType":"message","payload":' + PAYLOAD.encode() + b"}"
    count, end = 0, time.monotonic() + SECONDS

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal count
        while time.monotonic() < end:
            async with session.post(
                server.url + server.publish, data=body, headers={"Content-Type": "application/json"}
            ) as response:
                assert response.status == 201, await response.text()
                await response.read()
            count += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:
        await asyncio.gather(*(one(session) for _ in range(connections)))
    return count


def _delivery(stack: Stack, server: Server, name: str, found: Rounds) -> None:
    recorder, pids = Recorder(server), _pids(stack, server, name)
    before = sum(map(_nanoseconds, pids))
    with psycopg.connect(stack.database(name), autocommit=True) as conn:
        (last,) = conn.execute(
            "WITH made AS (INSERT INTO sse_pg.events (channel, event_type, payload)"
            " SELECT 'bench', 'message', %s FROM generate_series(1, %s) RETURNING id) SELECT max(id) FROM made",
            [PAYLOAD, BURST],
        ).fetchone()  # type: ignore[misc]
    while not recorder.has(last):
        time.sleep(0.01)
    found.add(f"delivery of a burst to one stream {name}", (sum(map(_nanoseconds, pids)) - before) / BURST / 1000)
    recorder.close()


def _pids(stack: Stack, server: Server, name: str) -> list[int]:
    backends = stack.sql(
        f"SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'sse-pg%' AND datname = '{name}'"
    )
    return [server.process.pid, *(pid for (pid,) in backends)]


def _nanoseconds(pid: int) -> int:
    """Return the processor time of a process, all of its threads."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())
