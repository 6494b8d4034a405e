"""The SQL files, from the installed package or from the checkout."""

from __future__ import annotations

from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path


@cache
def root() -> Traversable:
    """Return the folder ``sql/``: inside an installed package it is ``sse_pg/sql``, in a checkout it stands beside."""
    inside = resources.files("sse_pg") / "sql"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "sql"


@cache
def query(name: str) -> bytes:
    """Return the text of ``sql/queries/<name>.sql``; bytes, as psycopg takes constant queries."""
    return (root() / "queries" / f"{name}.sql").read_bytes()


def migrations() -> list[tuple[int, str, bytes]]:
    """Return (number, name, text) of each migration, in order."""
    found = []
    for entry in (root() / "migrations").iterdir():
        if entry.name.endswith(".sql"):
            number, _, name = entry.name.removesuffix(".sql").partition("_")
            found.append((int(number), name, entry.read_bytes()))
    return sorted(found)
