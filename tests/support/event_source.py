"""An EventSource as the standard has it, written by nothing of the package."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Dispatched:
    """An event as a browser hands it to its listeners."""

    type: str
    data: str
    last_event_id: str


def browser(stream: bytes) -> tuple[list[Dispatched], int | None]:
    """Interpret a stream as WHATWG HTML 9.2.6 says; return the events, and the reconnection time."""
    text = stream.decode("utf-8").removeprefix("\ufeff")
    found: list[Dispatched] = []
    last_id, name, data, retry = "", "", "", None
    pending = id_buffer = ""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert lines.pop() == "", "the stream ends inside a line"
    for line in lines:
        if line == "":
            last_id = id_buffer
            if data:
                found.append(Dispatched(name or "message", data.removesuffix("\n"), last_id))
            data = name = ""
            continue
        if line.startswith(":"):
            continue
        field, colon, pending = line.partition(":")
        value = pending.removeprefix(" ") if colon else ""
        if field == "event":
            name = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            id_buffer = value
        elif field == "retry" and value.isascii() and value.isdigit():
            retry = int(value)
    return found, retry
