"""Runs one program and ends it when the process that started this script is gone.

    guard.py OWNER UID GID PROGRAM [ARGUMENT...]

``OWNER`` is the process id of the parent, which holds the other end of this script's stdin and never writes to it: the
end of that pipe means that the parent is gone, however it ended. ``UID`` and ``GID`` are numbers that the program runs
under, or ``-`` to run it as the caller. The program's process id goes to stdout, as one line; the output of the program
goes to stderr. The exit code is the program's own (128 + n after signal n).

The program is sent SIGINT (PostgreSQL: fast shutdown), then SIGQUIT (immediate), then SIGKILL. This file imports only
the standard library, so that a broken environment cannot stop it.
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

STOP_SIGNALS = ((0.0, signal.SIGINT), (10.0, signal.SIGQUIT), (20.0, signal.SIGKILL))
"""The signals that the program is sent, and after how many seconds of stopping."""

PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Run the program of the command line and return its exit code."""
    owner, uid, gid, *command = arguments
    received, wake = _watch_signals()
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
    # If the owner is gone already, this is noticed below; its closed pipe must not end this script.
    with contextlib.suppress(BrokenPipeError):
        print(child.pid, flush=True)
    _attend(child, int(owner), received, wake)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _attend(child: "subprocess.Popen[bytes]", owner: int, received: list[int], wake: int) -> None:
    """Wait for the child. Once the owner is gone or a signal arrives, end it step by step."""
    stdin = sys.stdin.fileno()
    watched = [stdin, wake]
    steps = list(STOP_SIGNALS)
    since: float | None = None
    while child.poll() is None:
        # A fork of the owner may keep the pipe open, so its death is also checked with getppid().
        if since is None and (received or stdin not in watched or os.getppid() != owner):
            since = time.monotonic()
        if since is not None and steps and time.monotonic() >= since + steps[0][0]:
            child.send_signal(steps.pop(0)[1])
        readable, _, _ = select.select(watched, [], [], 1.0)
        for end in readable:
            if not os.read(end, 4096) and end == stdin:
                watched.remove(stdin)


def _watch_signals() -> tuple[list[int], int]:
    """Return a list that collects the signals to stop, and a descriptor that wakes select()."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            received.append(number)

    wake, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, note)
    # A parent that blocks signals passes the mask on, to this script and to PostgreSQL.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return received, wake


def _dies_with_us() -> Callable[[], None] | None:
    """Return what the child does before exec so that it ends even if this script is killed; Linux only."""
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
