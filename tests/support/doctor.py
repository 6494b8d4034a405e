"""What the tests of ``sse-pg doctor`` share: what it finds, and mending by its own words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg

from sse_pg.config import Settings
from sse_pg.doctor.examine import examine
from sse_pg.doctor.finding import Finding


async def report(url: str, *, old: float = 60.0, **settings: Any) -> list[Finding]:
    """Return everything that is found."""
    return [finding async for finding in examine(Settings(database_url=url, **settings), old=old)]


async def found(name: str, url: str, **options: Any) -> list[Finding]:
    """Return the findings of one name; there is always one."""
    findings = [finding for finding in await report(url, **options) if finding.name == name]
    assert findings, f"nothing is said of {name}"
    return findings


async def one(name: str, url: str, **options: Any) -> Finding:
    """Return the one finding of a name."""
    (finding,) = await found(name, url, **options)
    return finding


def mend(db: psycopg.Connection, findings: Iterable[Finding]) -> None:
    """Do what the findings say, by the statements they print."""
    statements = [statement for finding in findings for statement in finding.sql]
    assert statements, "no statement is given that mends it"
    for statement in statements:
        db.execute(statement)  # type: ignore[arg-type]
