"""Log lines: text on a terminal, JSON otherwise. What clients send appears escaped, so that no line can be forged."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _encodable(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = _encodable(self.formatException(record.exc_info))
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """One line, with line breaks and control characters of the message shown as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line, followed by the traceback if there is one."""
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {_printable(record.getMessage())}"
        if record.exc_info:
            # The message of an exception may hold what a client sent: no line of it begins as a log line does.
            trace = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n    {_printable(each)}" for each in trace)
        return line


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _encodable(text: str) -> str:
    """Return a text without lone surrogates, in which bytes of a header that are not UTF-8 are kept."""
    return text.encode(errors="backslashreplace").decode()


def configure(level: str, style: str) -> None:
    """Send log lines to standard error. ``style`` is auto, text or json."""
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("psycopg").setLevel(logging.ERROR)
