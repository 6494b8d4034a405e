"""The log file of PostgreSQL and of initdb."""

from __future__ import annotations

import contextlib
from pathlib import Path

LOG_BYTES = 10 * 1024 * 1024
TAIL_BYTES = 16 * 1024


class ServerLog:
    """A file that programs append to; a size of it marks where one of them began to speak."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size(self) -> int:
        """Return how many bytes there are; 0 where there is no file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def since(self, size: int) -> str:
        """Return what the log got since it had a size, at most its last 16 KiB."""
        with self.path.open("rb") as there:
            there.seek(max(size, self.size() - TAIL_BYTES))
            return there.read().decode(errors="replace")

    def put_aside(self) -> None:
        """Rename a log that is large, so that it does not grow for ever; the one before goes."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size > LOG_BYTES:
                self.path.replace(self.path.with_name(self.path.name + ".1"))


def last_lines(text: str) -> str:
    """Return the last lines of a text as one."""
    return " | ".join(line.strip() for line in text.strip().splitlines()[-4:]) or "it says nothing"
