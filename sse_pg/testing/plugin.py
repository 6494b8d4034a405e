"""The fixtures, for pytest. Everything else is imported when a test asks for one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import psycopg

    from sse_pg.testing.bus import Bus
    from sse_pg.testing.server import ThreadServer

#: A database of tests does not survive a crash of the machine, so nothing waits for the disk.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


@pytest.fixture(scope="session")
def sse_pg_database_url() -> Iterator[str]:
    """The connection string of the database that the bus is in: an embedded PostgreSQL of this session.

    Define a fixture of this name in your conftest.py to use a database of your own. Its events are deleted.
    """
    from sse_pg.embedded import EmbeddedPostgres

    # Not pytest's own directory: the path of a socket may have 107 bytes, and PostgreSQL may run as another user.
    directory = Path(tempfile.mkdtemp(prefix="sse-pg-")).resolve()
    directory.chmod(0o755)
    try:
        with EmbeddedPostgres(directory, options=NOT_DURABLE) as postgres:
            yield postgres.url
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def sse_pg_settings() -> dict[str, Any]:
    """The settings of the bus, by the names of sse_pg.Settings. Override it to require tokens, for example."""
    return {}


@pytest.fixture(scope="session")
def sse_pg_server(sse_pg_database_url: str, sse_pg_settings: dict[str, Any]) -> Iterator[ThreadServer]:
    """A server of that database, in a thread, for the whole session."""
    from sse_pg.config import Settings
    from sse_pg.db.migrate import migrate
    from sse_pg.testing.server import ThreadServer

    migrate(sse_pg_database_url)
    server = ThreadServer(Settings(database_url=sse_pg_database_url, drain=0.0, retry=0.02, **sse_pg_settings))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def sse_pg_connection(sse_pg_server: ThreadServer, sse_pg_database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the kit's own."""
    import psycopg

    with psycopg.connect(sse_pg_database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def sse_pg_bus(
    sse_pg_server: ThreadServer, sse_pg_connection: psycopg.Connection[Any], sse_pg_database_url: str
) -> Bus:
    """A bus without events, subscriptions and consumers."""
    from sse_pg.db import testing as statements
    from sse_pg.testing.bus import Bus

    if statements.empty(sse_pg_connection):
        sse_pg_server.forget()
    return Bus(sse_pg_database_url, sse_pg_server.url, sse_pg_connection)
