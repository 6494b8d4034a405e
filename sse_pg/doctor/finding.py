"""What one check of ``sse-pg doctor`` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "error", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    ``unchecked``: it could not be looked at, for want of rights, say. ``mend`` is what to do, in words; ``sql`` are
    statements that do it, for whoever owns the schema.
    """

    name: str
    state: State
    found: str
    mend: str = ""
    sql: tuple[str, ...] = ()


def ok(name: str, found: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(name, "ok", found)


def warning(name: str, found: str, mend: str, *sql: str) -> Finding:
    """Return a finding that works now, and may not later."""
    return Finding(name, "warning", found, mend, _given(sql))


def error(name: str, found: str, mend: str, *sql: str) -> Finding:
    """Return a finding with which the bus does not do what it promises."""
    return Finding(name, "error", found, mend, _given(sql))


def unchecked(name: str, why: str, mend: str = "", *sql: str) -> Finding:
    """Return a finding about which nothing is known."""
    return Finding(name, "unchecked", why, mend, _given(sql))


def _given(sql: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(statement for statement in sql if statement)
