"""The statements and migrations, from the SQL files of the installed package or of the checkout."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple


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


class Migration(NamedTuple):
    """One step of the schema: ``sql/migrations/<number>_<name>.sql``."""

    number: int
    name: str
    text: bytes

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"

    @property
    def is_post(self) -> bool:
        """Whether this step removes what older servers use; the others are safe while those run."""
        return self.name.startswith("post_")


def migrations() -> list[Migration]:
    """Return the migrations in order. Each but the first says in its name when it may run: ``pre_`` or ``post_``."""
    found = []
    for file in (root() / "migrations").iterdir():
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            if number != "0001" and not re.match(r"(pre|post)_\w", name):
                raise ValueError(f"{file.name}: a migration is called NNNN_pre_<name>.sql or NNNN_post_<name>.sql")
            found.append(Migration(int(number), name, file.read_bytes()))
    found.sort()
    if [step.number for step in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations are numbered 1, 2, 3 ...; these are {', '.join(map(str, found))}")
    return found
