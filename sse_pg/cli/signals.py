"""SIGINT and SIGTERM: they end a command like an error, so that everything is cleaned up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Ended(KeyboardInterrupt):
    """A signal ends the command. It is a KeyboardInterrupt, so that psycopg cancels the statement that it waits for."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def install() -> None:
    """Raise Ended at the first signal. A second one kills the process, as it does by default."""
    for number in SIGNALS:
        signal.signal(number, _end)


def hold_after_first() -> None:
    """Raise Ended at the first signal, and ignore later ones while the command cleans up."""
    for number in SIGNALS:
        signal.signal(number, _end_and_hold)


def hold() -> None:
    """Ignore signals from now on, because the process is about to end.

    They are blocked as well, because an event loop that ends removes the handlers.
    """
    for number in SIGNALS:
        signal.signal(number, _nothing)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class StopSignal:
    """The handler in an event loop: ``on_first`` is called at the first signal; a second one kills the process."""

    def __init__(self, on_first: Callable[[], object]) -> None:
        self._on_first = on_first
        self._number = 0
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._received, number)

    def check(self) -> None:
        """Raise Ended if there was a signal."""
        if self._number:
            raise Ended(self._number)

    def _received(self, number: int) -> None:
        if self._number:
            _die(number, None)
        self._number = number
        self._on_first()


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
