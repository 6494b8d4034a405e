"""A table under random transactions, and readers that take its state in a snapshot, follow the stream, and stay equal.

``python -m torture.balances --seconds 600``, in the folder ``tests``; exit code 1 on a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.database_proxy import Proxy

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres, find_binaries
from torture.faults import Faults, ServerProcess, free_ports

REGIONS = ("north", "south", "west")
CHANNELS = ",".join(f"balances.{region}" for region in REGIONS)
TABLE = """
CREATE TABLE people (id integer PRIMARY KEY);
INSERT INTO people SELECT generate_series(1, 20);
CREATE TABLE balances (id integer PRIMARY KEY, region text NOT NULL, amount integer NOT NULL,
                       hidden boolean NOT NULL DEFAULT false, changes integer NOT NULL DEFAULT 0,
                       owner integer REFERENCES people ON UPDATE CASCADE ON DELETE SET NULL,
                       payer integer REFERENCES people ON UPDATE CASCADE ON DELETE SET NULL);
INSERT INTO balances SELECT g, 'north', 100, false, 0, g % 20 + 1, g % 19 + 1 FROM generate_series(1, 200) g;
SELECT sse_pg.publish_changes('balances', 'balances.{region}', condition => 'NOT new.hidden');
"""
#: Changes rows of the table in the middle of a statement that changes them. Its events come first, with old rows that
#: nobody has been sent; only the state at the end can be compared then.
TRIGGER = """
CREATE FUNCTION charge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE balances SET amount = new.amount - 1, changes = new.changes + 1 WHERE id = new.id;
    RETURN NULL;
END $$;
CREATE TRIGGER charge AFTER INSERT OR UPDATE ON balances FOR EACH ROW WHEN (new.amount % 7 = 3)
    EXECUTE FUNCTION charge();
"""
ROWS = "SELECT to_jsonb(b) FROM balances b WHERE NOT hidden"


@dataclass
class Plan:
    """What a run is made of. Times in seconds."""

    seed: int
    seconds: float = 20.0
    writers: int = 6
    readers: int = 6
    pause: float = 0.01
    fault_pause: float = 2.0
    catch_up: float = 60.0
    nested: bool = False
    """Whether a trigger of the user changes the table, too."""
    sabotage: str | None = None
    """SQL that breaks the mechanism, to show that the check notices."""
    postgres_bin: str | None = None


@dataclass
class Report:
    """The figures of a run. It is good when there are no ``different`` readers, no ``surprises`` and no gaps."""

    events: int = 0
    applied: int = 0
    snapshots: int = 0
    connects: int = 0
    different: int = 0
    surprises: int = 0
    """Events whose old row is not the one that the reader had."""
    gaps: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    faults_injected: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many errors there were that must not happen."""
        return self.different + self.surprises + self.gaps


class Follower:
    """A reader. It begins anew, with a snapshot, now and then; otherwise it resumes."""

    def __init__(self, number: int, seed: int, conninfo: str, urls: list[str], report: Report, *, exact: bool) -> None:
        """``exact``: the old row of each event is the one that the reader has."""
        self._exact = exact
        self._random = Random(f"{seed} follower {number}")
        self._conninfo = conninfo
        self._urls = urls
        self._report = report
        self._cursor: str | None = None
        self._strict = exact
        self.state: dict[int, dict[str, Any]] = {}
        self.calm = False
        self.kinds: Counter[str] = Counter()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            while True:
                try:
                    if self._cursor is None or (not self.calm and self._random.random() < 0.2):
                        await self._snapshot()
                    await self._follow(session)
                except (aiohttp.ClientError, OSError, TimeoutError, psycopg.Error):
                    await asyncio.sleep(self._random.uniform(0.02, 0.3))

    async def _snapshot(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=5) as conn:
            await conn.set_isolation_level(
                self._random.choice((IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE))
            )
            rows = await (await conn.execute(ROWS)).fetchall()
            await asyncio.sleep(self._random.expovariate(1 / 0.01))
            position = await (await conn.execute("SELECT sse_pg.position()")).fetchone()
        assert position
        self.state = {row["id"]: row for (row,) in rows}
        self._cursor = position[0]
        # A position whose gaps do not fit is lower, and events come again.
        self._strict = self._exact and len(position[0]) < 100
        self._report.snapshots += 1

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        assert self._cursor is not None
        self._strict = self._strict and len(self._cursor) < 100
        life = 3600 if self.calm else self._random.expovariate(1 / 2)
        async with session.get(
            f"{self._random.choice(self._urls)}/api/events/stream",
            params={"channels": CHANNELS},
            headers={"Last-Event-ID": self._cursor},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=8),
        ) as response:
            if response.status != 200:
                await asyncio.sleep(0.1)
                return
            self._report.connects += 1
            rest = b""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(life):
                    async for data in response.content.iter_any():
                        *blocks, rest = (rest + data).split(b"\n\n")
                        for block in blocks:
                            self._take(dict(line.partition(b": ")[::2] for line in block.split(b"\n")))
            response.close()

    def _take(self, fields: dict[bytes, bytes]) -> None:
        if b"id" not in fields:
            return
        name = fields.get(b"event", b"").decode()
        if name == "sse-pg.gap":
            self._report.gaps += 1
            self._report.examples.append(f"a gap: {fields}")
        elif not name.startswith("sse-pg."):
            self._apply(name, json.loads(fields[b"data"]))
        self._cursor = fields[b"id"].decode()

    def _apply(self, kind: str, payload: dict[str, Any]) -> None:
        self._report.applied += 1
        self.kinds[kind] += 1
        old, new = payload.get("old"), payload.get("new")
        had = self.state.get((old or new)["id"])  # type: ignore[index]
        if self._strict and had != old:
            self._report.surprises += 1
            self._report.examples.append(f"{kind} {payload} instead of {had}; cursor {self._cursor}")
        if old is not None:
            self.state.pop(old["id"], None)
        if new is not None:
            self.state[new["id"]] = new


