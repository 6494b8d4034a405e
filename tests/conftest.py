"""A real PostgreSQL a session, a template database with the schema, a clone of it a test."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support import cluster
from support.client import Client
from support.pgbouncer import Pooler, poolers
from support.server import Launcher

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres
from sse_pg.testing.bus import Bus

_numbers = itertools.count(1)

# A run in the background (nohup, a job of a script) ignores these, and so would every process that a test starts.
with contextlib.suppress(ValueError):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A machine that has much to do is slow; that is not what tests with made-up values look for.
hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tests")

HERE = Path(__file__).parent

#: Folders whose tests take long: they start browsers, package managers, programs of users, or many servers.
LONG = {"browser", "clients", "deploy", "docs", "embedded", "torture", "workers"}
#: Folders whose tests do everything in this process, unless they ask for a database. "" is this folder.
IN_PROCESS = {"", "api", "auth", "client", "core", "delivery", "http"}
#: Fixtures that start the PostgreSQL under test.
CLUSTERS = {"postgres", "cluster"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not read, for the smallest size, folders without a test of it: that takes longer than many of the tests."""
    other = collection_path.parent == HERE and collection_path.is_dir() and collection_path.name not in IN_PROCESS
    return True if other and config.option.markexpr == "seconds" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the sizes of CONTRIBUTING.md. What takes long begins first, since the run waits for what begins last."""
    for item in items:
        parts = item.path.relative_to(HERE).parts
        folder = parts[0] if len(parts) > 1 else ""
        if folder in LONG:
            item.add_marker("long")
        if item.get_closest_marker("long"):
            continue
        item.add_marker("minutes")
        if CLUSTERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("oldest")
        elif folder in IN_PROCESS:
            item.add_marker("seconds")
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this session's own."""
    with cluster.throwaway(max_connections="200", max_prepared_transactions="10") as server:
        yield server


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
    _admin(postgres, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield make_conninfo(postgres.url, dbname=name)
    _admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def sse_pg_database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """The database of the test kit (sse_pg.testing), so that it starts no PostgreSQL of its own."""
    _admin(postgres, f"CREATE DATABASE bus_of_the_kit TEMPLATE {template} STRATEGY file_copy")
    yield make_conninfo(postgres.url, dbname="bus_of_the_kit")
    _admin(postgres, "DROP DATABASE bus_of_the_kit WITH (FORCE)")


@pytest.fixture
async def kit_client(sse_pg_bus: Bus) -> AsyncIterator[Client]:
    """A client of the test kit's server, which many tests share: for those that only send requests."""
    async with Client(sse_pg_bus.url) as made:
        yield made


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database of this test's own, without the schema."""
    name = f"empty_{next(_numbers)}"
    _admin(postgres, f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy")
    yield make_conninfo(postgres.url, dbname=name)
    _admin(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    """A plain autocommit connection, as psql would have it."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        yield conn


@pytest.fixture
def pooler(database_url: str) -> Iterator[Pooler]:
    """Start PgBouncers in front of this test's database. Ask for it before servers, so that it outlives them."""
    with poolers(database_url) as start:
        yield start


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
