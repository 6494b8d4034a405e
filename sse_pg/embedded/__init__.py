"""A PostgreSQL of one's own: found, started, and ended with the process that asked for it."""

from __future__ import annotations

from sse_pg.embedded.binaries import Binaries, find_binaries
from sse_pg.embedded.directories import default_data_dir
from sse_pg.embedded.postgres import EmbeddedPostgres
from sse_pg.embedded.postmaster import running

__all__ = ["Binaries", "EmbeddedPostgres", "default_data_dir", "find_binaries", "running"]
