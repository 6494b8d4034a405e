"""Torture with a failover: the primary is killed under load, its standby is promoted, and the streams go on.

With synchronous replication nothing may be lost, doubled or announced. With asynchronous replication, what was handed
on and is lost must be announced, and nothing of the new log may be missing.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

import aiohttp
from support import replication
from support.replication import Node

from sse_pg.core.cursor import Cursor
from sse_pg.embedded import find_binaries
from torture.checker import Row, table
from torture.faults import ServerProcess, free_ports
from torture.readers import Reader
from torture.writers import CHANNELS, Answers, Writer


@dataclass
class FailoverPlan:
    """What a run is made of. Times in seconds."""

    seed: int
    synchronous: bool
    seconds: float = 6.0
    """Time of the load before the primary is killed, and after the first event of the new one."""
    writers: int = 8
    readers: int = 12
    pause: float = 0.02
    catch_up: float = 60.0
    standbys: int = 0
    """1: the second server reads from the standby that is promoted. There is only one."""
    postgres_bin: str | None = None
    sabotage: str | None = None
    """SQL that breaks the mechanism, to show that the checker notices."""


@dataclass
class FailoverReport:
    """The figures of a run. A run is good when ``faults`` is 0."""

    seed: int
    events: int = 0
    delivered: int = 0
    lost: int = 0
    """Events of the new primary that a reader was not given."""
    doubled: int = 0
    not_announced: int = 0
    """Events that a reader was given and that the new primary lacks, without a gap event."""
    announced: int = 0
    """The same with a gap event."""
    gaps: int = 0
    needless_gaps: int = 0
    """Gap events with synchronous replication, which loses nothing."""
    reused: int = 0
    """Ids that were handed out twice."""
    http_lost: int = 0
    """Events that were answered 201 and that the new primary lacks, with synchronous replication."""
    promoted_s: float = 0.0
    first_publish_s: float = 0.0
    first_delivery_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many errors there were that must not happen."""
        return self.lost + self.doubled + self.not_announced + self.needless_gaps + self.reused + self.http_lost


async def fail_over(plan: FailoverPlan) -> FailoverReport:
    """Run a plan and check it."""
    programs = find_binaries(Path(plan.postgres_bin) if plan.postgres_bin else None)
    with replication.pair(programs, max_connections="200", max_prepared_transactions="20") as nodes:
        return await _run(plan, *nodes)


