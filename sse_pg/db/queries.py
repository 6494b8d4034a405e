"""The SQL files, from the installed package or from the checkout."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path


@cache
def root() -> Traversable:
    """Return the folder ``sql/``: inside an installed package it is ``sse_pg/sql``, in a checkout it stands beside."""
    inside = resources.files("sse_pg") / "sql"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "sql"


@cache
def statements() -> dict[str, bytes]:
    """Return the statements of ``sql/queries/*.sql`` by name; bytes, as psycopg takes constant queries.

    Each follows a line ``-- name: <name>`` and keeps its comment.
    """
    found: dict[str, bytes] = {}
    for file in (root() / "queries").iterdir():
        if file.name.endswith(".sql"):
            head, *parts = re.split(rb"^-- name: *(.*)\n", file.read_bytes(), flags=re.MULTILINE)
            if head.strip():
                raise ValueError(f"{file.name}: there is text before the first name")
            for name, text in zip(map(bytes.decode, parts[::2]), map(bytes.strip, parts[1::2]), strict=True):
                if name in found:
                    raise ValueError(f"{file.name}: the name {name} is taken")
                found[name] = text
    return found


def query(name: str) -> bytes:
    """Return the statement of this name."""
    return statements()[name]


def migrations() -> list[tuple[int, str, bytes]]:
    """Return (number, name, text) of each migration, in order."""
    found = []
    for entry in (root() / "migrations").iterdir():
        if entry.name.endswith(".sql"):
            number, _, name = entry.name.removesuffix(".sql").partition("_")
            found.append((int(number), name, entry.read_bytes()))
    return sorted(found)