class Bank:
    """A writer of random transactions."""

    def __init__(self, number: int, seed: int, conninfo: str) -> None:
        self._random = Random(f"{seed} bank {number}")
        self._conninfo = conninfo
        self.stopping = False

    async def run(self, pause: float) -> None:
        """Write until ``stopping``; ``pause`` is the mean time between transactions in seconds."""
        while not self.stopping:
            with contextlib.suppress(psycopg.Error, OSError):
                async with await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=5) as conn:
                    while not self.stopping:
                        with contextlib.suppress(psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                            await self._transaction(conn)
                        await conn.rollback()
                        await asyncio.sleep(self._random.expovariate(1 / pause))

    def _id(self) -> int:
        return self._random.randint(1, 300)

    async def _transaction(self, conn: psycopg.AsyncConnection[Any]) -> None:
        for _ in range(self._random.randint(1, 4)):
            if self._random.random() < 0.2:
                with contextlib.suppress(ZeroDivisionError, psycopg.errors.UniqueViolation):
                    async with conn.transaction():
                        await self._statement(conn)
                        if self._random.random() < 0.5:
                            raise ZeroDivisionError
            else:
                await self._statement(conn)
            if self._random.random() < 0.3:
                await asyncio.sleep(self._random.expovariate(1 / 0.005))
        if self._random.random() < 0.85:
            await conn.commit()

    async def _statement(self, conn: psycopg.AsyncConnection[Any]) -> None:
        one, other, amount = self._id(), self._id(), self._random.randint(1, 20)
        region = self._random.choice(REGIONS)
        statement, values = self._random.choice((
            ("UPDATE balances SET amount = amount + CASE id WHEN %s THEN %s ELSE -%s END WHERE id IN (%s, %s)",
             (one, amount, amount, one, other)),
            ("UPDATE balances SET amount = amount + CASE id WHEN %s THEN %s ELSE -%s END WHERE id IN (%s, %s)",
             (one, amount, amount, one, other)),
            ("INSERT INTO balances (id, region, amount) VALUES (%s, %s, %s), (%s, %s, %s) ON CONFLICT DO NOTHING",
             (one, region, amount, other, region, amount)),
            ("INSERT INTO balances (id, region, amount, owner, payer) VALUES (%s, %s, %s, %s, %s)"
             " ON CONFLICT (id) DO UPDATE SET amount = balances.amount + excluded.amount",
             (one, region, amount, one % 20 + 1, one % 20 + 1)),
            ("DELETE FROM balances WHERE id = %s", (one,)),
            ("UPDATE balances SET region = %s WHERE id BETWEEN %s AND %s + 5", (region, one, one)),
            ("UPDATE balances SET hidden = NOT hidden WHERE id IN (%s, %s)", (one, other)),
            ("UPDATE balances SET id = %s WHERE id = %s", (one, other)),
            ("UPDATE balances SET amount = amount + 1, region = %s WHERE id %% 50 = %s", (region, one % 50)),
            ("MERGE INTO balances USING (VALUES (%s::integer, %s::integer)) AS s (id, amount) ON balances.id = s.id"
             " WHEN MATCHED AND s.amount > 10 THEN DELETE WHEN MATCHED THEN UPDATE SET amount = s.amount"
             " WHEN NOT MATCHED THEN INSERT (id, region, amount) VALUES (s.id, 'west', s.amount)", (one, amount)),
            ("UPDATE people SET id = %s WHERE id = %s", (one % 40 + 1, other % 40 + 1)),
            ("DELETE FROM people WHERE id = %s", (one,)),
        ))  # fmt: skip
        await conn.execute(statement, values)  # type: ignore[arg-type]
        if statement.startswith("DELETE FROM people"):
            await conn.execute("INSERT INTO people VALUES (%s) ON CONFLICT DO NOTHING", values)


async def balances(plan: Plan) -> Report:
    """Run a plan and check it."""
    directory = Path(tempfile.mkdtemp(prefix="sse-pg-torture-", dir="/tmp"))
    directory.chmod(0o755)
    postgres = EmbeddedPostgres(
        directory / "data",
        binaries=find_binaries(Path(plan.postgres_bin) if plan.postgres_bin else None),
        options={"max_connections": "200", "fsync": "off"},
    )
    await asyncio.to_thread(postgres.start)
    try:
        return await _run(plan, directory, postgres)
    finally:
        await asyncio.to_thread(postgres.stop)
        shutil.rmtree(directory, ignore_errors=True)


async def _run(plan: Plan, directory: Path, postgres: EmbeddedPostgres) -> Report:
    migrate(postgres.url)
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute(TABLE)
        if plan.nested:
            conn.execute(TRIGGER)
        if plan.sabotage:
            conn.execute(plan.sabotage)  # type: ignore[arg-type]
    target = conninfo_to_dict(postgres.url)
    proxies, servers = [], []
    for number, port in enumerate(free_ports(2)):
        proxy = Proxy(f"{target['host']}/.s.PGSQL.{target.get('port', 5432)}")
        proxies.append(proxy)
        url = make_conninfo(postgres.url, host="127.0.0.1", port=await proxy.start())
        servers.append(ServerProcess(port, url, str(directory / f"server{number}.log"), {}))
    for server in servers:
        server.start()
    report = Report()
    followers = [
        Follower(number, plan.seed, postgres.url, [server.url for server in servers], report, exact=not plan.nested)
        for number in range(plan.readers)
    ]
    banks = [Bank(number, plan.seed, postgres.url) for number in range(plan.writers)]
    faults = Faults(plan.seed, postgres, servers, proxies)
    following = [asyncio.create_task(follower.run()) for follower in followers]
    writing = [asyncio.create_task(bank.run(plan.pause)) for bank in banks]
    breaking = asyncio.create_task(faults.run(plan.fault_pause, database_faults=False))
    try:
        await asyncio.sleep(plan.seconds)
        breaking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await breaking
        for proxy in proxies:
            proxy.resume()
        for server in servers:
            server.signal(18)
            server.start()
        for bank in banks:
            bank.stopping = True
        await asyncio.gather(*writing)
        for follower in followers:
            follower.calm = True
        await _compare(postgres.url, followers, plan.catch_up, report)
    finally:
        for task in (*following, *writing, breaking):
            task.cancel()
        await asyncio.gather(*following, *writing, breaking, return_exceptions=True)
        for server in servers:
            server.kill()
        for proxy in proxies:
            await proxy.close()
    report.kinds = dict(sum((follower.kinds for follower in followers), Counter()))
    report.faults_injected = dict(Counter(faults.done))
    return report


async def _compare(conninfo: str, followers: list[Follower], catch_up_s: float, report: Report) -> None:
    """Wait until every reader has the rows of the table, or none has applied anything for ``catch_up_s``."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        rows = {row["id"]: row for (row,) in conn.execute(ROWS).fetchall()}
        counted = conn.execute("SELECT count(*) FROM sse_pg.events").fetchone()
    report.events = counted[0] if counted else 0
    deadline, before = time.monotonic() + catch_up_s, -1
    while time.monotonic() < deadline and any(follower.state != rows for follower in followers):
        if report.applied > before:
            deadline, before = time.monotonic() + catch_up_s, report.applied
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)  # what comes too much may come now
    for number, follower in enumerate(followers):
        if follower.state != rows:
            report.different += 1
            ids = [key for key in {*rows, *follower.state} if rows.get(key) != follower.state.get(key)]
            report.examples.append(
                f"reader {number} differs in {len(ids)} rows: {rows.get(ids[0])}, {follower.state.get(ids[0])}"
            )


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="torture.balances")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    for name in ("seconds", "pause", "fault_pause", "catch_up"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Plan(0), name))
    for name in ("writers", "readers"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan(0), name))
    parser.add_argument("--postgres-bin", default=None)
    parser.add_argument("--nested", action="store_true")
    plan = Plan(**vars(parser.parse_args()))
    sys.stdout.write(f"{plan}\n")
    report = asyncio.run(balances(plan))
    for name, value in dataclasses.asdict(report).items():
        sys.stdout.write(f"{name}: {value if name != 'examples' else value[:5]}\n")
    sys.exit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