async def _run(plan: FailoverPlan, primary: Node, standby: Node) -> FailoverReport:
    if plan.sabotage:
        primary.sql(plan.sabotage)
    if plan.synchronous:
        replication.synchronize(primary)
    directory = Path(tempfile.mkdtemp(prefix="sse-pg-failover-", dir="/tmp"))
    url = replication.hosts(primary, standby)
    ways = [{}, {"SSE_PG_READ_DATABASE_URL": replication.hosts(standby)} if plan.standbys else {}]
    servers = [
        ServerProcess(port, url, str(directory / f"server{port}.log"), {"SSE_PG_COMPRESSION": "on", **way})
        for port, way in zip(free_ports(2), ways, strict=True)
    ]
    for server in servers:
        server.start()
    urls = [server.url for server in servers]
    rand = Random(f"{plan.seed} failover")
    readers = [
        Reader(n, plan.seed, urls, tuple(rand.sample(CHANNELS, rand.choice((1, 2, 8)))), rand.choice((None, "0")))
        for n in range(plan.readers)
    ]
    for reader in readers:
        reader.dropping = False  # their streams stay open
    answers = Answers()
    # libpq tries the hosts in turn; a writer that has lost its connection looks for the primary.
    writer_url = f"{url} target_session_attrs=read-write"
    writers = [Writer(n, plan.seed, writer_url, urls, answers) for n in range(1, plan.writers + 1)]
    report = FailoverReport(plan.seed)
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    try:
        await asyncio.wait_for(asyncio.gather(*(reader.opened.wait() for reader in readers)), 60)
        writing = [asyncio.create_task(writer.run(plan.pause)) for writer in writers]
        await asyncio.sleep(plan.seconds)
        if not plan.synchronous:
            # The standby is behind by what was published in this time.
            await asyncio.to_thread(replication.cut_off, standby)
            await asyncio.sleep(0.5)
        before = table(primary.url) if not plan.synchronous else {}
        began = time.monotonic()
        await asyncio.to_thread(primary.kill)
        probing = asyncio.create_task(_first_publish(urls[0]))
        delivering = asyncio.create_task(_first_delivery(readers))
        await asyncio.to_thread(standby.promote)
        report.promoted_s = time.monotonic() - began
        report.first_publish_s = await probing - began
        report.first_delivery_s = await delivering - began
        await asyncio.sleep(plan.seconds)
        for writer in writers:
            writer.stopping = True
        await asyncio.gather(*writing)
        for (name,) in standby.sql("SELECT gid FROM pg_prepared_xacts"):
            standby.sql(f"COMMIT PREPARED '{name}'")
        rows = table(standby.url)
        await _caught_up(readers, rows, plan.catch_up)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
            server.kill()
    _check(report, plan, rows, before, readers, answers)
    if report.faults:
        report.examples.append(f"the servers' logs are kept in {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return report


async def _first_publish(url: str) -> float:
    """Publish until it is answered 201; return when."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        for number in count(1 << 40):
            event = {"channel": "probe", "payload": {"m": number, "t": 0, "n": 0}}
            try:
                async with session.post(f"{url}/api/events/publish", json=event) as response:
                    if response.status == 201:
                        return time.monotonic()
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.005)
    raise AssertionError("unreachable")


async def _first_delivery(readers: list[Reader]) -> float:
    """Return when a reader is given an event of the new primary."""
    await asyncio.sleep(0.2)  # what was on its way when the primary was killed
    known = sum(len(reader.marks) for reader in readers)
    while sum(len(reader.marks) for reader in readers) == known:
        await asyncio.sleep(0.002)
    return time.monotonic()


async def _caught_up(readers: list[Reader], rows: dict[int, Row], catch_up_s: float) -> None:
    wanted = [{mark for mark, row in rows.items() if row.channel in reader.channels} for reader in readers]
    deadline, received = time.monotonic() + catch_up_s, -1
    while time.monotonic() < deadline and not all(
        marks <= set(reader.marks) for reader, marks in zip(readers, wanted, strict=True)
    ):
        now = sum(len(reader.marks) for reader in readers)
        if now > received:
            deadline, received = time.monotonic() + catch_up_s, now
        await asyncio.sleep(0.2)
    await asyncio.sleep(1.0)  # what comes twice may come now


def _check(
    report: FailoverReport,
    plan: FailoverPlan,
    rows: dict[int, Row],
    before: dict[int, Row],
    readers: list[Reader],
    answers: Answers,
) -> None:
    report.events = len(rows)
    new_ids = {row.id for row in rows.values()}
    gone = {mark: row for mark, row in before.items() if mark not in rows}
    report.reused = sum(row.id in new_ids for row in gone.values())
    report.http_lost = len(answers.accepted - rows.keys()) if plan.synchronous else 0
    for number, reader in enumerate(readers):
        counts = Counter(reader.marks)
        report.delivered += len(reader.marks)
        report.gaps += len(reader.gaps_told)
        expected = {mark for mark, row in rows.items() if row.channel in reader.channels}
        missing = expected - counts.keys()
        report.lost += len(missing)
        if missing:
            report.examples.append(f"reader {number} lacks {sorted(missing)[:3]}; its cursor is {reader.cursor}")
        told = [json.loads(text) for text in reader.gaps_told]
        given_up = [Cursor.parse(gap["before"]).missing(Cursor.parse(gap["after"])) for gap in told]
        if not told or plan.synchronous:
            report.doubled += sum(times - 1 for mark, times in counts.items() if mark not in reader.excused)
        for mark in counts.keys() - rows.keys():
            row = before.get(mark)  # None: it was published while the primary was being killed
            if told and (row is None or any(row.id in ids for ids in given_up)):
                report.announced += 1
            else:
                report.not_announced += 1
                report.examples.append(f"reader {number} was given {mark}, which is lost, and was told {told}")
        if told and plan.synchronous:
            report.needless_gaps += len(told)
            report.examples.append(f"reader {number} was told {told}, and nothing was lost")
