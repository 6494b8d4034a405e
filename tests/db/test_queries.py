"""How the files of sql/queries become statements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sse_pg.db import queries


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder sql/queries of its own."""
    monkeypatch.setattr(queries, "root", lambda: tmp_path)
    queries.statements.cache_clear()
    (tmp_path / "queries").mkdir()
    yield tmp_path / "queries"
    queries.statements.cache_clear()


def test_a_statement_keeps_its_comment(folder: Path) -> None:
    (folder / "a.sql").write_text("-- name: one\n-- Why.\nSELECT 1,\n\n  2\n\n-- name: two\nSELECT 2\n")
    assert queries.statements() == {"one": b"-- Why.\nSELECT 1,\n\n  2", "two": b"SELECT 2"}
    assert queries.query("two") == b"SELECT 2"


def test_an_unknown_name(folder: Path) -> None:
    (folder / "a.sql").write_text("-- name: one\nSELECT 1\n")
    with pytest.raises(KeyError, match="two"):
        queries.query("two")


def test_a_name_that_is_taken(folder: Path) -> None:
    (folder / "a.sql").write_text("-- name: one\nSELECT 1\n")
    (folder / "b.sql").write_text("-- name: one\nSELECT 1\n")
    with pytest.raises(ValueError, match="the name one is taken"):
        queries.query("one")


@pytest.mark.parametrize("text", ["SELECT 0\n-- name: one\nSELECT 1\n", "-- nme: one\nSELECT 1\n"])
def test_text_before_the_first_name(folder: Path, text: str) -> None:
    (folder / "a.sql").write_text(text)
    with pytest.raises(ValueError, match=r"a\.sql: there is text before the first name"):
        queries.query("one")
