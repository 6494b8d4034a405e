"""What the supervisor and a worker say to each other: one JSON line each, over the worker's stdin and stdout."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import msgspec

from sse_pg.config import Settings
from sse_pg.core.metrics import Numbers

#: Signals that the supervisor blocks while it starts a worker. The worker unblocks them once its handlers are set.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StartMessage(msgspec.Struct):
    """The first line that a worker reads: its settings, and the descriptors of the sockets that it listens on."""

    settings: Settings
    sockets: list[int]

    def line(self) -> bytes:
        """Return the message as a line."""
        return msgspec.json.encode(self, enc_hook=str) + b"\n"

    @classmethod
    def read(cls, line: bytes) -> StartMessage:
        """Return the message of a line."""
        return msgspec.json.decode(line, type=cls, dec_hook=_path)


class Request(msgspec.Struct, omit_defaults=True):
    """Every later line to a worker. Without ``totals`` it asks for the worker's numbers.

    ``totals`` are the numbers of all workers, in response to a report that asked for them.
    """

    totals: Numbers | None = None

    def line(self) -> bytes:
        """Return the request as a line."""
        return msgspec.json.encode(self) + b"\n"


class Report(msgspec.Struct, omit_defaults=True):
    """A line from a worker. Each field is one piece of news, and most reports have one."""

    url: str | None = None
    """It listens, on this URL."""
    ready: bool = False
    """It is ready: the database responds too."""
    failed: str | None = None
    """It cannot start, for this reason."""
    numbers: Numbers | None = None
    """Its numbers, as requested or before it ends."""
    wants_totals: bool = False
    """It asks for the numbers of all workers."""

    def line(self) -> bytes:
        """Return the report as a line."""
        return msgspec.json.encode(self) + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Report:
        """Return the report of a line."""
        return msgspec.json.decode(line, type=cls)


def _path(kind: type, value: Any) -> Any:
    if kind is not Path:
        raise NotImplementedError(kind)  # what msgspec requires of a hook for an unknown type
    return Path(value)
