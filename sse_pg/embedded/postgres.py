"""A PostgreSQL of our own, for ``sse-pg serve`` without a database.

    <data dir>/postgres-18              the cluster; another major version gets another directory
    <data dir>/postgres-binaries-18.6   a copy of the binaries, only where root's own cannot be reached
    <data dir>/postgres.log             what PostgreSQL says; postgres.log.1 is the one before
    <data dir>/run                      the unix socket, for the owner of the cluster only
    <data dir>/lock                     held while the server runs; names the process that started it

There is no TCP port. The server is a child of ``guard.py``, which ends it when this process goes.
Every error is an EmbeddedError of one line that says what to do.
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
    LEAVING_SECONDS,
    ROLE,
    clear_postmaster,
    in_use,
    postmaster,
    take_lock,
    url_of,
)
from sse_pg.embedded.program import major_of
from sse_pg.errors import EmbeddedError

READY_SECONDS = 60.0

log = logging.getLogger(__name__)


class EmbeddedPostgres:
    """A PostgreSQL that runs for as long as this process wants it.

    ``data_dir`` is made when missing and kept; ``options`` are settings of PostgreSQL, by name. Only the
    process that started the server stops it: in a fork, stop() does nothing.
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
        """The line for a shell that opens the database with psql."""
        return f"{shlex.quote(self._psql_program)} {shlex.quote(self.url)}"

    @property
    def pid(self) -> int:
        """The process id of PostgreSQL."""
        return self._running().pid

    def start(self) -> None:
        """Start the server and return when the database is there. Raises EmbeddedError."""
        if self._child is not None:
            raise in_use(self.data_dir, self._child.owner)
        try:
            self._start()
        except OSError as error:
            self.stop()
            raise EmbeddedError(
                f"{error.filename or self.data_dir} cannot be used: {error.strerror}; give another --data-dir"
            ) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut the server down, which closes its connections, and wait; harmless when it is not running."""
        if self._child is not None and self._child.owner == os.getpid():
            self._child.stop()
            # Only now: an interrupt while waiting leaves a second call something to do.
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
            self._tidy()
            clear_postmaster(self.data_dir, self._cluster)
            self._binaries = binaries = runnable(binaries, account, self.data_dir)
            if not self._cluster.exists():
                self._say_other_versions()
                self._initialise(binaries, account, lock)
            self._socket_dir = socket_dir(self.data_dir, account.uid)
            make_private(self._socket_dir, account)
            self._serve(binaries, account, lock)
        finally:
            # The guard holds the lock from here on, through its own descriptor.
            os.close(lock)

    def _tidy(self) -> None:
        """Remove what killed starts left, and keep the log from growing for ever."""
        for leftover in self.data_dir.glob("postgres-*.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._server_log.put_aside()

    def _say_other_versions(self) -> None:
        for other in self.data_dir.glob("postgres-*"):
            if (other / "PG_VERSION").exists():
                log.warning("%s is of another version; starting with an empty %s", other, self._cluster)

    def _initialise(self, binaries: Binaries, account: Account, lock: int) -> None:
        """Make the cluster; all of it is there under its name, or nothing."""
        for locale in _locales(binaries.major):
            new = Path(tempfile.mkdtemp(prefix=self._cluster.name + ".new-", dir=self.data_dir))
            account.own(new)
            command = [
                str(binaries.bin / "initdb"), f"--pgdata={new}", f"--username={ROLE}", "--encoding=UTF8",
                "--auth-local=trust", "--auth-host=reject", "--no-instructions", *locale,
            ]  # fmt: skip
            said = self._server_log.size()
            try:
                if self._spawn(command, account, lock).wait() == 0:
                    new.rename(self._cluster)
                    _sync(self.data_dir)
                    return
            finally:
                self.stop()
                shutil.rmtree(new, ignore_errors=True)
            if "locale" not in self._server_log.since(said):
                break
        why = last_lines(self._server_log.since(said))
        raise EmbeddedError(f"initdb fails: {why} (all of it is in {self.log})")

    def _serve(self, binaries: Binaries, account: Account, lock: int) -> None:
        settings = {
            "cluster_name": "sse-pg",
            "listen_addresses": "",
            **self._options,
            # These are where the url points and where start() and running() look.
            "logging_collector": "off",
            "log_destination": "stderr",
            "port": str(PORT),
            "unix_socket_directories": '"' + str(self._socket_dir).replace('"', '""') + '"',
            "unix_socket_permissions": "0700",
        }
        command = [str(binaries.bin / "postgres"), "-D", str(self._cluster)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        deadline = time.monotonic() + LEAVING_SECONDS
        while True:
            said = self._server_log.size()
            self._spawn(command, account, lock)
            if self._wait_until_ready(said):
                self._make_database()
                return
            words = self._server_log.since(said)
            self.stop()
            # Backends of a postmaster that was killed need a moment to notice.
            if "is still in use" not in words or time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL does not start: {last_lines(words)} (all of it is in {self.log})")
            time.sleep(0.2)

    def _spawn(self, command: list[str], account: Account, lock: int) -> Child:
        self._child = Child(command, self._cluster, account)
        self._child.start(self.log, lock)
        return self._child

    def _wait_until_ready(self, said: int) -> bool:
        """Wait until the server takes connections; False when it ends instead.

        Recovery after a crash may be long, and speaks in the log: the time limit is for silence.
        """
        child = self._running()
        size, quiet_since = said, time.monotonic()
        while not child.ended:
            found = postmaster(self._cluster)
            if found is not None and found.pid == child.pid and found.status == "ready":
                return True
            now = self._server_log.size()
            if now != size:
                size, quiet_since = now, time.monotonic()
            if time.monotonic() - quiet_since > READY_SECONDS:
                raise EmbeddedError(f"PostgreSQL is not ready after {READY_SECONDS:.0f} s; see {self.log}")
            time.sleep(0.02)
        return False

    def _make_database(self) -> None:
        try:
            url = url_of(self._socket_dir, "postgres")
            with psycopg.connect(url, autocommit=True, connect_timeout=30) as there:
                if not there.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                    there.execute(f'CREATE DATABASE "{DATABASE}"')
        except psycopg.Error as error:
            raise EmbeddedError(
                f"the database {DATABASE} cannot be made: {last_lines(str(error))} (see {self.log})"
            ) from error

    def _running(self) -> Child:
        if self._child is None:
            raise EmbeddedError("the embedded PostgreSQL is not running; call start() first")
        return self._child

    @functools.cached_property
    def _psql_program(self) -> str:
        """``psql`` where a shell finds one that is as new as the server, else the one beside the server."""
        beside = self._binaries.bin / "psql" if self._binaries else Path("psql")
        on_path = shutil.which("psql")
        if not beside.exists():
            return "psql"
        if on_path and major_of(Path(on_path)) >= major_of(beside):
            return "psql"
        return str(beside)


def _locales(major: int) -> Iterable[list[str]]:
    """Return the arguments for initdb to try in turn: the same order of texts on every machine."""
    if major >= 17:
        return [["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]]
    return [["--locale=C.UTF-8"], ["--locale=C"]]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
