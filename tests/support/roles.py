"""Logins with the documented rights, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from support.process import CHECKOUT

#: What the pages call these logins, and what each has. A grant of the bus has to be one that a page documents.
KINDS = {
    "publisher": ("sse_pg_publisher",),
    "writer": ("sse_pg_publisher", "INSERT (channel, event_type, payload, headers) ON sse_pg.events"),
    "subscriber": ("sse_pg_subscriber",),
    "both": ("sse_pg_publisher", "sse_pg_subscriber"),
    "reader and writer": (
        "sse_pg_publisher",
        "sse_pg_subscriber",
        "INSERT (channel, event_type, payload, headers) ON sse_pg.events",
    ),
    "server": ("sse_pg_server",),
    "monitor": ("sse_pg_server", "pg_monitor"),
    "revoker": ("sse_pg_publisher", "EXECUTE ON FUNCTION sse_pg.revoke"),
    "eraser": ("sse_pg_publisher", "EXECUTE ON FUNCTION sse_pg.erase"),
}
Logins = Callable[[str], str]


@contextmanager
def logins(url: str, admin: str) -> Iterator[Logins]:
    """Make the group roles, and logins of these kinds; each may make tables of its own.

    ``url`` is that of an owner who may create roles; ``admin`` is a superuser, who removes the logins and all they own.
    """
    made: list[sql.Identifier] = []
    with psycopg.connect(url, autocommit=True) as db:
        db.execute((CHECKOUT / "sql" / "roles.sql").read_bytes())

        def make(kind: str) -> str:
            name = f"{kind.split(maxsplit=1)[0]}_{uuid4().hex[:12]}"
            login = sql.Identifier(name)
            db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(login))
            made.append(login)
            for right in (*KINDS[kind], "CREATE ON SCHEMA public"):
                db.execute(sql.SQL("GRANT {} TO {}").format(sql.SQL(right), login))
            return make_conninfo(url, user=name)

        yield make
    with psycopg.connect(make_conninfo(url, user=admin), autocommit=True) as db:
        for login in made:
            db.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(login))
            db.execute(sql.SQL("DROP ROLE {}").format(login))
