"""The directories of the embedded PostgreSQL: their paths, owners and modes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from pathlib import Path

from sse_pg.embedded.account import Account
from sse_pg.errors import EmbeddedError

PORT = 5432
SOCKET = f".s.PGSQL.{PORT}"
#: Paths of Unix sockets are limited to about this length, depending on the system.
MAX_SOCKET_PATH_BYTES = 100


def default_data_dir() -> Path:
    """Return the default data directory: one of the system for root, otherwise one of the user."""
    if os.geteuid() == 0:
        return Path("/var/lib/sse-pg")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "sse-pg"
    # The XDG specification says to ignore a relative path.
    given = os.environ.get("XDG_DATA_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".local" / "share") / "sse-pg"


def socket_dir(data_dir: Path, uid: int) -> Path:
    """Return the directory of the socket: in the data directory, if that path is short enough."""
    inside = data_dir / "run"
    if len(os.fsencode(inside / SOCKET)) < MAX_SOCKET_PATH_BYTES:
        return inside
    # Not TMPDIR: it is long on macOS, and can differ between terminals.
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(f"/tmp/sse-pg-{uid}-{name}")  # noqa: S108  its owner and mode are checked


def is_private(directory: Path, uid: int) -> bool:
    """Return whether this is a directory, not a link, that belongs to a user and that nobody else can enter."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077


def refuse_unreachable(data_dir: Path, account: Account) -> None:
    """Raise if the account cannot enter an existing directory on the path to the data directory."""
    existing = [str(path) for path in (*reversed(data_dir.parents), data_dir) if path.is_dir()]
    script = 'for path; do test -x "$path" || { printf %s "$path"; exit 0; }; done'
    closed = account.output(["/bin/sh", "-c", script, "sh", *existing])
    if closed:
        raise EmbeddedError(
            f"{account.name}, which PostgreSQL runs as, cannot enter {closed}, so the data cannot be in {data_dir}; "
            "use another --data-dir"
        )


def make_data_dir(data_dir: Path) -> None:
    """Create the data directory and its missing parents."""
    root = os.geteuid() == 0
    missing = [path for path in (data_dir, *data_dir.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        # The account of PostgreSQL has to pass through the directories that root creates, whatever root's umask is.
        if root or path == data_dir:
            path.chmod(0o755 if root else 0o700)


def make_private(directory: Path, account: Account) -> None:
    """Create a directory that only the account can enter, or accept the existing one if it is like that."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        account.own(directory)
    if is_private(directory, os.geteuid()):
        # A start was killed after it had created the directory and before it changed the owner.
        account.own(directory)
    if not is_private(directory, account.uid):
        raise EmbeddedError(f"{directory} is not a private directory of {account.name or 'this user'}; remove it")
