"""README.md does what it says: its commands are run, in order, and their output has the shape that is printed there.

A ``console`` block has commands after "$ " and their output; a command whose output goes on (curl -N, tail) runs beside
the ones that follow. An ``sql`` block is given to the database. An ``sh`` block is for the reader's own machine; its
syntax is checked.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from cli_support import CHECKOUT, SSE_PG, Process, environment, process, wait_for

README = (CHECKOUT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
DATA = "/home/you/.local/share/sse-pg"


@dataclass
class Step:
    """A command and what is printed below it."""

    command: str
    output: list[str]

    @property
    def serves(self) -> bool:
        """Whether this is the server, which the test starts by itself."""
        return self.command.endswith("sse-pg serve")

    @property
    def goes_on(self) -> bool:
        """Whether the command waits for more."""
        return "curl -sN" in self.command or " tail " in self.command


def steps(block: str) -> list[Step]:
    found = []
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, *output = part.rstrip("\n").split("\n")
        found.append(Step(command, output))
    return found


def masked(lines: list[str]) -> list[str]:
    """Lines without what differs from run to run."""
    text = "\n".join(lines)
    text = re.sub(r'"createdAt":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"', '"createdAt":"<time>"', text)
    text = re.sub(r"^retry: \d+$", "retry: <ms>", text, flags=re.M)
    text = re.sub(r"PostgreSQL \d+ \([^)]*\)", "PostgreSQL <version>", text)
    text = re.sub(r"reach it with: \S*psql ", "reach it with: psql ", text)
    text = re.sub(r"http://127\.0\.0\.1:\d+", "http://<server>", text)
    return text.split("\n")


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A data directory that the user PostgreSQL runs as gets to."""
    made = Path(tempfile.mkdtemp(prefix="sse-pg-test-", dir="/tmp")).resolve()
    made.chmod(0o755)
    yield made / "data"
    shutil.rmtree(made, ignore_errors=True)


class Reader:
    """Runs the commands, as somebody who reads does."""

    def __init__(self, server: Process, data: Path) -> None:
        self.port = str(urlsplit(server.url()).port)
        self.database = re.sub("^.*'(.*)'$", r"\1", server.line("^reach it with: (.*)$")[1])
        self.data = data

    def shell(self, command: str, stdout: int | None = None) -> subprocess.Popen[str]:
        command = command.replace(":8080", f":{self.port}").replace(".venv/bin/sse-pg", '"$PYTHON" -m sse_pg')
        return subprocess.Popen(
            ["/bin/bash", "-c", command if "|" in command else f"exec {command}"],
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env=environment(SSE_PG_DATA_DIR=str(self.data), PORT=self.port, PYTHON=SSE_PG[0]),
        )

    def run(self, command: str) -> list[str]:
        with self.shell(command) as running:
            out = running.communicate(timeout=60)[0]
        assert running.returncode == 0, (command, out)
        return out.rstrip("\n").split("\n")

    def execute(self, statements: str) -> None:
        with psycopg.connect(self.database, autocommit=True) as conn:
            for statement in statements.split(";"):
                conn.execute(statement.encode())


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on this machine")
def test_the_commands_do_what_is_printed_below_them(data: Path) -> None:
    with (
        process("serve", "--port", "0", SSE_PG_DATA_DIR=str(data)) as server,
        contextlib.ExitStack() as ending,
    ):
        reader = Reader(server, data)
        going_on: list[tuple[Step, Path, subprocess.Popen[str]]] = []
        for kind, text in BLOCKS:
            if kind == "sql":
                reader.execute(text)
            for step in steps(text) if kind == "console" else ():
                if step.serves:
                    own = "\n".join(step.output).replace(DATA, str(data))
                    own = own.replace(quote(DATA, safe=""), quote(str(data), safe=""))
                    assert masked(server.lines(4)) == masked(own.split("\n"))
                elif step.goes_on:
                    out = data.parent / f"stream-{len(going_on)}"
                    file = ending.enter_context(out.open("w"))
                    running = reader.shell(step.command, file.fileno())
                    ending.callback(running.wait)
                    ending.callback(running.kill)
                    going_on.append((step, out, running))
                    wait_for(lambda out=out: out.stat().st_size, step.command)
                else:
                    assert masked(reader.run(step.command)) == masked(step.output), step.command
        assert len(going_on) == 3
        for step, out, running in going_on:
            expected = len(step.output)
            wait_for(lambda out=out, n=expected: len(out.read_text().split("\n")) > n, step.command)
            assert masked(out.read_text().split("\n")[:expected]) == masked(step.output), step.command
            assert running.poll() is None, "it was to go on"
        ending.close()
        assert server.end() == 0


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind == "sh"])
def test_what_is_for_the_reader_s_machine_is_shell(block: str) -> None:
    done = subprocess.run(["/bin/bash", "-n", "-c", block], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_block_is_of_a_known_kind() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "console", "sql", "js", "text"}


def test_the_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert (CHECKOUT / link).is_file(), link


def test_the_settings_are_those_of_the_program() -> None:
    known = (CHECKOUT / "docs" / "settings.md").read_text()
    for name in re.findall(r"^\| `([A-Z_]+)`(?:, `([A-Z_]+)`)? \|", README, re.M):
        assert all(f"| `{each}` |" in known for each in name if each), name


def test_the_endpoints_are_those_of_the_program() -> None:
    described = (CHECKOUT / "sse_pg" / "openapi.json").read_text()
    for path in re.findall(r"^\| `(?:GET|POST) ([^`?]+)", README, re.M):
        assert f'"{path}"' in described or path == "/openapi.json", path


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    (command,) = [text.strip() for kind, text in BLOCKS if kind == "sh" and "pytest" in text]
    assert command in [line.strip() for line in (CHECKOUT / ".ci" / "run").read_text().split("\n")]
