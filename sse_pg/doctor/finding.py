"""The result of one check of ``sse-pg doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Maximum number of things that a finding names one by one.
MAX_NAMED = 5

State = Literal["ok", "warning", "error", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    ``unchecked`` means that the check could not be made, for example because the role lacks a right. ``fix`` says in
    words what to do; ``sql`` holds statements that do it, to be run by the owner of the schema.
    """

    name: str
    state: State
    found: str
    fix: str = ""
    sql: tuple[str, ...] = ()


def ok(name: str, found: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(name, "ok", found)


def warning(name: str, found: str, fix: str, *sql: str) -> Finding:
    """Return a finding about something that works now, but may stop working."""
    return Finding(name, "warning", found, fix, _without_empty(sql))


def error(name: str, found: str, fix: str, *sql: str) -> Finding:
    """Return a finding because of which the bus does not do what it promises."""
    return Finding(name, "error", found, fix, _without_empty(sql))


def unchecked(name: str, why: str, fix: str = "", *sql: str) -> Finding:
    """Return the finding of a check that could not be made."""
    return Finding(name, "unchecked", why, fix, _without_empty(sql))


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many others there are."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _without_empty(sql: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(statement for statement in sql if statement)
