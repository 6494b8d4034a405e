"""Each statement of the pages runs with the rights that the page says: nothing needs a superuser, little the owner."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.pages import Page, all_pages
from support.process import process
from support.roles import KINDS, Logins, logins

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres

pytestmark = pytest.mark.oldest
#: Who runs each of the blocks of a page, in order: a kind of login, or the owner of the schema, who is no superuser.
BLOCKS = {
    "README.md": "publisher",
    "docs/authorize.md": "owner revoker",
    "docs/consumers.md": "subscriber subscriber subscriber",
    "docs/ends.md": "publisher publisher",
    "docs/erasure.md": "eraser owner owner",
    "docs/frameworks/fastapi.md": "publisher",
    "docs/frameworks/sql.md": "writer writer writer",
    "docs/headers.md": "writer",
    "docs/operating.md": "owner owner server server subscriber server monitor server subscriber",
    "docs/retention.md": "owner owner",
    "docs/snapshots.md": "publisher",
    "docs/sql.md": "both writer both",
    "docs/start.md": "publisher",
    "docs/tables.md": "writer writer writer",
    "sse_pg/static/contract.md": "writer subscriber",
}
_numbers = itertools.count(1)


def sql_of(path: str) -> list[str]:
    return [text for kind, text in Page(path).blocks if kind == "sql"]


def statements(block: str) -> Iterator[str]:
    """Yield the statements of a block, each as psql would send it. Of a job for pg_cron, only what the job does."""
    if "cron.schedule" in block:
        yield block.split("$$")[1]
        return
    statement = ""
    for number, part in enumerate(block.split("$$")):
        pieces = part.split(";") if number % 2 == 0 else [part]
        for piece in pieces[:-1]:
            yield statement + piece
            statement = ""
        statement += pieces[-1] + "$$"
    assert not statement.removesuffix("$$").strip() or statement.strip().startswith("--"), statement


def test_the_table_has_every_page_and_block() -> None:
    found = {path: len(sql_of(path)) for path in [*all_pages(), "sse_pg/static/contract.md"]}
    assert {path: len(kinds.split()) for path, kinds in BLOCKS.items()} == {
        path: count for path, count in found.items() if count
    }, "BLOCKS has to say who runs a new block of SQL"


@pytest.fixture(scope="module")
def owner(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A role that may create databases and roles, but is no superuser."""
    name = f"owner_{uuid4().hex[:12]}"
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN CREATEDB CREATEROLE".encode())
        admin.execute(f"GRANT pg_monitor TO {name} WITH ADMIN OPTION".encode())
        for group in {right for rights in KINDS.values() for right in rights if right.startswith("sse_pg_")}:
            if not admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [group]).fetchall():
                admin.execute(f"CREATE ROLE {group} NOLOGIN".encode())
            admin.execute(f"GRANT {group} TO {name} WITH ADMIN OPTION".encode())
        yield name
        admin.execute(f"DROP ROLE {name}".encode())


@pytest.fixture(scope="module")
def owned_template(postgres: EmbeddedPostgres, owner: str) -> Iterator[str]:
    name = f"{owner}_bus"
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres", user=owner), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy".encode())
        migrate(make_conninfo(postgres.url, dbname=name, user=owner))
    yield name
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def owner_url(postgres: EmbeddedPostgres, owner: str, owned_template: str) -> Iterator[str]:
    name = f"{owner}_{next(_numbers)}"
    with psycopg.connect(make_conninfo(postgres.url, dbname="postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} OWNER {owner} TEMPLATE {owned_template} STRATEGY file_copy".encode())
        yield make_conninfo(postgres.url, dbname=name, user=owner)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def login(owner_url: str, postgres: EmbeddedPostgres) -> Iterator[Logins]:
    with logins(owner_url, psycopg.conninfo.conninfo_to_dict(postgres.url)["user"]) as make:
        yield make


@pytest.mark.parametrize("path", BLOCKS)
def test_the_statements_of_a_page(path: str, owner_url: str, login: Logins) -> None:
    kinds = BLOCKS[path].split()
    urls = {kind: login(kind) for kind in kinds if kind != "owner"} | {"owner": owner_url}
    table = next(statements(sql_of("README.md")[0]))
    assert "CREATE TABLE IF NOT EXISTS orders" in table
    with psycopg.connect(urls[max(kinds, key=lambda kind: kind != "owner")], autocommit=True) as conn:
        conn.execute(table.encode())
    if path == "docs/operating.md":
        with process("serve", "--port", "0", DATABASE_URL=urls["server"]) as server:
            assert server.url()
            run(path, kinds, urls)
            assert server.end() == 0
    else:
        run(path, kinds, urls)


def run(path: str, kinds: list[str], urls: dict[str, str]) -> None:
    for kind, block in zip(kinds, sql_of(path), strict=True):
        assert kind != "owner" or "owner" in Page(path).prose, "the page has to say that the owner does this"
        with psycopg.connect(urls[kind], autocommit=True) as conn:
            for statement in statements(block):
                if "TO STDOUT" in statement:
                    with conn.cursor().copy(statement.encode()) as copy:
                        assert len(list(copy)) == 3
                else:
                    conn.execute(statement.encode())
