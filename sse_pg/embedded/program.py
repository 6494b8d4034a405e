"""Runs short programs: returns their output, and the version of a PostgreSQL program."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path


def output(command: list[str], uid: int | None = None, gid: int | None = None) -> str:
    """Return what a short command prints, without the line end; an empty string if it fails."""
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


def version_of(program: Path) -> str:
    """Return the version that a program of PostgreSQL prints, such as ``18.6``; ``0`` if it prints none."""
    match = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)?)", output([str(program), "--version"]))
    return match[1] if match else "0"


def major_of(program: Path) -> int:
    """Return the major version of a program of PostgreSQL; 0 if it prints none."""
    return int(version_of(program).split(".")[0])
