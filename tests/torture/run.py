"""One run: writers, readers, servers and faults from a seed, then the check."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import aiohttp
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.database_proxy import Proxy
from support.pgbouncer import PgBouncer
from support.standby import Standby, any_of, standby_of

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres, find_binaries
from torture.beginnings import Beginning
from torture.checker import KEEP_COPIES, Report, Row, check, check_beginning, check_workers, purged_to, table
from torture.endings import Ending
from torture.erasures import KEPT, NOTE_DELETIONS, SETTINGS, Eraser, gone
from torture.faults import Faults, ServerProcess, free_ports
from torture.readers import Reader
from torture.standby_faults import StandbyFaults
from torture.workers import TABLES, Worker, caught_up
from torture.writers import CHANNELS, Answers, Writer

#: Small partitions and frequent maintenance, so that much is purged in a short run.
PURGING = {"SSE_PG_PARTITION_SIZE": "200", "SSE_PG_MAINTENANCE_SECONDS": "0.3"}
#: Backends are taken in turn, and PostgreSQL is tried again soon after it was down.
POOLER_OPTIONS = {
    "server_round_robin": "1",
    "default_pool_size": "40",
    "min_pool_size": "5",
    "max_client_conn": "300",
    "server_login_retry": "0.2",
}
#: Of the cluster, and at least as much on its standbys.
LIMITS = {"max_connections": "200", "max_prepared_transactions": "20"}
#: A standby that does not replay for long must find the WAL that it lacks.
KEPT_WAL = {"wal_keep_size": "4GB"}


@dataclass
class Plan:
    """What a run is made of. Times in seconds."""

    seed: int
    seconds: float = 20.0
    writers: int = 8
    readers: int = 12
    servers: int = 2
    pause: float = 0.02
    fault_pause: float = 2.0
    database_faults: bool = True
    catch_up: float = 60.0
    sabotage: str | None = None
    """SQL that breaks the mechanism, to show that the checker notices."""
    keep_events: int = 0
    """Newest events to keep: what is older is purged while readers resume. 0: nothing is purged."""
    erase_pause: float = 0.0
    """Mean time between two erasures; also, one channel has a retention of its own then. 0: nothing is erased."""
    workers: int = 7
    """Takers of named consumers; there are three names."""
    standbys: int = 0
    """Hot standbys, which lag, stop replaying and restart. All servers but the first read from them."""
    server_env: dict[str, str] = field(default_factory=dict)
    postgres_bin: str | None = None
    pooler: str = "off"
    """Whether servers and SQL go through PgBouncer in transaction mode: "off"; "listen": all but the connection that
    listens; "poll": all, and nothing listens."""
    keep: bool = True
    """Whether the directory of a bad run is kept."""


async def torture(plan: Plan) -> Report:
    """Run a plan and check it. The directory of a bad run is kept and named."""
    directory = Path(tempfile.mkdtemp(prefix="sse-pg-torture-", dir="/tmp"))
    directory.chmod(0o755)
    binaries = find_binaries(Path(plan.postgres_bin) if plan.postgres_bin else None)
    options = {**LIMITS, **KEPT_WAL, "fsync": "off"}
    postgres = EmbeddedPostgres(directory / "data", binaries=binaries, options=options)
    await asyncio.to_thread(postgres.start)
    try:
        with contextlib.ExitStack() as stack:
            standbys = []
            if plan.standbys:
                migrate(postgres.url)
                for _ in range(plan.standbys):
                    standbys.append(stack.enter_context(standby_of(postgres, binaries, **LIMITS)))
            report = await _run(plan, directory, postgres, standbys)
    finally:
        await asyncio.to_thread(postgres.stop)
    if not report.faults or not plan.keep:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        report.examples.append(f"logs and data are kept in {directory}")
    return report


async def _run(plan: Plan, directory: Path, postgres: EmbeddedPostgres, standbys: list[Standby]) -> Report:
    migrate(postgres.url)
    env = {**plan.server_env, "SSE_PG_COMPRESSION": "on"}  # every other connection of a reader accepts gzip
    if plan.keep_events:
        with psycopg.connect(postgres.url, autocommit=True) as conn:
            conn.execute(KEEP_COPIES)
        env = {**env, "SSE_PG_KEEP_EVENTS": str(plan.keep_events), **PURGING}
    if plan.erase_pause:
        with psycopg.connect(postgres.url, autocommit=True) as conn:
            if not plan.keep_events:
                conn.execute(KEEP_COPIES)
            conn.execute(NOTE_DELETIONS)  # type: ignore[arg-type]
        env = {**SETTINGS, **env}
    if plan.sabotage:
        with psycopg.connect(postgres.url, autocommit=True) as conn:
            conn.execute(plan.sabotage)
    direct_url = postgres.url  # later it may be down
    target = conninfo_to_dict(direct_url)
    direct_path = f"{target['host']}/.s.PGSQL.{target.get('port', 5432)}"
    pooler = None
    if plan.pooler != "off":
        (directory / "pgbouncer").mkdir()
        pooler = PgBouncer(directory / "pgbouncer", postgres.url, "transaction", **POOLER_OPTIONS)
        pooler.start()
    sql_url = postgres.url if pooler is None else pooler.url
    proxies, servers = [], []

    async def way(path: str, **options: str) -> str:
        """Return a way to the database, or to PgBouncer, that can be cut."""
        proxies.append(Proxy(path))
        return make_conninfo(postgres.url, host="127.0.0.1", port=await proxies[-1].start(), **options)

    for number, port in enumerate(free_ports(plan.servers)):
        server_env = env
        if pooler is None:
            url = await way(direct_path)
        else:
            url = await way(pooler.socket, dbname="bus")
            listen_url = "none" if plan.pooler == "poll" else await way(direct_path)
            server_env = {**env, "SSE_PG_LISTEN_DATABASE_URL": listen_url}
        program = "torture.server" if number % 2 else "sse_pg"
        if standbys and number:
            order = [*standbys[number % len(standbys) :], *standbys[: number % len(standbys)]]
            server_env = {**server_env, "SSE_PG_READ_DATABASE_URL": any_of(order, "sse_pg")}
        servers.append(ServerProcess(port, url, str(directory / f"server{number}.log"), server_env, program))
    for server in servers:
        server.start()
    urls = [server.url for server in servers]
    rand = Random(f"{plan.seed} plan")
    readers = [
        Reader(
            n,
            plan.seed,
            urls,
            tuple(rand.sample(CHANNELS, rand.choice((1, 2, 8)))),
            rand.choice((None, "0")),
        )
        for n in range(plan.readers)
    ]
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        conn.execute(TABLES)
    pooled = pooler is not None
    workers = [
        Worker(n, plan.seed, sql_url, by_hand=True, pooled=pooled)
        if n % 2
        else Worker(n, plan.seed, sql_url, by_hand=False, pooled=pooled)
        for n in range(plan.workers)
    ]
    late: list[Reader] = []
    beginnings: list[Beginning] = []
    endings: list[Ending] = []
    answers = Answers()
    writers = [Writer(n, plan.seed, sql_url, urls, answers, pooled=pooled) for n in range(1, plan.writers + 1)]
    faults = Faults(plan.seed, postgres, servers, proxies, pooler)
    lags = [StandbyFaults(plan.seed + number, standby) for number, standby in enumerate(standbys)]
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    try:
        await asyncio.wait_for(asyncio.gather(*(reader.opened.wait() for reader in readers)), 60)
        tasks += [asyncio.create_task(worker.run()) for worker in workers]
        writing = [asyncio.create_task(writer.run(plan.pause)) for writer in writers]
        eraser = Eraser(plan.seed, postgres.url)
        if plan.erase_pause:
            erasing = asyncio.create_task(eraser.run(plan.erase_pause))
            tasks.append(erasing)
        if not plan.keep_events and not plan.erase_pause:
            endings = [Ending(n, plan.seed, urls, direct_url) for n in range(3)]
            tasks += [asyncio.create_task(ending.run()) for ending in endings]
        breaking = asyncio.create_task(faults.run(plan.fault_pause, database_faults=plan.database_faults))
        lagging = [asyncio.create_task(each.run(plan.fault_pause)) for each in lags]
        # Clients that come later and want all that is retained.
        for n in range(3):
            await asyncio.sleep(plan.seconds / 3)
            reader = Reader(plan.readers + n, plan.seed, urls, CHANNELS, "0")
            readers.append(reader)
            tasks.append(asyncio.create_task(reader.run()))
            for _ in range(2):
                number = plan.readers + 100 + len(beginnings)
                copies = bool(plan.keep_events or plan.erase_pause)
                beginning = Beginning(number, plan.seed, urls, direct_url, copies=copies)
                beginnings.append(beginning)
                readers.append(beginning.reader)
                tasks.append(asyncio.create_task(beginning.run()))
        for task in lagging:
            task.cancel()
        await asyncio.gather(*lagging, return_exceptions=True)
        for each in lags:
            await each.end()
        await _calm_down(writers, writing, breaking, proxies, servers, postgres, pooler)
        deleted: set[int] = set()
        if plan.erase_pause:
            erasing.cancel()
            deleted = await _end_deletions(postgres.url, urls)
            for n, url in enumerate(urls):  # what they get was in a server's memory, or in the table
                late.append(Reader(plan.readers + 3 + n, plan.seed, [url], CHANNELS, "0"))
                tasks.append(asyncio.create_task(late[-1].run()))
            readers += late
        for ending in endings:
            await ending.over()
        async with asyncio.timeout(plan.catch_up):
            await asyncio.gather(*(ending.all_stopped.wait() for ending in endings))
        rows = table(postgres.url, copies=bool(plan.keep_events or plan.erase_pause))
        for reader in readers:
            reader.dropping = False
        left = {mark: row for mark, row in rows.items() if row.id not in deleted}
        await _caught_up(readers, left, plan.catch_up, postgres.url)
        if workers:
            await caught_up(postgres.url, workers, plan.catch_up)
        assert not plan.erase_pause or deleted == gone(postgres.url), "something was deleted after the end"
        purged = purged_to(postgres.url)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
            server.kill()
        for proxy in proxies:
            await proxy.close()
        if pooler is not None:
            pooler.kill()
    done = Counter([*faults.done, *(name for each in lags for name in each.done)])
    report = Report(plan.seed, purged_to=purged, faults_injected=dict(done))
    report.deleted = deleted
    report.erased = eraser.erased
    marks = {row.id: mark for mark, row in rows.items()}
    report.served_late = sum(len(set(reader.marks) & {marks[number] for number in deleted}) for reader in late)
    if not plan.keep_events and not plan.erase_pause:
        for beginning in beginnings:
            check_beginning(report, beginning.reader, beginning.before, beginning.after)
    for ending in endings:
        report.stopped += len(ending.stopped)
        found = ending.faults(postgres.url)
        report.stopped_wrongly += len(found)
        report.examples += found
    if workers:
        check_workers(report, rows, workers, postgres.url)
    return check(report, rows, readers, answers)


async def _end_deletions(conninfo: str, urls: list[str]) -> set[int]:
    """Delete what keep() no longer keeps, and wait for what a server may take to forget; return what was deleted."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            for url in urls:
                while not await _is_ready(session, url):
                    await asyncio.sleep(0.05)
        await asyncio.sleep(3.0)  # the servers note what they have read every two seconds
        while True:
            state, deleted = conn.execute("SELECT state, deleted FROM sse_pg.purge()").fetchall()[0]
            if state == "done" and not deleted:
                break
            await asyncio.sleep(0.02)
        conn.execute(f"SELECT sse_pg.keep('{KEPT}', '1 year')")  # type: ignore[arg-type]
    await asyncio.sleep(1.0)
    return gone(conninfo)


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/readyz") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def _calm_down(
    writers: list[Writer],
    writing: list[asyncio.Task[None]],
    breaking: asyncio.Task[None],
    proxies: list[Proxy],
    servers: list[ServerProcess],
    postgres: EmbeddedPostgres,
    pooler: PgBouncer | None,
) -> None:
    """End the faults, let the writers finish, and commit or roll back what was prepared."""
    breaking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await breaking
    for proxy in proxies:
        proxy.resume()
    with contextlib.suppress(Exception):
        await asyncio.to_thread(postgres.stop)
    await asyncio.to_thread(postgres.start)
    if pooler is not None:
        pooler.kill()
        pooler.start()
    for server in servers:
        server.signal(18)
        server.start()
    for writer in writers:
        writer.stopping = True
    await asyncio.gather(*writing)
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        for (name,) in conn.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
            conn.execute(f"COMMIT PREPARED '{name}'")


async def _caught_up(readers: list[Reader], rows: dict[int, Row], catch_up_s: float, conninfo: str) -> None:
    """Wait until every reader has all that is left in the table for it, or none gets any for ``catch_up_s``."""
    left = purged_to(conninfo)
    wanted = [
        {mark for mark, row in rows.items() if reader.wants(row.id, row.channel) and row.id > left}
        for reader in readers
    ]
    deadline, before = time.monotonic() + catch_up_s, -1
    while time.monotonic() < deadline:
        due = list(zip(readers, wanted, strict=True))
        # Making sets of hundreds of thousands of marks delays the proxies and the readers: only when it may be over.
        if all(len(reader.marks) >= len(marks) for reader, marks in due) and all(
            marks <= set(reader.marks) for reader, marks in due
        ):
            break
        received = sum(len(reader.marks) for reader in readers)
        if received > before:  # slow is not lost: only readers that get nothing more end the wait
            deadline, before = time.monotonic() + catch_up_s, received
        await asyncio.sleep(0.2)
    await asyncio.sleep(1.0)  # what comes twice may come now
