"""docs/erasure.md, and the part of docs/retention.md about single channels, as a reader does what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.cluster import directory
from support.pages import Page, Reader

pytestmark = pytest.mark.oldest
ERASURE, RETENTION = Page("docs/erasure.md"), Page("docs/retention.md")


@pytest.fixture
def home() -> Iterator[Path]:
    with directory() as made:
        yield made


def test_the_page_about_erasing(home: Path, database_url: str, db: psycopg.Connection) -> None:
    assert Reader(home, database_url, DATABASE_URL=database_url).follow(ERASURE) == []
    assert db.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (0,)


def test_a_channel_with_its_own_retention(home: Path, database_url: str, db: psycopg.Connection) -> None:
    (block,) = [text for kind, text in RETENTION.blocks if kind == "sql" and "sse_pg.keep" in text]
    begin, look, end = [f"{statement};" for statement in block.rstrip().rstrip(";").split(";\n")]
    reader = Reader(home, database_url)
    reader.execute(begin)
    assert [row[0] for row in db.execute(look.encode())] == ["codes"]
    reader.execute(end)
    assert db.execute(look.encode()).fetchall() == []
