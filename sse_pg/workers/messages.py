"""What the parent of workers and a worker say to each other, one JSON line each, over the worker's stdin and stdout."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import msgspec

from sse_pg.config import Settings
from sse_pg.core.metrics import Numbers

#: Held back by the parent while a worker starts, until the handlers are there.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Order(msgspec.Struct):
    """What a worker serves; ``sockets`` are the descriptors of those that it listens on."""

    settings: Settings
    sockets: list[int]

    def line(self) -> bytes:
        """Return the order as the line that a worker reads."""
        return msgspec.json.encode(self, enc_hook=str) + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Order:
        """Return the order of a line."""
        return msgspec.json.decode(line, type=cls, dec_hook=_path)


class Report(msgspec.Struct, omit_defaults=True):
    """What a worker tells: it listens (on ``url``), it is ready (the database answers too), or why it failed.

    ``numbers`` are what it has counted; ``asks`` is for those of all workers.
    """

    url: str | None = None
    ready: bool = False
    failed: str | None = None
    numbers: Numbers | None = None
    asks: bool = False

    def line(self) -> bytes:
        """Return the report as the line that the parent reads."""
        return msgspec.json.encode(self) + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Report:
        """Return the report of a line."""
        return msgspec.json.decode(line, type=cls)


class Word(msgspec.Struct, omit_defaults=True):
    """What the parent says after the order: tell your numbers, or those of all."""

    all: Numbers | None = None

    def line(self) -> bytes:
        """Return the word as the line that a worker reads."""
        return msgspec.json.encode(self) + b"\n"


def _path(kind: type, value: Any) -> Any:
    if kind is not Path:
        raise NotImplementedError(kind)  # what msgspec asks of a hook for what it does not know
    return Path(value)
