"""The embedded PostgreSQL of ``sse-pg serve`` without a database.

    <data dir>/postgres-18              the cluster; another major version gets another directory
    <data dir>/postgres-binaries-18.6   a copy of the programs, only if the account cannot reach those of root
    <data dir>/postgres.log             the log of PostgreSQL; postgres.log.1 is the one before
    <data dir>/run                      the unix socket, for the owner of the cluster only
    <data dir>/lock                     held while the server runs; contains the id of the process that started it

There is no TCP port. The server runs under ``guard.py``, which ends it when this process ends. Every error is an
EmbeddedError whose message is one line that says what to do.
"""

from __future__ import annotations

import functools
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from sse_pg.embedded.account import Account, account_for
from sse_pg.embedded.binaries import Binaries, find_binaries
from sse_pg.embedded.child import Child
from sse_pg.embedded.copy import runnable
from sse_pg.embedded.directories import (
    PORT,
    make_data_dir,
    make_private,
    refuse_unreachable,
    socket_dir,
)
from sse_pg.embedded.log import ServerLog, last_lines
from sse_pg.embedded.postmaster import (
    DATABASE,
    ROLE,
    STOP_TIMEOUT_S,
    clear_postmaster,
    in_use,
    postmaster,
    take_lock,
    url_of,
)
from sse_pg.embedded.program import major_of
from sse_pg.errors import EmbeddedError

#: How long the server may print nothing before it is ready.
MAX_SILENCE_S = 60.0

log = logging.getLogger(__name__)


