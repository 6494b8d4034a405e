"""What every driver in Python does; the protocol is that of common.cjs."""

from __future__ import annotations

import json
import os
import sys
import threading

URL = sys.argv[1]


def record(number: str, kind: str | None, data: str | None) -> None:
    """Write one event."""
    sys.stdout.write(json.dumps({"id": number, "type": kind or "message", "data": data or ""}) + "\n")
    sys.stdout.flush()


def gave_up(why: object) -> None:
    """Say that the client has ended by itself."""
    sys.stderr.write(f"gave up: {why}\n")
    sys.stderr.flush()
    os._exit(3)


def end_with_stdin() -> None:
    """End the process when stdin ends."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
