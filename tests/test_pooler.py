"""Behind a real PgBouncer in transaction mode, with a way past it for the connection that listens."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from cli_support import wait_for
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import Client, Launcher

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[str]:
    """The way to this test's database through a PgBouncer that takes its backends in turn."""
    there = conninfo_to_dict(database_url)
    # PgBouncer does not run as root, and must reach PostgreSQL's socket.
    owner = Path(str(there["host"])).stat()
    root = os.geteuid() == 0
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    with tempfile.TemporaryDirectory(dir="/tmp") as name, contextlib.ExitStack() as ending:
        ini = Path(name) / "pgbouncer.ini"
        ini.write_text(
            "[databases]\n"
            f"bus = host={there['host']} port={there['port']} dbname={there['dbname']} user=postgres\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = transaction\n"
            f"min_pool_size = 3\nserver_round_robin = 1\nunix_socket_dir =\nlogfile = {name}/log\n"
        )
        if root:
            for path in (Path(name), ini):
                os.chown(path, owner.st_uid, owner.st_gid)
        assert PGBOUNCER
        process = subprocess.Popen(
            [PGBOUNCER, str(ini)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=owner.st_uid if root else None,
            group=owner.st_gid if root else None,
            extra_groups=[] if root else None,
        )
        ending.callback(process.wait)
        ending.callback(process.kill)
        url = make_conninfo(host="127.0.0.1", port=port, user="postgres", dbname="bus")
        wait_for(lambda: _answers(url) or process.poll() is not None, "PgBouncer")
        assert process.poll() is None
        yield url


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed (apt-get install pgbouncer)")
async def test_requests_through_a_transaction_pooler(database_url: str, pooled_url: str, launch: Launcher) -> None:
    """Each kind of request more often than the count at which psycopg would prepare its statement."""
    server = await launch(database_url=pooled_url, listen_database_url=database_url)
    async with Client(server.url) as client:
        for number in range(20):
            assert await client.publish("orders", number) == number + 1
            status, history = await client.get(f"/api/events/history?channel=orders&after={number}")
            assert (status, [event["payload"] for event in history["events"]]) == (200, [number])
        async with client.stream("orders", lastEventId="0") as stream:
            assert [event.json() for event in await stream.events(20)] == list(range(20))
