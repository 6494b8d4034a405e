"""The user that PostgreSQL runs as: this one, or a system user where this one is root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path

from sse_pg.embedded.program import output
from sse_pg.errors import EmbeddedError


@dataclass(frozen=True)
class Account:
    """A user that PostgreSQL may run as; ``drop`` when this process is root and has to become it."""

    uid: int
    gid: int
    name: str
    drop: bool

    def output(self, command: list[str]) -> str:
        """Return what a short command prints when this user runs it; empty when it fails."""
        return output(command, self.uid, self.gid) if self.drop else output(command)

    def own(self, directory: Path) -> None:
        """Give this user a directory that this process made."""
        if self.drop:
            os.chown(directory, self.uid, self.gid, follow_symlinks=False)


def account_for(cluster: Path) -> Account:
    """Return whom PostgreSQL runs as. It refuses to run as root, so root becomes a system user."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), "", drop=False)
    with contextlib.suppress(OSError):
        found = cluster.stat()
        # Whoever has the data keeps it, whatever users are added later.
        if found.st_uid != 0:
            return Account(found.st_uid, found.st_gid, f"user {found.st_uid}", drop=True)
    for name in ("postgres", "sse-pg"):
        entry = _user(name)
        if entry is not None:
            return entry
    entry = _make_user("sse-pg") or _user("nobody")
    if entry is None:
        raise EmbeddedError("PostgreSQL does not run as root; add a user named postgres, or set DATABASE_URL")
    return entry


def _user(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_uid, entry.pw_gid, f"user {name}", drop=True)


def _make_user(name: str) -> Account | None:
    """Make a system user without a home or a shell; None where that does not work."""
    for command in (
        ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
         "--shell", "/usr/sbin/nologin", name],
        ["adduser", "-S", "-D", "-H", "-h", "/nonexistent", "-s", "/sbin/nologin", name],
    ):  # fmt: skip
        if shutil.which(command[0]):
            output(command)
        entry = _user(name)
        if entry is not None:
            return entry
    return None
