"""The database of a command: the configured one or the embedded one, and a pool of connections to it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Iterator

import psycopg

from sse_pg import embedded, logs
from sse_pg.cli import signals
from sse_pg.config import Settings, has_database
from sse_pg.db.connect_failure import cause_of
from sse_pg.db.connection import summary
from sse_pg.db.hosts import parameters
from sse_pg.db.pool import Pool, make_pool
from sse_pg.db.pooler import shares_backends
from sse_pg.errors import BusUnavailable, EmbeddedError


@contextlib.contextmanager
def started(settings: Settings) -> Iterator[Settings]:
    """Return settings with a database. If none is configured, start the embedded one, and stop it after the block."""
    if has_database(settings, os.environ):
        yield settings
        return
    forget_libpq_variables()
    directory = settings.data_dir or embedded.default_data_dir()
    binaries = embedded.find_binaries(settings.postgres_bin)
    postgres = embedded.EmbeddedPostgres(directory, binaries=binaries)
    signals.hold_after_first()
    try:
        postgres.start()
        logs.say(f"PostgreSQL {binaries.major} ({binaries.origin}) with its data in {directory}")
        logs.say(f"reach it with: {postgres.psql}")
        yield dataclasses.replace(settings, database_url=postgres.url)
    finally:
        signals.hold()
        postgres.stop()


def running(settings: Settings) -> Settings:
    """Return settings with a database: the configured one, or the embedded one that is running."""
    if has_database(settings, os.environ):
        return settings
    forget_libpq_variables()
    directory = settings.data_dir or embedded.default_data_dir()
    url = embedded.running(directory)
    if url is None:
        raise EmbeddedError(
            f"no embedded PostgreSQL is running in {directory}: start it with `sse-pg serve`, or set "
            "DATABASE_URL to your database"
        )
    return dataclasses.replace(settings, database_url=url)


def forget_libpq_variables() -> None:
    """Remove libpq's variables from the environment, because they are not meant for the embedded PostgreSQL.

    A URL does not override all of them: with PGHOSTADDR, connections would lead to another server. The workers inherit
    the environment.
    """
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


@contextlib.asynccontextmanager
async def open_pool(settings: Settings, size: int) -> AsyncIterator[Pool]:
    """Open a pool. Raises BusUnavailable with the reason if the database is unavailable; a pool would only time out."""
    logs.configure("error", "text")
    try:
        conn = await psycopg.AsyncConnection.connect(
            settings.database_url or "",
            connect_timeout=10,
            autocommit=True,
            prepare_threshold=None,
            **parameters(settings.database_url),
        )
    except psycopg.OperationalError as error:
        cause = cause_of(error)
        raise BusUnavailable(
            f"the database cannot be reached: {cause.reason} ({summary(error)}); {cause.fix}"
        ) from error
    try:
        behind_pooler = settings.listen_database_url is not None or await shares_backends(settings.database_url, conn)
    finally:
        await conn.close()
    async with make_pool(settings.database_url, size, settings.pool_timeout, behind_pooler=behind_pooler) as pool:
        yield pool
