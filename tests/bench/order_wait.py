"""What the short wait for a missing id costs and brings, and how soon a stream is up to date after an outage.

Writers overlap on purpose: each transaction inserts, stays open for some milliseconds and commits. The delay of an event
is from its commit (noted by the writer just before it) to the client.
"""

from __future__ import annotations

import asyncio
import json
import time
from random import Random
from statistics import median

import aiohttp
import psycopg

from bench.stack import Server, Stack
from bench.table import Result, Rounds, percentile

WRITERS = 16
SECONDS = 6.0
OUTAGE_S = 5.0
INSERT = "INSERT INTO sse_pg.events (channel, payload) VALUES ('bench', %s)"


def run(rounds: int = 3) -> Result:
    """Measure with and without the wait, in turns, then the outage."""
    result = Result("order", f"The wait for a missing id, {WRITERS} overlapping writers")
    found = Rounds()
    with Stack() as stack:
        for _ in range(rounds):
            for wait in ("20", "0"):
                server = stack.serve(SSE_PG_ORDER_WAIT_MS=wait)
                for name, value in asyncio.run(_load(stack, server, wait)).items():
                    found.add(f"{name}, wait {wait} ms", value)
                server.process.stop()
        server = stack.serve()
        for _ in range(rounds):
            found.add("outage", asyncio.run(_outage(stack, server)))
    for name, values in found.values.items():
        if name != "outage":
            result.add(name, f"{median(values):.3g}")
    result.add(f"seconds from the end of an outage of {OUTAGE_S:g} s to up to date", f"{found.median('outage'):.2f}")
    return result


async def _load(stack: Stack, server: Server, wait: str) -> dict[str, float]:
    records: list[tuple[float, str]] = []
    commits: dict[int, float] = {}
    reader = asyncio.create_task(_read(server, records, opened := asyncio.Event()))
    await opened.wait()
    await asyncio.gather(*(_write(stack.url, f"{wait} {number}", commits, number) for number in range(WRITERS)))
    while len(records) < len(commits):
        await asyncio.sleep(0.05)
    reader.cancel()
    delays = []
    out_of_order = with_gaps = highest = 0
    for arrived, block in records:
        fields = dict(line.partition(": ")[::2] for line in block.split("\n"))
        event = json.loads(fields["data"])
        delays.append(1000 * (arrived - commits[event["payload"]["n"]]))
        with_gaps += "~" in fields["id"]
        out_of_order += event["id"] < highest
        highest = max(highest, event["id"])
    delays.sort()
    return {
        "events/s": len(records) / SECONDS,
        "p50 delay, ms": percentile(delays, 0.5),
        "p99 delay, ms": percentile(delays, 0.99),
        "% of events delivered after a higher id": 100 * out_of_order / len(records),
        "% of ids that carry gaps": 100 * with_gaps / len(records),
    }


async def _write(url: str, seed: str, commits: dict[int, float], number: int) -> None:
    rand = Random(seed)
    deadline = time.monotonic() + SECONDS
    mark = number << 32
    async with await psycopg.AsyncConnection.connect(url) as conn:
        while time.monotonic() < deadline:
            mark += 1
            await conn.execute(INSERT, (json.dumps({"n": mark}),))
            await asyncio.sleep(rand.uniform(0, 0.02))
            commits[mark] = time.monotonic()
            await conn.commit()


async def _read(server: Server, records: list[tuple[float, str]], opened: asyncio.Event) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            f"{server.url}{server.stream}&envelope=true", timeout=aiohttp.ClientTimeout(total=None)
        ) as response,
    ):
        rest = b""
        async for data in response.content.iter_any():
            now = time.monotonic()
            *blocks, rest = (rest + data).split(b"\n\n")
            records += [
                (now, block.decode().removeprefix(":\n")) for block in blocks if b"\nevent: sse-pg." not in block
            ]
            opened.set()


async def _outage(stack: Stack, server: Server) -> float:
    """Take PostgreSQL away under an open stream; events are inserted before the server can see it again."""
    records: list[tuple[float, str]] = []
    reader = asyncio.create_task(_read(server, records, opened := asyncio.Event()))
    await opened.wait()
    await asyncio.to_thread(stack.stop_postgres)
    await asyncio.sleep(OUTAGE_S)
    await asyncio.to_thread(stack.start_postgres)
    back = time.monotonic()
    async with await psycopg.AsyncConnection.connect(stack.url, autocommit=True) as conn:
        await conn.execute(
            "INSERT INTO sse_pg.events (channel, payload) SELECT 'bench', '1' FROM generate_series(1, 1000)"
        )
    while len(records) < 1000:
        await asyncio.sleep(0.005)
    reader.cancel()
    return records[-1][0] - back
