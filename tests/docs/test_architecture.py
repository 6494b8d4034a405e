"""architecture.md: its walks are what happens, its files exist, its table of imports is the one that is enforced."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psycopg
import pytest
from support.client import Client
from support.pages import Page
from support.process import CHECKOUT
from support.server import Launcher
from test_house import MAY_IMPORT

ARCHITECTURE = Page("docs/architecture.md")
Call = tuple[str, str]


def walk(heading: str) -> list[Call]:
    """Return the (file, function) of each step of a walk."""
    section = ARCHITECTURE.text.partition(f"## {heading}")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w/.]+)` \| (`.*?`) \|", section, re.M)
    return [(file, name) for file, names in rows for name in re.findall(r"`([\w.]+)`", names)]


@contextmanager
def followed() -> Iterator[set[Call]]:
    """Collect the functions of the package that this thread calls."""
    called: set[Call] = set()
    root = f"{CHECKOUT}/"

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(f"{root}sse_pg/"):
            called.add((frame.f_code.co_filename.removeprefix(root), frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)


def not_called(steps: list[Call], called: set[Call]) -> list[Call]:
    return [(file, name) for file, name in steps if file.endswith(".py") and (file, name) not in called]


async def test_the_walks_are_what_happens(launch: Launcher, db: psycopg.Connection) -> None:
    publish, replay = walk("A publish, file by file"), walk("A replay, file by file")
    assert min(len(publish), len(replay)) > 15
    server = await launch(ring_events=3)
    async with Client(server.url) as client:
        async with client.stream("a") as stream:
            with followed() as called:
                with db.transaction(force_rollback=True):
                    db.execute("SELECT sse_pg.publish('a', 'message', '0')")
                await client.publish("a", 1)
                event = await stream.event()
        assert not_called(publish, called) == []
        for number in range(2, 12):
            await client.publish("a", number)
        with followed() as called:
            async with client.stream("a", last_event_id=event.id) as stream:
                assert [each.json() for each in await stream.events(10)] == list(range(2, 12))
                await client.publish("a", "live")
                assert (await stream.event()).json() == "live"
        assert not_called(replay, called) == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        step
        for heading in ("A publish", "A replay")
        for step in walk(f"{heading}, file by file")
        if step[0][-3:] == "sql"
    ],
)
def test_the_statements_of_the_walks_exist(file: str, name: str) -> None:
    text = (CHECKOUT / file).read_text(encoding="utf-8")
    assert name in re.findall(r"^(?:-- name: |CREATE FUNCTION sse_pg\.)(\w+)", text, re.M)


def test_the_table_of_imports_is_the_one_that_is_enforced() -> None:
    section = ARCHITECTURE.text.partition("| room | may import |")[2].partition("\n\n")[0]
    shown = {
        room: "*" if imports == "every room" else " ".join(re.findall(r"`(\w+)`", imports))
        for room, imports in re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M)
    }
    assert shown == MAY_IMPORT


@pytest.mark.parametrize("path", ["docs/architecture.md", "docs/guarantee.md", "docs/decisions.md", "CONTRIBUTING.md"])
def test_the_files_that_are_named_exist(path: str) -> None:
    named = re.findall(r"`((?:sse_pg|sql|tests|docs)/[\w/.-]+)`", Page(path).text)
    assert named
    assert [each for each in named if not (CHECKOUT / each).exists()] == []
