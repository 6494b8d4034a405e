"""Log lines: text on a terminal, JSON otherwise. Control characters are escaped, so that a client cannot forge a line.

``log.info(..., extra=fields(name=value, ...))`` adds fields to the JSON line.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

log = logging.getLogger(__name__)


def fields(**values: object) -> dict[str, Any]:
    """Return the ``extra`` argument of a logging call that adds these fields to its JSON line."""
    return {"fields": values}


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": _encodable(record.getMessage()),
        }
        for name, value in getattr(record, "fields", {}).items():
            line.setdefault(name, _clean(value))
        if record.exc_info:
            line["exception"] = _encodable(self.formatException(record.exc_info))
        encoded = msgspec.json.encode(line).decode()
        if encoded.isprintable():
            return encoded
        # JSON allows characters that some readers treat as the end of a line: U+2028, U+0085.
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in encoded)


class TextFormatter(logging.Formatter):
    """One line, with line breaks and control characters of the message shown as escapes."""

    def __init__(self, *, pid: bool = False) -> None:
        """``pid`` puts the process id before the message, for several processes that write to one place."""
        super().__init__()
        self._pid = pid

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line, followed by the traceback if there is one."""
        pid = f"[{record.process}] " if self._pid else ""
        message = _printable(record.getMessage())
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {pid}{message}"
        if record.exc_info:
            # The message of an exception may contain what a client sent, so its lines must not begin like a log line.
            trace = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n    {_printable(each)}" for each in trace)
        return line


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _encodable(text: str) -> str:
    """Return a text without lone surrogates, which stand for bytes of a header that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _clean(value: object) -> object:
    if isinstance(value, str):
        return _encodable(value)
    return [_clean(each) for each in value] if isinstance(value, list) else value


def configure(level: str, style: str, *, pid: bool = False) -> None:
    """Send log lines to standard error. ``style`` is auto, text or json. ``pid`` adds the process id to text lines."""
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter(pid=pid) if as_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    global _only_json  # noqa: PLW0603 - like the handlers of logging, one for the process
    _only_json = style == "json"


_only_json = False


def say(text: str, *, err: bool = False) -> None:
    """Print a line for the person at the terminal; a log line instead if the output has to be nothing but JSON.

    ``err``: it is an error. With the style auto such lines stay plain: they are on standard output, log lines are not,
    and a person may have redirected only those.
    """
    if _only_json:
        log.log(logging.ERROR if err else logging.INFO, "%s", text)
    else:
        print(text, file=sys.stderr if err else sys.stdout, flush=True)
