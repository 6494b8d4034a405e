"""The jobs of the docs, run by a real pg_cron, whose shortest interval is a minute."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.client import Client
from support.cluster import throwaway
from support.process import CHECKOUT
from support.server import Launcher
from support.waiting import eventually

from sse_pg.db.migrate import migrate
from sse_pg.embedded import find_binaries

#: Seconds: a minute until the job, and the time that a busy machine needs for it.
TIMEOUT_S = 150
INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/lib/pg_cron.so"))


@pytest.fixture
def cron_url() -> Iterator[str]:
    """A database with the schema, in a PostgreSQL that has pg_cron."""
    if not INSTALLED:
        pytest.skip("pg_cron is not installed (Debian: postgresql-15-cron)")
    options = {
        "shared_preload_libraries": "pg_cron",
        "cron.use_background_workers": "on",  # else it connects over TCP
        "cron.database_name": "postgres",
        "max_worker_processes": "20",
    }
    with throwaway(find_binaries(INSTALLED[-1].parent.parent / "bin"), **options) as server:
        url = psycopg.conninfo.make_conninfo(server.url, dbname="postgres")
        migrate(url)
        yield url


@pytest.mark.long
async def test_the_jobs_of_the_docs(cron_url: str) -> None:
    launch = Launcher(cron_url)
    with psycopg.connect(cron_url, autocommit=True) as db:
        db.execute("CREATE EXTENSION pg_cron")
        db.execute((CHECKOUT / "docs/examples/trigger.sql").read_bytes())
        db.execute("INSERT INTO orders (item) VALUES ('lamp')")
        remind = (CHECKOUT / "docs/examples/pg_cron.sql").read_text()
        assert remind.count("'0 9 * * *'") == 1
        maintain = re.search(r"SELECT cron\.schedule\(.*?;\n", (CHECKOUT / "docs/retention.md").read_text(), re.S)
        assert maintain
        server = await launch()
        try:
            async with Client(server.url) as client, client.stream("shop") as stream:
                await eventually(lambda: any(each.live for each in server.bus.hub.streams))
                db.execute(remind.replace("'0 9 * * *'", "'* * * * *'").encode())
                db.execute(maintain[0].encode())
                await eventually(lambda: _succeeded(db) == {"remind", "sse-pg"}, timeout_s=TIMEOUT_S)
                assert (await stream.event()).event == "REMINDER"
        finally:
            await launch.close()


def _succeeded(db: psycopg.Connection) -> set[str]:
    found = db.execute(
        "SELECT j.jobname FROM cron.job j JOIN cron.job_run_details d USING (jobid) WHERE d.status = 'succeeded'"
    )
    return {name for (name,) in found}
