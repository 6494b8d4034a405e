"""Hot standbys of a cluster that a test has started."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sse_pg.embedded import EmbeddedPostgres
from sse_pg.embedded.binaries import Binaries
from support.cluster import NOT_DURABLE, binaries
from support.waiting import TIMEOUT_S


class Standby:
    """A standby in a directory of its own, made with pg_basebackup."""

    def __init__(self, primary: EmbeddedPostgres, directory: Path, programs: Binaries) -> None:
        self._primary = primary
        self._directory = directory
        self._bin = programs.bin
        self._url = primary.url
        self._options: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        owner = next(primary.data_dir.glob("postgres-[0-9]*[0-9]")).stat()
        self._as_owner: dict[str, object] = {}
        if os.geteuid() == 0:
            self._as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
            os.chown(directory, owner.st_uid, owner.st_gid)

    def make(self) -> None:
        """Copy the primary."""
        there = conninfo_to_dict(self._primary.url)
        subprocess.run(
            [self._bin / "pg_basebackup", "-D", self._directory / "data", "-h", str(there["host"]), "-U", "postgres",
             "-R", "-X", "stream", "-c", "fast"], check=True, capture_output=True, cwd="/", **self._as_owner,
        )  # type: ignore[call-overload] # fmt: skip

    def start(self, **options: str) -> None:
        """Start it, again with the options of the first time; return when it accepts connections."""
        self._options = options = options or self._options
        settings = {"listen_addresses": "", "unix_socket_directories": str(self._directory), **NOT_DURABLE, **options}
        command: list[str | Path] = [self._bin / "postgres", "-D", self._directory / "data"]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self._as_owner)  # type: ignore[call-overload]
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self, *, kill: bool = False) -> None:
        """Stop it: as SIGINT does, which closes its connections, or by killing it."""
        if self._process is not None:
            self._process.send_signal(3 if kill else 2)
            self._process.wait()
            self._process = None

    def url(self, dbname: str) -> str:
        """The connection string of a database."""
        return make_conninfo(self._url, host=str(self._directory), port="5432", dbname=dbname)

    def execute(self, statement: str, dbname: str = "postgres") -> object:
        """Run a statement and return the first column of its first row."""
        with psycopg.connect(self.url(dbname), autocommit=True) as conn:
            done = conn.execute(statement.encode())
            row = done.fetchone() if done.description else None
        return row[0] if row else None

    def pause(self) -> None:
        """Stop replaying WAL."""
        self.execute("SELECT pg_wal_replay_pause()")
        self._until("SELECT pg_get_wal_replay_pause_state() = 'paused'")

    def resume(self) -> None:
        """Replay again."""
        self.execute("SELECT pg_wal_replay_resume()")

    def delay(self, ms: int) -> None:
        """Replay each commit so many ms after it was made."""
        self.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = '{ms}ms'")
        self.execute("SELECT pg_reload_conf()")

    def promote(self) -> None:
        """Make a primary of it."""
        self.execute("SELECT pg_promote()")

    def catch_up(self, dbname: str) -> None:
        """Wait until it has replayed all that the primary has written."""
        with psycopg.connect(self._primary.url, autocommit=True) as conn:
            row = conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
            conn.execute("SELECT pg_switch_wal()")  # so that all of it is sent
        assert row is not None
        self._until(f"SELECT pg_last_wal_replay_lsn() >= '{row[0]}'::pg_lsn", dbname)

    def _until(self, question: str, dbname: str = "postgres") -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while self.execute(question, dbname) is not True:
            assert time.monotonic() < deadline, question
            time.sleep(0.01)


def any_of(standbys: Sequence[Standby], dbname: str) -> str:
    """Return the connection string that names several, in this order."""
    each = [conninfo_to_dict(standby.url(dbname)) for standby in standbys]
    return make_conninfo(standbys[0].url(dbname), host=",".join(str(where["host"]) for where in each))


@contextlib.contextmanager
def standby_of(primary: EmbeddedPostgres, programs: Binaries | None = None, **options: str) -> Iterator[Standby]:
    """A running standby."""
    programs = programs or binaries()
    if not (programs.bin / "pg_basebackup").exists():
        pytest.skip(f"there is no pg_basebackup in {programs.bin}")
    # Not below the primary's directory, which may belong to another user. The path of a socket is short.
    directory = Path(tempfile.mkdtemp(prefix="sse-pg-standby-", dir="/tmp"))
    standby = Standby(primary, directory, programs)
    try:
        standby.make()
        standby.start(**options)
        yield standby
    finally:
        standby.stop(kill=True)
        shutil.rmtree(directory, ignore_errors=True)
