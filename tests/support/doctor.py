"""What the tests of ``sse-pg doctor`` share: its findings, and fixing what it finds with its own statements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg

from sse_pg.config import Settings
from sse_pg.doctor.examine import examine
from sse_pg.doctor.finding import Finding


async def report(url: str, *, old: float = 60.0, **settings: Any) -> list[Finding]:
    """Return all findings."""
    return [finding async for finding in examine(Settings(database_url=url, **settings), old=old)]


async def found(name: str, url: str, **options: Any) -> list[Finding]:
    """Return the findings of one name; there is always one."""
    findings = [finding for finding in await report(url, **options) if finding.name == name]
    assert findings, f"there is no finding about {name}"
    return findings


async def one(name: str, url: str, **options: Any) -> Finding:
    """Return the one finding of a name."""
    (finding,) = await found(name, url, **options)
    return finding


def apply_fixes(db: psycopg.Connection, findings: Iterable[Finding]) -> None:
    """Run the statements of the findings."""
    statements = [statement for finding in findings for statement in finding.sql]
    assert statements, "no statement is given that fixes it"
    for statement in statements:
        db.execute(statement)  # type: ignore[arg-type]