class EmbeddedPostgres:
    """A PostgreSQL server that this process starts and stops.

    ``data_dir`` is created if it is missing, and is kept. ``options`` are PostgreSQL settings by name. Only the process
    that started the server stops it: in a fork, stop() does nothing.
    """

    def __init__(
        self, data_dir: Path, *, binaries: Binaries | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self.log = self.data_dir / "postgres.log"
        self._server_log = ServerLog(self.log)
        self._binaries = binaries
        self._options = dict(options or {})
        self._child: Child | None = None
        self._cluster = self.data_dir
        self._socket_dir = self.data_dir

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The URI of the database, for psycopg and psql."""
        self._running()
        return url_of(self._socket_dir)

    @property
    def psql(self) -> str:
        """The shell command that opens the database with psql."""
        return f"{shlex.quote(self._psql_program)} {shlex.quote(self.url)}"

    @property
    def pid(self) -> int:
        """The process id of PostgreSQL."""
        return self._running().pid

    def start(self) -> None:
        """Start the server; return when the database exists and accepts connections. Raises EmbeddedError."""
        if self._child is not None:
            raise in_use(self.data_dir, self._child.owner)
        try:
            self._start()
        except OSError as error:
            self.stop()
            raise EmbeddedError(
                f"{error.filename or self.data_dir} cannot be used: {error.strerror}; use another --data-dir"
            ) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut the server down, which closes its connections, and wait. Does nothing if it is not running."""
        if self._child is not None and self._child.owner == os.getpid():
            self._child.stop()
            # Only now, so that after an interrupt of the wait a second call can stop it.
            self._child = None

    def _start(self) -> None:
        binaries = self._binaries or find_binaries()
        self._cluster = self.data_dir / f"postgres-{binaries.major}"
        account = account_for(self._cluster)
        if account.drop:
            refuse_unreachable(self.data_dir, account)
        make_data_dir(self.data_dir)
        lock = take_lock(self.data_dir)
        try:
            self._clean_up()
            clear_postmaster(self.data_dir, self._cluster)
            self._binaries = binaries = runnable(binaries, account, self.data_dir)
            if not self._cluster.exists():
                self._warn_of_other_versions()
                self._initialise(binaries, account, lock)
            self._socket_dir = socket_dir(self.data_dir, account.uid)
            make_private(self._socket_dir, account)
            self._serve(binaries, account, lock)
        finally:
            # From here on, the guard holds the lock through its own descriptor.
            os.close(lock)

    def _clean_up(self) -> None:
        """Remove what killed starts left behind, and rotate the log."""
        for leftover in self.data_dir.glob("postgres-*.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._server_log.rotate()

    def _warn_of_other_versions(self) -> None:
        for other in self.data_dir.glob("postgres-*"):
            if (other / "PG_VERSION").exists():
                log.warning(
                    "%s was made by another version of PostgreSQL; starting with an empty %s", other, self._cluster
                )

    def _initialise(self, binaries: Binaries, account: Account, lock: int) -> None:
        """Create the cluster. It is renamed to its final name at the end, so no incomplete cluster has that name."""
        for locale in _locales(binaries.major):
            new = Path(tempfile.mkdtemp(prefix=self._cluster.name + ".new-", dir=self.data_dir))
            account.own(new)
            command = [
                str(binaries.bin / "initdb"), f"--pgdata={new}", f"--username={ROLE}", "--encoding=UTF8",
                "--auth-local=trust", "--auth-host=reject", "--no-instructions", *locale,
            ]  # fmt: skip
            before = self._server_log.size()
            try:
                if self._spawn(command, account, lock).wait() == 0:
                    new.rename(self._cluster)
                    _sync(self.data_dir)
                    return
            finally:
                self.stop()
                shutil.rmtree(new, ignore_errors=True)
            if "locale" not in self._server_log.since(before):
                break
        reason = last_lines(self._server_log.since(before))
        raise EmbeddedError(f"initdb fails: {reason} (the whole output is in {self.log})")

    def _serve(self, binaries: Binaries, account: Account, lock: int) -> None:
        settings = {
            "cluster_name": "sse-pg",
            "listen_addresses": "",
            **self._options,
            # After the options, because the URL, start() and running() rely on these.
            "logging_collector": "off",
            "log_destination": "stderr",
            "port": str(PORT),
            "unix_socket_directories": '"' + str(self._socket_dir).replace('"', '""') + '"',
            "unix_socket_permissions": "0700",
        }
        command = [str(binaries.bin / "postgres"), "-D", str(self._cluster)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while True:
            before = self._server_log.size()
            self._spawn(command, account, lock)
            if self._wait_until_ready(before):
                self._create_database()
                return
            output = self._server_log.since(before)
            self.stop()
            # The backends of a postmaster that was killed need a moment to exit.
            if "is still in use" not in output or time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL does not start: {last_lines(output)} (the whole log is {self.log})")
            time.sleep(0.2)

    def _spawn(self, command: list[str], account: Account, lock: int) -> Child:
        self._child = Child(command, self._cluster, account)
        self._child.start(self.log, lock)
        return self._child

    def _wait_until_ready(self, log_size: int) -> bool:
        """Wait until the server accepts connections; return False if it ends instead.

        Recovery after a crash may take long, but writes to the log, so the time limit is for silence.
        """
        child = self._running()
        size, quiet_since = log_size, time.monotonic()
        while not child.ended:
            found = postmaster(self._cluster)
            if found is not None and found.pid == child.pid and found.status == "ready":
                return True
            now = self._server_log.size()
            if now != size:
                size, quiet_since = now, time.monotonic()
            if time.monotonic() - quiet_since > MAX_SILENCE_S:
                raise EmbeddedError(f"PostgreSQL is not ready after {MAX_SILENCE_S:.0f} s; see {self.log}")
            time.sleep(0.02)
        return False

    def _create_database(self) -> None:
        try:
            url = url_of(self._socket_dir, "postgres")
            with psycopg.connect(url, autocommit=True, connect_timeout=30) as there:
                if not there.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                    there.execute(f'CREATE DATABASE "{DATABASE}"')
        except psycopg.Error as error:
            raise EmbeddedError(
                f"the database {DATABASE} cannot be created: {last_lines(str(error))} (see {self.log})"
            ) from error

    def _running(self) -> Child:
        if self._child is None:
            raise EmbeddedError("the embedded PostgreSQL is not running; call start() first")
        return self._child

    @functools.cached_property
    def _psql_program(self) -> str:
        """``psql`` if the shell finds one that is as new as the server, otherwise the path of the server's own."""
        beside = self._binaries.bin / "psql" if self._binaries else Path("psql")
        on_path = shutil.which("psql")
        if not beside.exists():
            return "psql"
        if on_path and major_of(Path(on_path)) >= major_of(beside):
            return "psql"
        return str(beside)


def _locales(major: int) -> Iterable[list[str]]:
    """Return the arguments for initdb to try in turn, so that texts are sorted alike on every machine."""
    if major >= 17:
        return [["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]]
    return [["--locale=C.UTF-8"], ["--locale=C"]]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
