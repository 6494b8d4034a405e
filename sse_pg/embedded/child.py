"""A program of PostgreSQL that runs under ``guard.py``, which ends it when this process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sse_pg.embedded.account import Account
from sse_pg.embedded.postmaster import STOP_TIMEOUT_S, serves

GUARD = Path(__file__).with_name("guard.py")


class Child:
    """One run of a program on a cluster, in a session of its own that Ctrl-C does not reach.

    It is created before it is started, so that a caller that is interrupted in between knows what to stop. Only the
    process that started it stops it: in a fork, stop() does nothing.
    """

    def __init__(self, command: list[str], cluster: Path, account: Account) -> None:
        self.pid = 0
        """The process id of the program; 0 if there is none."""
        self.owner = os.getpid()
        self._command = command
        self._cluster = cluster
        self._account = account
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def guard_pid(self) -> int:
        """The process id of the guard; 0 before the start."""
        return self._guard.pid if self._guard else 0

    def start(self, log: Path, lock: int) -> None:
        """Run the program; append its output to a file. The guard holds the lock's descriptor until it ends."""
        user = [str(self._account.uid), str(self._account.gid)] if self._account.drop else ["-", "-"]
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with open(os.open(log, flags, 0o600), "ab") as output, _signals_held():
            self._guard = subprocess.Popen(
                [sys.executable, "-IS", str(GUARD), str(self.owner), *user, *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd="/",
                env=_environment(),
                pass_fds=(lock,),
                start_new_session=True,
            )
        line = self._guard.stdout.readline() if self._guard.stdout else b""
        self.pid = int(line) if line else 0

    @property
    def ended(self) -> bool:
        """Whether the guard, and therefore the program, has ended."""
        return self._guard is None or self._guard.poll() is not None

    def wait(self) -> int:
        """Wait until the program has ended; return its exit code."""
        return self._guard.wait() if self._guard else 0

    def stop(self) -> None:
        """Have the guard end the program, and wait for both. It may be called again, and after the end."""
        if self._guard is None or self.owner != os.getpid():
            return
        for end in (self._guard.stdin, self._guard.stdout):
            if end is not None:
                end.close()
        # A fork of this process may still hold the pipe open.
        self._guard.terminate()
        try:
            self._guard.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        # If the guard was killed, PostgreSQL is stopping (Linux) or still running.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if not self.pid or _poll(lambda: not serves(self.pid, self._cluster), 0):
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            _poll(lambda: not serves(self.pid, self._cluster), 10)


def _environment() -> dict[str, str]:
    """Return the environment for PostgreSQL: ours, without our secrets and what would change its settings or language.

    Another account runs it, and what it may read of itself, SQL may read.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "LC_", "SSE_PG_")) and name not in ("LANG", "LANGUAGE", "DATABASE_URL")
    }
    return {**kept, "LC_ALL": "C"}


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Block signals, so that no handler raises between the start of a process and storing the process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _poll(done: Callable[[], bool], seconds: float) -> bool:
    """Poll until it is done, which returns True, or the time is up, which returns False."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
