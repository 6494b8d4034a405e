"""README.md does what it says: its commands are run, in order, and their output has the shape that is printed there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import directory
from support.pages import Page, Reader, syntax_errors
from support.process import CHECKOUT, process

README = Page("README.md")


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A data directory that the user PostgreSQL runs as gets to."""
    with directory() as made:
        yield made / "data"


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on this machine")
def test_the_commands_do_what_is_printed_below_them(data: Path) -> None:
    with process("serve", "--port", "0", SSE_PG_DATA_DIR=str(data)) as server:
        assert len(Reader.of(server, data).follow(README, server)) == 2
        assert server.end() == 0


@pytest.mark.parametrize("block", [text for kind, text in README.blocks if kind == "sh"])
def test_what_is_for_the_reader_s_machine_is_shell(block: str) -> None:
    assert syntax_errors(block) == ""


def test_every_block_is_of_a_known_kind() -> None:
    assert {kind for kind, _ in README.blocks} == {"sh", "console", "sql", "js", "text"}


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    (command,) = [text.strip() for kind, text in README.blocks if kind == "sh" and "pytest" in text]
    assert command in [line.strip() for line in (CHECKOUT / ".ci" / "run").read_text().split("\n")]
