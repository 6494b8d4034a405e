"""The doctor behind a real PgBouncer: apt-get install pgbouncer."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from cli_support import wait_for
from doctor_support import found, one, report
from psycopg.conninfo import conninfo_to_dict, make_conninfo

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed (apt-get install pgbouncer)")
Pooler = Callable[..., str]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def pooler(database_url: str) -> Iterator[Pooler]:
    """Start PgBouncers: ``pooler("transaction", server_round_robin="1")`` gives the way through one."""
    there = conninfo_to_dict(database_url)
    with contextlib.ExitStack() as stack:

        def start(mode: str, **options: str) -> str:
            # PgBouncer does not run as root, and must read its files and reach PostgreSQL's socket.
            owner = Path(str(there["host"])).stat()
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
            port = free_port()
            settings = {
                "listen_addr": "127.0.0.1",
                "listen_port": str(port),
                "auth_type": "any",
                "pool_mode": mode,
                "unix_socket_dir": "",
                "logfile": str(directory / "log"),
                **options,
            }
            lines = [
                "[databases]",
                f"bus = host={there['host']} port={there['port']} dbname={there['dbname']} user=postgres",
                "[pgbouncer]",
                *(f"{name} = {value}" for name, value in settings.items()),
            ]
            (directory / "ini").write_text("\n".join(lines) + "\n")
            root = os.geteuid() == 0
            for path in (directory, directory / "ini"):
                if root:
                    os.chown(path, owner.st_uid, owner.st_gid)
            assert PGBOUNCER is not None
            process = subprocess.Popen(
                [PGBOUNCER, str(directory / "ini")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                user=owner.st_uid if root else None,
                group=owner.st_gid if root else None,
                extra_groups=[] if root else None,
            )

            def end() -> None:
                process.kill()
                process.wait()

            stack.callback(end)
            url = make_conninfo(host="127.0.0.1", port=port, user="postgres", dbname="bus")
            wait_for(lambda: answers(url) or process.poll() is not None, "PgBouncer")
            assert process.poll() is None, (directory / "log").read_text()
            return url

        yield start


@needs_pgbouncer
@pytest.mark.parametrize(
    "options",
    [{}, {"server_round_robin": "1", "min_pool_size": "3"}, {"default_pool_size": "1"}, {"default_pool_size": "2"}],
)
async def test_a_transaction_pooler(pooler: Pooler, database_url: str, options: dict[str, str]) -> None:
    pooled = pooler("transaction", **options)
    finding = await one("listen", pooled)
    assert finding.state == "error"
    assert "transaction pooler" in finding.found
    assert "SSE_PG_LISTEN_DATABASE_URL" in finding.mend
    # Mended as it says, what remains is a hint about the way of the requests.
    assert (await one("listen", pooled, listen_database_url=database_url)).state == "ok"
    finding = await one("requests", pooled, listen_database_url=database_url)
    assert (finding.state, "max_prepared_statements" in finding.mend) == ("warning", True)


@needs_pgbouncer
async def test_nothing_is_left_on_the_backends_of_a_pooler(pooler: Pooler, database_url: str) -> None:
    pooled = pooler("transaction")
    await report(pooled)
    with psycopg.connect(pooled, autocommit=True) as conn:
        for query in ("SELECT pg_listening_channels()", "SELECT name FROM pg_prepared_statements"):
            assert conn.execute(query).fetchall() == []  # type: ignore[arg-type]
        for setting, value in (("transaction_read_only", "off"), ("statement_timeout", "0"), ("lock_timeout", "0")):
            assert conn.execute("SELECT current_setting(%s)", [setting]).fetchone() == (value,)


@needs_pgbouncer
async def test_a_statement_pooler(pooler: Pooler) -> None:
    pooled = pooler("statement")
    assert "error" in {finding.state for finding in await report(pooled)}


@needs_pgbouncer
async def test_a_session_pooler(pooler: Pooler) -> None:
    pooled = pooler("session")
    assert (await one("listen", pooled)).state == "ok"
    assert (await one("requests", pooled, listen_database_url=pooled)).state == "ok"


async def test_two_ways_that_lead_to_different_databases(database_url: str, empty_database_url: str) -> None:
    (finding,) = await found("listen", database_url, listen_database_url=empty_database_url)
    assert finding.state == "error"
    assert "does not arrive" in finding.found
    assert (await one("listen", database_url, listen_database_url=database_url)).state == "ok"


async def test_a_way_to_listen_that_leads_nowhere(database_url: str, tmp_path: Path) -> None:
    finding = await one("listen", database_url, listen_database_url=f"postgresql:///x?host={tmp_path}")
    assert finding.state == "error"
    assert "SSE_PG_LISTEN_DATABASE_URL" in finding.found
