"""Pages of the documentation, and a reader who does what they say.

A ``console`` block has commands after "$ " and their output; a command whose output goes on (curl -N, tail) runs beside
the ones that follow. An ``sql`` block is given to the database. A block of a program whose first line is a comment with
a file's name is that file, and lies where the commands run. An ``sh`` block is for the reader's own machine: its syntax
is checked.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg

from support.process import CHECKOUT, SSE_PG, Process, environment
from support.waiting import wait_for

#: The data directory that the pages print.
DATA = "/home/you/.local/share/sse-pg"
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


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


class Page:
    """A file in Markdown. ``path`` is relative to the checkout."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.text = (CHECKOUT / path).read_text()
        self.blocks: list[tuple[str, str]] = _FENCED.findall(self.text)

    @property
    def prose(self) -> str:
        """The text without its blocks of code."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.M | re.S)

    @property
    def links(self) -> list[str]:
        """Where links and images lead."""
        return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", self.prose))

    @property
    def anchors(self) -> set[str]:
        """The names of the headings, as they are made from their text."""
        names: list[str] = []
        for heading in re.findall(r"^#+ (.+)$", self.prose, re.M):
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
            name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            names.append(f"{name}-{names.count(name)}" if name in names else name)
        return set(names)

    @property
    def steps(self) -> list[Step]:
        """All commands of the console blocks."""
        return [step for kind, text in self.blocks if kind == "console" for step in steps(text)]


def steps(block: str) -> list[Step]:
    """The commands of one console block."""
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


class Reader:
    """Does what a page says, in the folder ``home``.

    ``port`` is that of the server which the page calls 8080, ``database`` that of the ``sql`` blocks; ``variables`` go
    into the environment of the commands.
    """

    def __init__(self, home: Path, database: str, port: str = "8080", **variables: str) -> None:
        self.home = home
        self.database = database
        self.port = port
        self._variables = {"PORT": port, "PYTHON": SSE_PG[0], **variables}

    @classmethod
    def of(cls, server: Process, data: Path) -> Reader:
        """The reader of a page that begins with ``sse-pg serve`` and the embedded PostgreSQL."""
        port = str(urlsplit(server.url()).port)
        database = re.sub("^.*'(.*)'$", r"\1", server.line("^reach it with: (.*)$")[1])
        return cls(data.parent, database, port, SSE_PG_DATA_DIR=str(data))

    def shell(self, command: str, stdout: int | None = None) -> subprocess.Popen[str]:
        """Start a command."""
        command = command.replace(":8080", f":{self.port}")
        command = command.replace(".venv/bin/sse-pg", '"$PYTHON" -m sse_pg').replace(".venv/bin/python", '"$PYTHON"')
        return subprocess.Popen(
            ["/bin/bash", "-c", command if re.search(r"[|&;]", command) else f"exec {command}"],
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.home,
            env=environment(**self._variables),
        )

    def run(self, command: str) -> list[str]:
        """Run a command to its end; return the lines that it prints."""
        with self.shell(command) as running:
            out = running.communicate(timeout=60)[0]
        assert running.returncode == 0, (command, out)
        return out.rstrip("\n").split("\n") if out else []

    def execute(self, statements: str) -> None:
        """Give statements to the database, each by itself."""
        with psycopg.connect(self.database, autocommit=True) as conn:
            for statement in statements.split(";"):
                conn.execute(statement.encode())

    def write(self, block: str) -> None:
        """Write a block that names its file."""
        named = re.match(r"(?:#|//|<!--) ([\w.-]+\.\w+)(?: -->)?\n", block)
        if named:
            text = block.replace(":8080", f":{self.port}")
            (self.home / named[1]).write_text(text)

    def follow(self, page: Page, server: Process | None = None) -> list[Step]:
        """Do everything in order, comparing what is printed; return the commands that went on to the end."""
        with contextlib.ExitStack() as ending:
            going_on: list[tuple[Step, Path, subprocess.Popen[str]]] = []
            for kind, text in page.blocks:
                if kind == "sql":
                    self.execute(text)
                elif kind in ("python", "html", "js"):
                    self.write(text)
                for step in steps(text) if kind == "console" else ():
                    if step.serves:
                        assert server, step.command
                        self._started(step, server)
                    elif step.goes_on:
                        out = self.home / f"stream-{len(going_on)}"
                        file = ending.enter_context(out.open("w"))
                        running = self.shell(step.command, file.fileno())
                        ending.callback(running.wait)
                        ending.callback(running.kill)
                        going_on.append((step, out, running))
                        wait_for(lambda out=out: out.stat().st_size, step.command)
                    else:
                        assert masked(self.run(step.command)) == masked(step.output), step.command
            for step, out, running in going_on:
                expected = len(step.output)
                wait_for(lambda out=out, n=expected: len(out.read_text().split("\n")) > n, step.command)
                assert masked(out.read_text().split("\n")[:expected]) == masked(step.output), step.command
                assert running.poll() is None, "it was to go on"
        return [step for step, _, _ in going_on]

    def _started(self, step: Step, server: Process) -> None:
        data = self._variables["SSE_PG_DATA_DIR"]
        own = "\n".join(step.output).replace(DATA, data)
        own = own.replace(quote(DATA, safe=""), quote(data, safe=""))
        assert masked(server.lines(len(step.output))) == masked(own.split("\n"))


def syntax_errors(block: str) -> str:
    """What bash says of a block that it only reads."""
    done = subprocess.run(["/bin/bash", "-n", "-c", block], capture_output=True, text=True)
    return done.stderr or ("" if done.returncode == 0 else f"exit code {done.returncode}")


def all_pages() -> Iterator[str]:
    """Every page of the checkout that is for readers, as a path relative to it."""
    yield from ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
    for path in sorted((CHECKOUT / "docs").rglob("*.md")):
        yield str(path.relative_to(CHECKOUT))
