"""The plans that PostgreSQL used for a statement and for the queries of the functions that it calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import errors

from sse_pg.db.queries import query


def nodes(db: psycopg.Connection, name: str, params: Any) -> list[dict[str, Any]]:
    """Run one of our statements, and return the nodes of all plans that this took, with what they really read.

    auto_explain reports them, because EXPLAIN does not look into functions.
    """
    db.execute("LOAD 'auto_explain'")
    for setting, value in (
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_nested_statements", "on"),
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_timing", "off"),
        ("auto_explain.log_format", "json"),
        ("client_min_messages", "log"),
    ):
        db.execute("SELECT set_config(%s, %s, false)", (setting, value))
    reported: list[str] = []

    def note(notice: errors.Diagnostic) -> None:
        reported.append(notice.message_primary or "")

    db.add_notice_handler(note)
    try:
        db.execute(query(name), params, prepare=True)
    finally:
        db.remove_notice_handler(note)
        db.execute("SET client_min_messages = notice")
    plans = [json.loads(text[text.index("{") :])["Plan"] for text in reported if "plan:" in text]
    assert plans, "auto_explain reported nothing"
    return [node for plan in plans for node in _nodes(plan)]


def scans(db: psycopg.Connection, name: str, params: Any) -> list[dict[str, Any]]:
    """Run one of our statements, and return the nodes that read the log."""
    return [node for node in nodes(db, name, params) if relation(node).startswith("events")]


def relation(node: dict[str, Any]) -> str:
    """Return the table that a node reads, or nothing."""
    return str(node.get("Relation Name", ""))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)
