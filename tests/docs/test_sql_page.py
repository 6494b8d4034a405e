"""docs/sql.md: it names everything in the schema as the schema itself does, and its examples run."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.process import CHECKOUT

PAGE = (CHECKOUT / "docs" / "sql.md").read_text(encoding="utf-8")
OBJECTS = """
    SELECT p.proname, obj_description(p.oid, 'pg_proc') FROM pg_proc p WHERE p.pronamespace = 'sse_pg'::regnamespace
     UNION ALL
    SELECT c.relname, obj_description(c.oid, 'pg_class') FROM pg_class c
     WHERE c.relnamespace = 'sse_pg'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
       AND (NOT c.relispartition OR c.relname = 'events_default')
     UNION ALL
    SELECT t.typname, obj_description(t.oid, 'pg_type') FROM pg_type t
     WHERE t.typnamespace = 'sse_pg'::regnamespace AND t.typtype = 'd'"""


def test_the_page_says_of_each_object_what_the_schema_says(db: psycopg.Connection) -> None:
    rows = re.findall(r"^\| `(\w+)[^`]*` \| (.+) \|$", PAGE, re.MULTILINE)
    assert len(rows) > 100
    assert sorted(rows) == sorted(db.execute(OBJECTS).fetchall())


@pytest.fixture
def login(db: psycopg.Connection, database_url: str) -> Iterator[str]:
    """A login with the roles of a publisher and of a subscriber, and the one grant more for a raw INSERT."""
    db.execute((CHECKOUT / "sql" / "roles.sql").read_bytes())
    name = f"reader_of_{db.info.dbname}"
    db.execute(f"CREATE ROLE {name} LOGIN IN ROLE sse_pg_publisher, sse_pg_subscriber")  # type: ignore[arg-type]
    db.execute(f"GRANT INSERT (channel, event_type, payload, headers) ON sse_pg.events TO {name}")  # type: ignore[arg-type]
    yield make_conninfo(database_url, user=name)
    db.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")  # type: ignore[arg-type]


def test_each_example_runs_as_the_documented_roles(login: str, db: psycopg.Connection) -> None:
    statements = [
        statement
        for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
        for statement in block.split(";\n")
        if statement.strip()
    ]
    assert len(statements) > 10
    copied: list[bytes] = []
    with psycopg.connect(login, autocommit=True) as conn, conn.cursor() as cursor:
        for statement in statements:
            if statement.startswith("COPY"):
                with cursor.copy(statement.encode()) as copy:
                    copied = [bytes(line) for line in copy]
                with cursor.copy("COPY sse_pg.events (channel, event_type, payload) FROM STDIN") as copy:
                    for line in copied:
                        copy.write(line)
            else:
                cursor.execute(statement.encode())
    assert len(copied) == 3
    items = db.execute("SELECT payload ->> 'item' FROM sse_pg.events WHERE channel = 'orders' ORDER BY id").fetchall()
    assert [item for (item,) in items] == ["book", "book", "book", None, "lamp", "pen", "1", "2", "3"]
    assert db.execute("SELECT channels FROM sse_pg.consumers WHERE name = 'mailer'").fetchone() == (["orders"],)
