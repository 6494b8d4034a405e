"""Runs one program and ends it when the process that asked for it is gone.

    guard.py OWNER UID GID PROGRAM [ARGUMENT...]

``OWNER`` is the process id of the parent, which holds the other end of this script's stdin and never writes
to it: the end of that pipe means that the parent has gone, by whatever means. ``UID`` and ``GID`` are numbers
that the program runs under, or ``-`` to run it as the caller. The program's process id goes to stdout, one
line; what the program prints goes to stderr. The exit code is the program's own (128 + n after signal n).

The program is told SIGINT (PostgreSQL: fast shutdown), then SIGQUIT (immediate), then SIGKILL. This file
imports nothing but the standard library and runs by itself, so that a broken environment cannot stop it.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

STEPS = ((0.0, signal.SIGINT), (10.0, signal.SIGQUIT), (20.0, signal.SIGKILL))
"""What the program is sent, and how many seconds after the end was asked for."""

PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Run the program of the command line and return its exit code."""
    owner, uid, gid, *command = arguments
    asked, wake = _watch_signals()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        user=None if uid == "-" else int(uid),
        group=None if gid == "-" else int(gid),
        extra_groups=None if uid == "-" else [],
        preexec_fn=_dies_with_us(),  # noqa: PLW1509  this process has one thread
        umask=0o077,
    )
    # An owner that is gone already is noticed below; its closed pipe must not stop this script.
    with contextlib.suppress(BrokenPipeError):
        print(child.pid, flush=True)
    _attend(child, int(owner), asked, wake)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _attend(child: "subprocess.Popen[bytes]", owner: int, asked: list[int], wake: int) -> None:
    """Wait for the child; end it step by step once the owner is gone or a signal asks for it."""
    stdin = sys.stdin.fileno()
    watched = [stdin, wake]
    steps = list(STEPS)
    since: float | None = None
    while child.poll() is None:
        # A fork of the owner may keep the pipe open, so its death shows in getppid() too.
        if since is None and (asked or stdin not in watched or os.getppid() != owner):
            since = time.monotonic()
        if since is not None and steps and time.monotonic() >= since + steps[0][0]:
            child.send_signal(steps.pop(0)[1])
        readable, _, _ = select.select(watched, [], [], 1.0)
        for end in readable:
            if not os.read(end, 4096) and end == stdin:
                watched.remove(stdin)


def _watch_signals() -> tuple[list[int], int]:
    """Return the signals that ask for the end, as they come, and a descriptor that wakes select()."""
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            asked.append(number)

    wake, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, note)
    # A parent that blocks signals hands the mask down, here and on to PostgreSQL.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return asked, wake


def _dies_with_us() -> Callable[[], None] | None:
    """Return what the child does before exec, so that it ends though this script is killed; Linux only."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None
    guard = os.getpid()

    def before_exec() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0)
        if os.getppid() != guard:
            os._exit(1)

    return before_exec


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
