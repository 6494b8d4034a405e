"""Logins for the programs of the pages, which need no superuser."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from support.roles import Logins, logins

from sse_pg.embedded import EmbeddedPostgres


@pytest.fixture
def login(database_url: str, postgres: EmbeddedPostgres) -> Iterator[Logins]:
    """Make logins of this test's database: ``login("publisher")`` returns a connection string."""
    with logins(database_url, psycopg.conninfo.conninfo_to_dict(postgres.url)["user"]) as make:
        yield make


@pytest.fixture
def publisher_url(login: Logins) -> str:
    """What a program gets that publishes, and has tables of its own."""
    return login("publisher")
