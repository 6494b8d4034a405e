"""The page about the test kit: its files, run by a pytest of their own, as a user's are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from support.pages import Page
from support.process import CHECKOUT, environment, left_behind

FILES = {
    found[1]: text
    for kind, text in Page("docs/testing.md").blocks
    if kind == "python" and (found := re.match(r"# (\w+\.py)\n", text))
}


def pytest_in(folder: Path, **variables: str) -> str:
    """Run pytest there, with the plugin as the wheel registers it, and return what it prints."""
    env = environment(**variables)
    if os.environ.get("SSE_PG_TEST_POSTGRES"):
        env["SSE_PG_POSTGRES_BIN"] = os.environ["SSE_PG_TEST_POSTGRES"]
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    if not registered():
        command += ["-p", "sse_pg.testing.plugin"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def registered() -> bool:
    """Tell whether the installed package has the entry point; a checkout that was installed before it has not."""
    from importlib.metadata import entry_points

    return any(each.value == "sse_pg.testing.plugin" for each in entry_points(group="pytest11"))


def test_the_files_of_the_page_pass(tmp_path: Path) -> None:
    for name in ("test_orders.py", "test_stream.py"):
        (tmp_path / name).write_text(FILES[name])
    before = {entry.name for entry in Path("/tmp").glob("sse-pg-*")}
    assert "3 passed" in pytest_in(tmp_path)
    made = {entry.name for entry in Path("/tmp").glob("sse-pg-*")} - before
    assert [left_behind(Path("/tmp") / name) for name in made] == [[] for _ in made]


def test_a_missing_event_fails_the_test_and_nothing_of_it_is_left(tmp_path: Path, empty_database_url: str) -> None:
    """In a database of the user's own, with what each test leaves behind."""
    (tmp_path / "conftest.py").write_text(FILES["conftest.py"])
    (tmp_path / "test_more.py").write_text("""
import asyncio
import urllib.request

import psycopg
import pytest


@pytest.mark.parametrize("turn", range(3))
def test_leaves_much(sse_pg_bus, turn):
    with psycopg.connect(sse_pg_bus.database_url) as conn:
        assert conn.execute("SELECT count(*) FROM sse_pg.subscriptions").fetchone() == (0,)
        conn.execute("SELECT sse_pg.subscribe('42', 'orders')")
        conn.execute("SELECT sse_pg.publish('orders', 'message', '1', 'the same key')")
        conn.execute("SELECT sse_pg.consume('mail', '{orders}')")
    assert [event.payload for event in sse_pg_bus.published("orders")] == [1]


async def test_the_memory_of_the_server_is_empty_too(sse_pg_bus):
    def stream():
        request = urllib.request.Request(f"{sse_pg_bus.url}/api/events/stream?channels=orders&lastEventId=0")
        with urllib.request.urlopen(request, timeout=10) as response:
            text = b""
            while b"now" not in text:
                text += response.readline()
            return text

    async with sse_pg_bus.subscribe("orders") as events:
        reading = asyncio.create_task(asyncio.to_thread(stream))
        sse_pg_bus.publish("orders", "now")
        assert (await events.next()).json() == "now"
        assert b"data: 1\\n" not in await reading
        with pytest.raises(AssertionError, match="no event on orders in 0.01 s"):
            await events.next(timeout=0.01)


def test_settings_are_those_of_the_conftest(sse_pg_bus):
    request = urllib.request.Request(
        f"{sse_pg_bus.url}/api/events/publish",
        b'{"channel": "a", "payload": "%s"}' % (b"x" * 5000),
        {"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.request.HTTPError, match="413"):
        urllib.request.urlopen(request)
""")
    out = pytest_in(tmp_path, TEST_DATABASE_URL=empty_database_url)
    assert "5 passed" in out
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SELECT count(*) FROM sse_pg.live_servers()").fetchone() == (0,)


def test_the_plugin_alone_imports_nothing_of_the_server(tmp_path: Path) -> None:
    program = (
        "import sse_pg.testing.plugin, sys; print([m for m in sys.modules if m.startswith(('aiohttp', 'psycopg'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["conftest.py", "test_orders.py", "test_stream.py"])
def test_the_page_has_the_file(name: str) -> None:
    assert name in FILES
