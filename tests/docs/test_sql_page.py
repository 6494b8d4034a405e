"""docs/sql.md: it names everything in the schema as the schema itself does, and its examples run."""

from __future__ import annotations

import re

import psycopg
from support.process import CHECKOUT
from support.roles import Logins

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


def test_the_examples_publish_and_read(login: Logins, db: psycopg.Connection) -> None:
    url = login("reader and writer")
    statements = [
        statement
        for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
        for statement in block.split(";\n")
        if statement.strip()
    ]
    assert len(statements) > 10
    copied: list[bytes] = []
    with psycopg.connect(url, autocommit=True) as conn, conn.cursor() as cursor:
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
