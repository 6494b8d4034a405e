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


class PgBouncer:
    """One PgBouncer, which can be started again at the same place. Its directory also has its socket."""

    def __init__(self, directory: Path, database_url: str, mode: str, **options: str) -> None:
        there = conninfo_to_dict(database_url)
        # PgBouncer does not run as root, and must read its files and reach PostgreSQL's socket.
        owner = Path(str(there["host"])).stat()
        self._account = (owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None
        self._ini = directory / "ini"
        self._log = directory / "log"
        port = free_port()
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "auth_type": "any",
            "pool_mode": mode,
            "unix_socket_dir": str(directory),
            "logfile": str(self._log),
            **options,
        }
        lines = [
            "[databases]",
            f"bus = host={there['host']} port={there.get('port', 5432)} dbname={there['dbname']} user=postgres",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        self._ini.write_text("\n".join(lines) + "\n")
        if self._account is not None:
            for path in (directory, self._ini):
                os.chown(path, *self._account)
        self.url = make_conninfo(host="127.0.0.1", port=port, user="postgres", dbname="bus")
        self.socket = f"{directory}/.s.PGSQL.{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens. It need not reach PostgreSQL."""
        assert PGBOUNCER is not None
        user, group = self._account or (None, None)
        process = self._process = subprocess.Popen(
            [PGBOUNCER, str(self._ini)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )
        wait_for(lambda: Path(self.socket).exists() or process.poll() is not None, "PgBouncer")
        assert process.poll() is None, self._log.read_text()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            Path(self.socket).unlink(missing_ok=True)


@contextlib.contextmanager
def poolers(database_url: str) -> Iterator[Pooler]:
    """Start PgBouncers: ``start("transaction", server_round_robin="1")`` gives the way through one."""
    with contextlib.ExitStack() as stack:

        def start(mode: str, **options: str) -> str:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
            pgbouncer = PgBouncer(directory, database_url, mode, **options)
            stack.callback(pgbouncer.kill)
            pgbouncer.start()
            wait_for(lambda: _answers(pgbouncer.url), "PostgreSQL behind PgBouncer")
            return pgbouncer.url

        yield start


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
