"""A real PgBouncer in front of a test's database: apt-get install pgbouncer."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from support.process import free_port
from support.waiting import wait_for

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed (apt-get install pgbouncer)")
Pooler = Callable[..., str]


@contextlib.contextmanager
def poolers(database_url: str) -> Iterator[Pooler]:
    """Start PgBouncers: ``start("transaction", server_round_robin="1")`` gives the way through one."""
    there = conninfo_to_dict(database_url)
    # PgBouncer does not run as root, and must read its files and reach PostgreSQL's socket.
    owner = Path(str(there["host"])).stat()
    root = os.geteuid() == 0
    with contextlib.ExitStack() as stack:

        def start(mode: str, **options: str) -> str:
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
            if root:
                for path in (directory, directory / "ini"):
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
            stack.callback(process.wait)
            stack.callback(process.kill)
            url = make_conninfo(host="127.0.0.1", port=port, user="postgres", dbname="bus")
            wait_for(lambda: _answers(url) or process.poll() is not None, "PgBouncer")
            assert process.poll() is None, (directory / "log").read_text()
            return url

        yield start


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
