"""What the tests of the command line share: ``sse-pg`` as a process, its lines as they come, what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from support.waiting import PROCESS_TIMEOUT_S, wait_for

CHECKOUT = Path(__file__).resolve().parents[2]
SSE_PG = (sys.executable, "-m", "sse_pg")


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what configures sse-pg or libpq, and with these variables."""
    ours = ("DATABASE_URL", "HOST", "PORT")
    clean = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith(("PG", "SSE_PG_"))}
    return {**clean, "PYTHONPATH": str(CHECKOUT), **variables}


def run(*words: str, stdin: str | bytes | None = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    done = subprocess.run(
        [*SSE_PG, *words],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        env=environment(**variables),
        cwd="/",
        timeout=PROCESS_TIMEOUT_S,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def one_line(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """Check that a command failed as it should, with one line on standard error; return the line."""
    assert done.returncode == code, done
    assert re.fullmatch(r"sse-pg: .+\n", done.stderr), done.stderr
    return done.stderr


def free_port() -> int:
    """Return a port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def ready(url: str) -> bool:
    """Tell whether a server can serve: it listens a moment before it follows the log."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Process:
    """A command that runs on. Its lines are read as they come, so that it never waits for us."""

    def __init__(self, *words: str, stdin: int | IO[bytes] = subprocess.DEVNULL, **variables: str) -> None:
        self.popen = subprocess.Popen(
            [*SSE_PG, *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(**variables),
            cwd="/",
            start_new_session=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        assert self.popen.stdout
        assert self.popen.stderr
        self._readers = [
            threading.Thread(target=_collect, args=pair)
            for pair in ((self.popen.stdout, self.out), (self.popen.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def line(self, pattern: str, *, err: bool = False) -> re.Match[str]:
        """Wait for a line that has a pattern in it."""
        lines = self.err if err else self.out

        def find() -> re.Match[str] | None:
            return next((found for line in list(lines) if (found := re.search(pattern, line))), None)

        wait_for(lambda: find() or self.popen.poll() is not None, pattern)
        wait_for(lambda: find() or not self._readers[err].is_alive(), pattern)
        found = find()
        assert found, f"ended with {self.popen.poll()}: {self.out} {self.err}"
        return found

    def lines(self, count: int) -> list[str]:
        """Wait for so many lines of standard output; return all there are."""
        wait_for(lambda: len(self.out) >= count or self.popen.poll() is not None, f"{count} lines")
        return list(self.out)

    def url(self, *, json_logs: bool = False) -> str:
        """Wait until a server can serve; return where."""
        url = self.line(r'listens on (http://[^\s"]+)', err=json_logs)[1]
        wait_for(lambda: ready(url), "the server")
        return url

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; return the exit code."""
        self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code, once there is one."""
        code = self.popen.wait(PROCESS_TIMEOUT_S)
        for reader in self._readers:
            reader.join(PROCESS_TIMEOUT_S)
        return code

    def kill(self) -> None:
        """End what is left."""
        self.popen.kill()
        self.popen.wait()
        if self.popen.stdin:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()
        for reader in self._readers:
            reader.join(PROCESS_TIMEOUT_S)


def _collect(stream: IO[bytes], lines: list[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line.decode().rstrip("\n"))


@contextlib.contextmanager
def process(*words: str, stdin: int | IO[bytes] = subprocess.DEVNULL, **variables: str) -> Iterator[Process]:
    """A command that is ended with the block, whatever happens."""
    started = Process(*words, stdin=stdin, **variables)
    try:
        yield started
    finally:
        started.kill()


def left_behind(data: Path) -> list[str]:
    """The processes of this machine that have to do with a data directory."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = os.readlink(each / "cwd")
            if int(each.name) != os.getpid() and (str(data) in words or place.startswith(str(data))):
                found.append(f"{each.name} {words}")
    return found
