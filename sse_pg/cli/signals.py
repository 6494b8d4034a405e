"""SIGINT and SIGTERM: whenever they come, the command ends as after an error, with all its cleaning up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Ended(KeyboardInterrupt):
    """A signal asked for the end. It is a KeyboardInterrupt, so that psycopg cancels the statement it waits for."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def install() -> None:
    """Raise Ended at the first signal. A second one ends the process on the spot, as if nobody had asked."""
    for number in SIGNALS:
        signal.signal(number, _end)


def be_patient() -> None:
    """Raise Ended at the first signal, and hold those that come while the command cleans up."""
    for number in SIGNALS:
        signal.signal(number, _end_and_hold)


def hold() -> None:
    """Let signals wait until the process has ended, which it is about to do; event loops take handlers away."""
    for number in SIGNALS:
        signal.signal(number, _nothing)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class Asked:
    """Within an event loop: the signal that asked for the end. ``then`` is called at the first one."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then
        self._number = 0
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._note, number)

    def check(self) -> None:
        """Raise Ended if a signal came."""
        if self._number:
            raise Ended(self._number)

    def _note(self, number: int) -> None:
        if self._number:
            _die(number, None)
        self._number = number
        self._then()


def _end(number: int, _frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, _die)
    raise Ended(number)


def _end_and_hold(number: int, _frame: FrameType | None) -> None:
    hold()
    raise Ended(number)


def _die(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass
