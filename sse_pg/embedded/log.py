"""The log file of PostgreSQL and of initdb."""

from __future__ import annotations

import contextlib
from pathlib import Path

#: Size from which the log is renamed at the next start.
MAX_LOG_BYTES = 10 * 1024 * 1024
#: How much of the log is read for an error message.
MAX_EXCERPT_BYTES = 16 * 1024


class ServerLog:
    """A file that programs append to. The size before a program starts marks the beginning of its output."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size(self) -> int:
        """Return the size of the file, or 0 if there is none."""
        return self.path.stat().st_size if self.path.exists() else 0

    def since(self, size: int) -> str:
        """Return what was appended since the log had this size, at most the last 16 KiB."""
        with self.path.open("rb") as file:
            file.seek(max(size, self.size() - MAX_EXCERPT_BYTES))
            return file.read().decode(errors="replace")

    def rotate(self) -> None:
        """Rename a log that is too large, replacing the one that was renamed before."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size > MAX_LOG_BYTES:
                self.path.replace(self.path.with_name(self.path.name + ".1"))


def last_lines(text: str) -> str:
    """Return the last lines of a text as one line."""
    return " | ".join(line.strip() for line in text.strip().splitlines()[-4:]) or "it printed nothing"
