"""Thousands of streams in one process: a bare epoll loop that counts blocks and looks at nothing else.

Run by bench.crowd, not by hand: commands come as JSON lines on standard input, answers go to standard output. It ends when
standard input does. Times are those of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import sys
import time
from array import array

IDS = re.compile(rb"(?:^|\n)id: ?([^\r\n]+)\n")
#: Connections under way at once while opening, unless the command says otherwise.
MAX_OPENING = 200


class Crowd:
    """The streams, by file number."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.poll.register(0, select.EPOLLIN)
        self.commands = b""
        self.sockets: dict[int, socket.socket] = {}
        self.counts: dict[int, int] = {}
        self.tails: dict[int, bytes] = {}
        self.waiting: set[int] = set()
        """Those that have fewer blocks than are waited for."""
        self.wanted = 1
        self.total = 0
        self.ended = 0
        self.bytes = 0
        self.first = self.last = 0.0
        self.stamping = False
        self.stamps = array("d")
        self.numbers = array("l")
        self.keep_ids = False
        self.last_ids: list[str] = []

    def main(self) -> None:
        """Obey until standard input ends."""
        while True:
            for command in self.take(1.0):
                answer = getattr(self, "do_" + command.pop("do"))(**command)
                print(json.dumps(answer), flush=True)

    def take(self, seconds: float) -> list[dict]:
        """Read what there is; return the commands that came."""
        commands = []
        read, counts, tails = os.read, self.counts, self.tails
        for fd, _ in self.poll.poll(seconds):
            if fd == 0:
                data = read(0, 65536)
                if not data:
                    sys.exit(0)
                self.commands += data
                *lines, self.commands = self.commands.split(b"\n")
                commands += [json.loads(line) for line in lines]
                continue
            try:
                data = read(fd, 65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self.ended += 1
                self.poll.unregister(fd)
                self.waiting.discard(fd)
                continue
            new = data.count(b"\n\n")
            tail = tails[fd]
            if data[0] == 10 and tail[-1:] == b"\n":
                new += 1
            tails[fd] = (tail + data)[-300:] if self.keep_ids else data[-1:]
            self.bytes += len(data)
            if not new:
                continue
            count = counts[fd]
            counts[fd] = count + new
            self.last = now = time.monotonic()
            if not self.first:
                self.first = now
            self.total += new
            if self.stamping:
                for number in range(count, count + new):
                    self.stamps.append(now)
                    self.numbers.append(number)
            if count + new >= self.wanted:
                self.waiting.discard(fd)
        return commands

    def do_open(
        self,
        port: int,
        path: str,
        count: int,
        ids: bool = False,
        at_once: int = MAX_OPENING,
        seconds: float = 120.0,
        source: str | None = None,
    ) -> dict:
        """Open streams and wait for the first block of each; with ``ids``, from the cursors noted by cut.

        A ``{n}`` in the path stands for the number of the stream. ``source`` is the address they come from.
        """
        started = time.monotonic()
        self.keep_ids = ids
        pending = count
        resume = self.last_ids if ids else []
        self.wanted = 1
        while (pending or self.waiting) and time.monotonic() - started < seconds:
            while pending and len(self.waiting) < at_once:
                pending -= 1
                header = f"Last-Event-ID: {resume[pending]}\r\n" if pending < len(resume) else ""
                target = path.replace("{n}", str(pending))
                head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{header}\r\n"
                self.add(port, head.encode(), source)
            self.take(0.05)
        return {"opened": len(self.sockets), "seconds": time.monotonic() - started, "ended": self.ended}

    def add(self, port: int, head: bytes, source: str | None = None) -> None:
        """Connect one and send its request."""
        sock = socket.socket()
        if source is not None:
            sock.bind((source, 0))
        sock.connect(("127.0.0.1", port))
        sock.sendall(head)
        sock.setblocking(False)
        fd = sock.fileno()
        self.sockets[fd] = sock
        self.counts[fd] = 0
        self.tails[fd] = b""
        self.waiting.add(fd)
        self.poll.register(fd, select.EPOLLIN)

    def do_begin(self, events: int = 1, stamping: bool = False) -> dict:
        """Forget what was counted; from now on wait for so many blocks on each stream."""
        self.take(0)
        self.counts = dict.fromkeys(self.counts, 0)
        self.total = self.bytes = 0
        self.first = self.last = 0.0
        self.stamping = stamping
        self.stamps, self.numbers = array("d"), array("l")
        self.wanted = events
        self.waiting = set(self.sockets)
        return {"streams": len(self.sockets)}

    def do_wait(self, seconds: float) -> dict:
        """Wait until every stream has its blocks."""
        deadline = time.monotonic() + seconds
        while self.waiting and time.monotonic() < deadline:
            self.take(0.05)
        return self.figures()

    def do_quiet(self, silence: float, seconds: float) -> dict:
        """Wait until nothing has come for a while."""
        deadline = time.monotonic() + seconds
        since = time.monotonic()
        while time.monotonic() < deadline and time.monotonic() - max(since, self.last) < silence:
            self.take(0.05)
        return self.figures()

    def do_stamps(self, path: str) -> dict:
        """Write when each block came and which of its stream it was."""
        with open(path, "wb") as file:
            self.stamps.tofile(file)
            self.numbers.tofile(file)
        return {"count": len(self.stamps)}

    def do_churn(self, port: int, path: str, count: int, at_once: int, seconds: float) -> dict:
        """Open streams and close each when its first block is there; so many at a time, until as many or late."""
        started = time.monotonic()
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
        self.wanted = 1
        left, done = count, 0
        while done < count and time.monotonic() - started < seconds:
            while left and len(self.sockets) < at_once:
                left -= 1
                self.add(port, head)
            self.take(0.05)
            for fd in [fd for fd in self.sockets if fd not in self.waiting]:
                self.poll.unregister(fd)
                self.sockets.pop(fd).close()
                del self.counts[fd], self.tails[fd]
                done += 1
        return {"done": done, "ended": self.ended, "seconds": time.monotonic() - started}

    def do_cut(self) -> dict:
        """Close every stream; note the last id of each."""
        self.last_ids = []
        for fd, sock in self.sockets.items():
            found = IDS.findall(self.tails[fd])
            self.last_ids.append(found[-1].decode() if found else "0")
            self.poll.unregister(fd)
            sock.close()
        for fields in (self.sockets, self.counts, self.tails, self.waiting):
            fields.clear()
        return {"ids": len(set(self.last_ids))}

    def do_storm(self, port: int, path: str, events: int, seconds: float) -> dict:
        """Connect again all at once, each from its last id; wait until each has what it missed.

        Every block counts, the one that opens a stream too.
        """
        started = time.monotonic()
        self.keep_ids = False
        self.total = self.bytes = 0
        self.first = self.last = 0.0
        self.wanted = events + 1
        for last_id in self.last_ids:
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nLast-Event-ID: {last_id}\r\n\r\n"
            self.add(port, head.encode())
            self.take(0)
        connected = time.monotonic() - started
        answer = self.do_wait(seconds)
        return {**answer, "connected": connected, "seconds": self.last - started}

    def figures(self) -> dict:
        """Return what was counted."""
        return {
            "total": self.total,
            "bytes": self.bytes,
            "missing": len(self.waiting),
            "ended": self.ended,
            "first": self.first,
            "last": self.last,
            "now": time.monotonic(),
        }


if __name__ == "__main__":
    Crowd().main()
