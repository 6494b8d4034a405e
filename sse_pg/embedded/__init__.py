"""A private PostgreSQL server: finds the programs, starts it, and stops it with the process that started it."""

from __future__ import annotations

from sse_pg.embedded.binaries import Binaries, find_binaries
from sse_pg.embedded.directories import default_data_dir
from sse_pg.embedded.postgres import EmbeddedPostgres
from sse_pg.embedded.postmaster import running

__all__ = ["Binaries", "EmbeddedPostgres", "default_data_dir", "find_binaries", "running"]
