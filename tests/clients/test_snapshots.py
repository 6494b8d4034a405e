"""Both of the bus's own clients keep a table's state through random transactions, cuts and gaps: it is always equal.

The events are changes (``by``), so that one that is lost or comes twice can never be made good by a later one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from aiohttp import web
from support.server import Launcher
from support.waiting import eventually

from clients import install
from clients.proxy import Proxy
from sse_pg.client import Snapshot, subscribe

ACCOUNTS = 10
TABLE = """
    CREATE TABLE balances (id integer PRIMARY KEY, amount bigint NOT NULL);
    INSERT INTO balances SELECT g, 0 FROM generate_series(0, 9) g;
"""
PURGED = "SELECT purged_to FROM sse_pg.log"
DRIVER = Path(__file__).parent / "drivers" / "snapshot.cjs"


async def state(conn: psycopg.AsyncConnection[Any]) -> tuple[dict[str, int], str]:
    """Return the table and its position, from one snapshot."""
    async with conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        rows = await (await conn.execute("SELECT id, amount FROM balances")).fetchall()
        ((position,),) = await (await conn.execute("SELECT sse_pg.position()")).fetchall()
    return {str(number): amount for number, amount in rows}, position


@dataclass
class Client:
    """What a client has."""

    balances: dict[str, int] = field(default_factory=dict)
    snapshots: int = 0


class Writers:
    """Transactions that change several balances, some late, some rolled back."""

    def __init__(self, database_url: str, seed: int) -> None:
        self._url = database_url
        self._seed = seed
        self.committed = 0
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Writers:
        self._tasks = [asyncio.create_task(self._write(Random(f"{self._seed} {number}"))) for number in range(4)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> None:
        """Wait until so many more transactions are committed."""
        target = self.committed + count
        await eventually(lambda: self.committed >= target)

    async def _write(self, random: Random) -> None:
        async with await psycopg.AsyncConnection.connect(self._url) as conn:
            while not self._stopping:
                for number in sorted(random.sample(range(ACCOUNTS), random.randint(1, 3))):
                    by = random.randint(-100, 100)
                    await conn.execute("UPDATE balances SET amount = amount + %s WHERE id = %s", (by, number))
                    payload = json.dumps({"id": number, "by": by})
                    await conn.execute("SELECT sse_pg.publish('balances', 'CHANGED', %s)", (payload,))
                if random.random() < 0.03:  # so that the ids that are missing fit into a position (docs/guarantee.md)
                    await conn.rollback()
                else:
                    await conn.commit()
                    self.committed += 1


@contextlib.asynccontextmanager
async def in_python(proxy: Proxy, database_url: str) -> AsyncIterator[Client]:
    client = Client()

    async def load() -> tuple[dict[str, int], str]:
        async with await psycopg.AsyncConnection.connect(database_url) as conn:
            return await state(conn)

    async def follow() -> None:
        async with subscribe(proxy.url, "balances", snapshot=load) as events:
            async for event in events:
                if isinstance(event, Snapshot):
                    client.balances = event.state
                    client.snapshots += 1
                else:
                    change = event.json()
                    client.balances[str(change["id"])] += change["by"]

    task = asyncio.create_task(follow())
    try:
        yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def in_node(proxy: Proxy, database_url: str) -> AsyncIterator[Client]:
    client = Client()

    async def load(_: web.Request) -> web.Response:
        async with await psycopg.AsyncConnection.connect(database_url) as conn:
            balances, position = await state(conn)
        return web.json_response({"state": balances, "position": position})

    app = web.Application()
    app.router.add_get("/balances", load)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stream = f"{proxy.url}/api/events/stream?channels=balances"
    port = runner.addresses[0][1]
    program, _ = install.node()
    process = await asyncio.create_subprocess_exec(
        program, str(DRIVER), stream, f"http://127.0.0.1:{port}/balances", stdout=asyncio.subprocess.PIPE
    )

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said = json.loads(line)
            client.balances, client.snapshots = said["balances"], said["snapshots"]

    reading = asyncio.create_task(read())
    try:
        yield client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
        await runner.cleanup()


@pytest.mark.parametrize("make", [in_python, in_node])
async def test_the_state_is_always_that_of_the_table(make: Any, launch: Launcher, database_url: str) -> None:
    server = await launch(retry=0.05, ring_events=10, keep_events=100, partition_size=50, maintenance=0.2)
    async with (
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn,
        Proxy(int(server.url.rpartition(":")[2])) as proxy,
    ):
        await conn.execute(TABLE)
        async with make(proxy, database_url) as client:
            async with Writers(database_url, 7) as writers:
                await eventually(lambda: client.snapshots > 0)
                for _ in range(6):
                    await writers.more(20)
                    proxy.cut()  # it resumes
                    await writers.more(20)
                    proxy.refusing = True  # it cannot, until what it lacks is purged
                    proxy.cut()
                    ((last,),) = await (await conn.execute("SELECT sse_pg.last_id()")).fetchall()
                    while (await (await conn.execute(PURGED)).fetchone()) < (last,):
                        await writers.more(20)
                    before = client.snapshots
                    proxy.refusing = False
                    await eventually(lambda before=before: client.snapshots > before)
            await equal(client, conn)
            for _ in range(3):
                await conn.execute(
                    "WITH changed AS (UPDATE balances SET amount = amount + 1 WHERE id = 1)"
                    """SELECT sse_pg.publish('balances', 'CHANGED', '{"id": 1, "by": 1}')"""
                )
                await equal(client, conn)
            assert client.snapshots > 6


async def equal(client: Client, conn: psycopg.AsyncConnection[Any]) -> None:
    """Wait until a client has what is in the table, which nobody changes at the moment."""
    balances, _ = await state(conn)
    await eventually(lambda: client.balances == balances)
