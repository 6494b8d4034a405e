"""architecture.md and CONTRIBUTING.md name files and functions that exist, and the table of imports that is enforced."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from support.pages import Page
from support.process import CHECKOUT
from test_house import MAY_IMPORT

ARCHITECTURE = Page("docs/architecture.md")
STEPS = re.findall(r"^\| `([\w/.]+\.(?:py|sql))` \| (`.*?`) \|", ARCHITECTURE.text, re.M)


@cache
def functions(path: str) -> set[str]:
    """The functions of a Python file, methods as ``Class.method``; the statements and functions of an SQL file."""
    text = (CHECKOUT / path).read_text(encoding="utf-8")
    if path.endswith(".sql"):
        return set(re.findall(r"^(?:-- name: |CREATE FUNCTION sse_pg\.)(\w+)", text, re.M))
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{each.name}"
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


def test_the_walks_are_long_enough_to_be_walks() -> None:
    assert len(STEPS) > 25


@pytest.mark.parametrize(("path", "names"), STEPS)
def test_a_step_is_in_its_file(path: str, names: str) -> None:
    assert set(re.findall(r"`([\w.]+)`", names)) <= functions(path)


def test_the_table_of_imports_is_the_one_that_is_enforced() -> None:
    section = ARCHITECTURE.text.partition("| room | may import |")[2].partition("\n\n")[0]
    shown = {
        room: "*" if imports == "every room" else " ".join(re.findall(r"`(\w+)`", imports))
        for room, imports in re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M)
    }
    assert shown == MAY_IMPORT


@pytest.mark.parametrize("path", ["docs/architecture.md", "docs/guarantee.md", "docs/decisions.md"])
def test_the_files_that_are_named_exist(path: str) -> None:
    named = re.findall(r"`((?:sse_pg|sql|tests|docs)/[\w/.-]+)`", Page(path).text)
    assert named
    assert [each for each in named if not (CHECKOUT / each).exists()] == []
