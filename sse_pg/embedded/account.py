"""The account that PostgreSQL runs under: this user's, or another one if this process is root."""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from sse_pg.embedded.program import output
from sse_pg.errors import EmbeddedError

#: The accounts that root may run PostgreSQL under, the preferred one first.
ACCOUNTS_FOR_ROOT = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """An account that PostgreSQL can run under. ``drop``: this process is root and has to change to it."""

    uid: int
    gid: int
    name: str
    drop: bool

    def output(self, command: list[str]) -> str:
        """Return what a short command prints when this account runs it; an empty string if it fails."""
        return output(command, self.uid, self.gid) if self.drop else output(command)

    def own(self, directory: Path) -> None:
        """Make this account the owner of a directory that this process has created."""
        if self.drop:
            os.chown(directory, self.uid, self.gid, follow_symlinks=False)


def account_for(cluster: Path) -> Account:
    """Return the account for a cluster. PostgreSQL refuses to run as root, so root changes to an ordinary account."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), "", drop=False)
    with contextlib.suppress(OSError):
        found = cluster.stat()
        # The owner of existing data stays its owner, whatever accounts are added later.
        if found.st_uid != 0:
            return Account(found.st_uid, found.st_gid, f"user {found.st_uid}", drop=True)
    for name in ACCOUNTS_FOR_ROOT:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid, f"user {name}", drop=True)
    raise EmbeddedError(
        f"PostgreSQL does not run as root, and this machine has none of the users {', '.join(ACCOUNTS_FOR_ROOT)}; "
        "add a user named postgres, or set DATABASE_URL"
    )
