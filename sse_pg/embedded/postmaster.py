"""The server that runs on a data directory, and the lock that prevents a second one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sse_pg.embedded.directories import PORT, SOCKET, is_private
from sse_pg.embedded.program import output
from sse_pg.errors import EmbeddedError

DATABASE = "sse_pg"
ROLE = "postgres"
#: How long a server may take to stop: longer than the last step of ``guard.py``.
STOP_TIMEOUT_S = 25.0
#: How long a server whose owner has just ended may take to begin to stop.
STATUS_TIMEOUT_S = 2.0


def url_of(socket_dir: str | Path, database: str = DATABASE) -> str:
    """Return the URI of a database behind a socket."""
    return f"postgresql://{ROLE}@/{database}?host={quote(str(socket_dir), safe='')}&port={PORT}"


@dataclass(frozen=True)
class Postmaster:
    """The contents of ``postmaster.pid``."""

    pid: int
    socket_dir: str
    status: str


def postmaster(cluster: Path) -> Postmaster | None:
    """Return the contents of the cluster's pid file, or None if it is missing or incomplete."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        return Postmaster(int(lines[0]), lines[4] if len(lines) > 4 else "", "".join(lines[7:8]).strip())
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


def serves(pid: int, cluster: Path) -> bool:
    """Return whether a process is the PostgreSQL of this cluster, and not another that got the same id later."""
    if not _alive(pid):
        return False
    with contextlib.suppress(PermissionError):
        if Path("/proc/self/cwd").exists():
            try:
                return Path(f"/proc/{pid}/cwd").samefile(cluster)
            except FileNotFoundError:
                return False
    return "postgres" in output(["ps", "-p", str(pid), "-o", "comm="])


def running(data_dir: Path) -> str | None:
    """Return the URL of the embedded server that runs on a data directory, or None."""
    for cluster in data_dir.expanduser().resolve().glob("postgres-*"):
        found = postmaster(cluster)
        if found is None or found.status != "ready" or not serves(found.pid, cluster):
            continue
        if not is_private(Path(found.socket_dir), cluster.stat().st_uid):
            continue
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(f"{found.socket_dir}/{SOCKET}")
            return url_of(found.socket_dir)
    return None


def in_use(data_dir: Path, pid: object) -> EmbeddedError:
    """Return the error that says which process uses the data directory."""
    return EmbeddedError(
        f"{data_dir} is in use by process {pid}; use another --data-dir, or set DATABASE_URL to use its database"
    )


def take_lock(data_dir: Path) -> int:
    """Return a descriptor that holds the lock of the data directory. Raises if another process holds it."""
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
    """Lock a file. Wait for a guard whose owner was killed: it holds the lock until PostgreSQL is down."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        owner = os.pread(descriptor, 32, 0).decode().strip()
        if (owner.isdecimal() and _alive(int(owner))) or time.monotonic() > deadline:
            raise in_use(data_dir, owner or "unknown")
        time.sleep(0.05)


def clear_postmaster(data_dir: Path, cluster: Path) -> None:
    """Wait for a PostgreSQL that is shutting down, raise if one is running, remove a stale pid file."""
    start = time.monotonic()
    while (found := postmaster(cluster)) is not None and serves(found.pid, cluster):
        if time.monotonic() > start + (STOP_TIMEOUT_S if found.status == "stopping" else STATUS_TIMEOUT_S):
            raise in_use(data_dir, found.pid)
        time.sleep(0.05)
    # PostgreSQL would mistake any process of the same user with the old id for the old server.
    with contextlib.suppress(FileNotFoundError):
        (cluster / "postmaster.pid").unlink()
