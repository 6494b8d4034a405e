"""The handle on a process of streams (bench.crowd_process), and one stream that is recorded byte by byte."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.stack import Server


class Crowd:
    """Thousands of streams in a process of their own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("crowd_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, do: str, **arguments: Any) -> None:
        """Give a command without waiting for its answer."""
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the oldest command that has none."""
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process with the streams has ended")
        return json.loads(line)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        self.send(do, **arguments)
        return self.answer()

    def open(self, server: Server, count: int, **options: Any) -> None:
        """Open streams; all of them must come up. ``options`` are those of the command."""
        answer = self.ask("open", **{"port": server.port, "path": server.stream, "count": count, **options})
        if answer["opened"] < count or answer["ended"]:
            raise RuntimeError(f"{server.name} opened {answer} of {count} streams")

    def stamps(self, path: Path) -> tuple[array, array]:
        """Return when each block came, and the number of the block on its stream."""
        count = self.ask("stamps", path=str(path))["count"]
        times, numbers = array("d"), array("l")
        with open(path, "rb") as file:
            times.fromfile(file, count)
            numbers.fromfile(file, count)
        return times, numbers


class Recorder:
    """One stream, read at once and looked at later: (time of arrival, bytes).

    With the envelope: the ``id:`` of an event that committed late is a cursor, not the event's own id.
    """

    def __init__(self, server: Server) -> None:
        self._sock = socket.create_connection(("127.0.0.1", server.port))
        head = f"GET {server.stream}&envelope=true HTTP/1.0\r\nHost: localhost\r\n\r\n"
        self._sock.sendall(head.encode())
        self._pieces: list[tuple[float, bytes]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        while not self._pieces:
            time.sleep(0.01)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._sock.recv(262144):
                self._pieces.append((time.time(), data))

    def close(self) -> None:
        """End the stream."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def has(self, number: int) -> bool:
        """Return whether the newest data contains this event."""
        return any(b'{"id":%d,' % number in data for _, data in self._pieces[-3:])

    def arrivals(self) -> dict[int, float]:
        """Return when (wall clock) each event was there completely, by id; events may not come twice."""
        return dict(self._parsed())

    def _parsed(self) -> Iterator[tuple[int, float]]:
        rest = b""
        for when, data in list(self._pieces):
            *blocks, rest = (rest + data).split(b"\n\n")
            for block in blocks:
                found = re.search(rb'\ndata: {"id":"?(\d+)', block)
                if found:
                    yield int(found[1]), when
