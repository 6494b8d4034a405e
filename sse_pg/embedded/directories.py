"""The directories of the embedded PostgreSQL: where they are, who may enter them."""

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
SOCKET_BYTES = 100


def default_data_dir() -> Path:
    """Return where the data lives unless told otherwise: the system's place for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/sse-pg")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "sse-pg"
    # The specification of XDG says to ignore a relative path.
    given = os.environ.get("XDG_DATA_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".local" / "share") / "sse-pg"


def socket_dir(data_dir: Path, uid: int) -> Path:
    """Return the directory of the socket, in the data directory when its path is short enough."""
    inside = data_dir / "run"
    if len(os.fsencode(inside / SOCKET)) < SOCKET_BYTES:
        return inside
    # Not TMPDIR: it is long on macOS, and another terminal may have another one.
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(f"/tmp/sse-pg-{uid}-{name}")  # noqa: S108  its owner and mode are checked


def is_private(directory: Path, uid: int) -> bool:
    """Tell whether this is a real directory that belongs to a user and is closed to all others."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077


def refuse_unreachable(data_dir: Path, account: Account) -> None:
    """Raise when the user cannot get to the data directory; what is not there yet is made later."""
    there = [str(place) for place in (*reversed(data_dir.parents), data_dir) if place.is_dir()]
    script = 'for place; do test -x "$place" || { printf %s "$place"; exit 0; }; done'
    closed = account.output(["/bin/sh", "-c", script, "sh", *there])
    if closed:
        raise EmbeddedError(
            f"{closed} is closed to {account.name}, which PostgreSQL runs as, so the data cannot be in "
            f"{data_dir}; give another --data-dir"
        )


def make_data_dir(data_dir: Path) -> None:
    """Make the data directory and what is missing above it."""
    root = os.geteuid() == 0
    missing = [place for place in (data_dir, *data_dir.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        # The system user has to pass through what root makes, whatever root's umask is.
        if root or place == data_dir:
            place.chmod(0o755 if root else 0o700)


def make_private(directory: Path, account: Account) -> None:
    """Make a directory that only the user can enter, or take the one that is there if it is such."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        account.own(directory)
    if is_private(directory, os.geteuid()):
        # Made by a start that was killed before it gave the directory away.
        account.own(directory)
    if not is_private(directory, account.uid):
        raise EmbeddedError(f"{directory} is not a private directory of {account.name or 'yours'}; remove it")
