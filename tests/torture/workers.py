"""Workers: takers of named consumers that write what they take, and die, roll back or lose their connection."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import psycopg

from sse_pg.client import Backoff, Gap, consume
from torture.writers import CHANNELS

TABLES = """
    CREATE TABLE consumed (consumer text, id bigint, PRIMARY KEY (consumer, id));
    CREATE TABLE consumer_gaps (consumer text, after text, before text);
"""
#: The channels of each consumer.
CONSUMERS = {"all": CHANNELS, "few": CHANNELS[:2], "one": CHANNELS[3:4]}
TAKE = "SELECT id, event_type, payload FROM sse_pg.consume(%s, %s, %s)"
LEVELS = (None, psycopg.IsolationLevel.READ_COMMITTED, psycopg.IsolationLevel.REPEATABLE_READ,
          psycopg.IsolationLevel.SERIALIZABLE)  # fmt: skip


class Died(Exception):
    """A worker whose batch failed."""


class Worker:
    """One of several takers of a name. ``by_hand``: it calls consume() itself, at any isolation level.

    ``pooled``: its connections go through a transaction pooler, so nothing is prepared, and nothing listens.
    """

    def __init__(self, number: int, seed: int, conninfo: str, *, by_hand: bool, pooled: bool = False) -> None:
        self._pooled = pooled
        self._random = Random(f"{seed} worker {number}")
        self._conninfo = conninfo
        self._by_hand = by_hand
        self.name = sorted(CONSUMERS)[number % len(CONSUMERS)]
        self.doubled = 0
        self.failures = 0
        self.calm = False

    async def run(self) -> None:
        """Work until cancelled. After an event that came twice, the worker gives up."""
        while not self.doubled:
            try:
                await (self._sql() if self._by_hand else self._client())
            except psycopg.errors.UniqueViolation:
                self.doubled += 1
            except (Died, psycopg.Error, OSError):
                self.failures += 1
                await asyncio.sleep(self._random.uniform(0, 0.1))

    async def _client(self) -> None:
        options: dict[str, Any] = {"backoff": Backoff(0.02, 0.3), "on_reconnect": lambda _: None, "on_gap": self._gap}
        options["listen"] = not self._pooled
        most = self._random.choice((1, 10, 300))
        async for batch, conn in consume(self._conninfo, self.name, CONSUMERS[self.name], most=most, **options):
            await self._work(conn, [event.id for event in batch])

    async def _sql(self) -> None:
        options: dict[str, Any] = {"prepare_threshold": None} if self._pooled else {}
        async with await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=5, **options) as conn:
            await conn.set_isolation_level(self._random.choice(LEVELS))
            while True:
                most = self._random.choice((1, 10, 300))
                rows = await (await conn.execute(TAKE, [self.name, list(CONSUMERS[self.name]), most])).fetchall()
                for number, kind, payload in rows:
                    if kind == "sse-pg.gap":
                        assert number is None
                        await self._gap(Gap(**payload), conn)
                await self._work(conn, [number for number, kind, _ in rows if kind != "sse-pg.gap"])
                await conn.commit()
                if not rows:
                    await asyncio.sleep(0.02)

    async def _gap(self, gap: Gap, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("INSERT INTO consumer_gaps VALUES (%s, %s, %s)", [self.name, gap.after, gap.before])

    async def _work(self, conn: psycopg.AsyncConnection[Any], ids: list[int]) -> None:
        await conn.execute("INSERT INTO consumed SELECT %s, unnest(%s::bigint[])", [self.name, ids])
        if self.calm:
            return
        await asyncio.sleep(self._random.expovariate(1 / 0.005))
        fate = self._random.random()
        if fate < 0.05:
            raise Died
        if fate < 0.1:
            await conn.rollback()
        elif fate < 0.15:
            conn.pgconn.finish()


async def caught_up(conninfo: str, workers: list[Worker], seconds: float) -> None:
    """Wait until no consumer lacks an event, for as long as they take some."""
    loop = asyncio.get_running_loop()
    deadline, before = loop.time() + seconds, -1
    for worker in workers:
        worker.calm = True
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as conn:
        while loop.time() < deadline:
            ((lag, names),) = await (await conn.execute("SELECT sum(lag), count(*) FROM sse_pg.consumers")).fetchall()
            if lag == 0 and names == len(CONSUMERS):
                return
            ((taken,),) = await (await conn.execute("SELECT count(*) FROM consumed")).fetchall()
            if taken > before:
                deadline, before = loop.time() + seconds, taken
            await asyncio.sleep(0.2)
