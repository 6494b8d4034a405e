"""Peak memory of a server while one transaction of 400 events of 1 MB goes through it: live, replayed, as history."""

from __future__ import annotations

import asyncio
import json
import os
import re
import urllib.request

import psycopg

from bench.stack import Server, Stack, cpu_seconds, forget_peak, memory
from bench.table import Result, Rounds

EVENTS = 400
EVENT_BYTES = 1_000_000
READERS = 3
REPLAYS = 20
LIMIT_MIB = 400
MIB = 1024 * 1024
MARK = b"\nevent: message\ndata: "
#: Time within which everything must have arrived.
TIMEOUT_S = 120.0


def run(rounds: int = 3) -> Result:
    """Measure."""
    result = Result("large", f"{EVENTS} events of 1 MB in one transaction")
    found = Rounds()
    with Stack() as stack:
        for number in range(rounds):
            for name, publish in (("INSERT", _insert), ("COPY", _copy)):
                stack.sql("TRUNCATE sse_pg.events")
                server = stack.serve()
                asyncio.run(_live(stack, server, name, publish, found, waits=number == 2 and name == "COPY"))
                server.process.stop()
            for name, measure in ((f"replay by {REPLAYS} clients at once", _replay), ("history, limit=1000", _history)):
                server = stack.serve()
                asyncio.run(measure(server, name, found))
                server.process.stop()
    for name in found.values:
        peak = found.median(name)
        if name.endswith("MiB"):
            result.add(f"peak while idle, then {name}", f"{peak:,.0f}", f"below {LIMIT_MIB}", peak < LIMIT_MIB)
        else:
            result.add(name, f"{peak:.3g}")
    result.data = dict(found.values)
    return result


class Reader(asyncio.Protocol):
    """A client that counts events, or that reads nothing."""

    def __init__(self) -> None:
        self.events = 0
        self.opened = asyncio.Event()
        self.ended = asyncio.Event()
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Count."""
        seen = self._rest + data
        self.events += seen.count(MARK)
        self._rest = seen[-(len(MARK) - 1) :]
        self.opened.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self.ended.set()


async def _open(server: Server, query: str = "") -> tuple[Reader, asyncio.Transport]:
    transport, reader = await asyncio.get_running_loop().create_connection(Reader, "127.0.0.1", server.port)
    transport.write(f"GET {server.stream}{query} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
    await reader.opened.wait()
    return reader, transport


async def _live(
    stack: Stack, server: Server, name: str, publish: object, found: Rounds, *, waits: bool = False
) -> None:
    """Publish while some clients read and one does not. ``waits``: until that one is cut off, after a minute or two."""
    opened = [await _open(server) for _ in range(READERS)]
    _, sleeper = await _open(server)
    sleeper.pause_reading()
    assert callable(publish)
    await _measured(server, name, found, asyncio.to_thread(publish, stack.url), [reader for reader, _ in opened])
    if waits:
        async with asyncio.timeout(2 * TIMEOUT_S):
            while not await asyncio.to_thread(_is_cut, server):
                await asyncio.sleep(0.5)
    for transport in (sleeper, *(transport for _, transport in opened)):
        transport.close()


def _is_cut(server: Server) -> bool:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=TIMEOUT_S) as answer:
        closed = re.findall(rb'sse_pg_streams_closed_total{reason="(?:slow|client)"} (\d+)', answer.read())
        return sum(map(int, closed)) > 0  # "client" if the kernel has cut it off


async def _replay(server: Server, name: str, found: Rounds) -> None:
    opened: list[tuple[Reader, asyncio.Transport]] = []

    async def open_all() -> None:
        opened.extend(await asyncio.gather(*(_open(server, "&lastEventId=0") for _ in range(REPLAYS))))

    forget_peak(server.process.pid)
    started = cpu_seconds(server.process.pid)
    await open_all()
    await _measured(server, name, found, asyncio.sleep(0), [reader for reader, _ in opened], started)
    for _, transport in opened:
        transport.close()


async def _history(server: Server, name: str, found: Rounds) -> None:
    def walk() -> int:
        count, after = 0, "0"
        while True:
            url = f"{server.url}/api/events/history?channel=bench&limit=1000&after={after}"
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                body = answer.read()
            count += body.count(b'"eventType":"message"')
            more, after = re.search(rb'"hasMore":(true|false)', body[-200:]), _cursor(body)
            if more is None or more[1] == b"false":
                return count

    forget_peak(server.process.pid)
    count = await asyncio.to_thread(walk)
    if count != EVENTS:
        raise RuntimeError(f"the history has {count} events")
    found.add(f"{name}: MiB", memory(server.process.pid)["peak"] / MIB)


def _cursor(body: bytes) -> str:
    match = re.search(rb'"nextCursor":"([^"]+)"', body[-200:])
    return match[1].decode() if match else ""


async def _measured(
    server: Server, name: str, found: Rounds, action: object, readers: list[Reader], cpu_before: float | None = None
) -> None:
    pid = server.process.pid
    if cpu_before is None:
        forget_peak(pid)
        cpu_before = cpu_seconds(pid)
    assert asyncio.iscoroutine(action)
    await action
    async with asyncio.timeout(TIMEOUT_S):
        while any(reader.events < EVENTS for reader in readers):
            await asyncio.sleep(0.05)
            if any(reader.ended.is_set() for reader in readers):
                raise RuntimeError(f"{name}: a client that reads was cut at {[reader.events for reader in readers]}")
    found.add(f"{name}: MiB", memory(pid)["peak"] / MIB)
    found.add(f"{name}: processor seconds", cpu_seconds(pid) - cpu_before)
    if any(reader.events != EVENTS for reader in readers):
        raise RuntimeError(f"{name}: {[reader.events for reader in readers]} events")


def _payload() -> str:
    return json.dumps(os.urandom(EVENT_BYTES // 2).hex())


def _insert(url: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute(
            "INSERT INTO sse_pg.events (channel, payload) SELECT 'bench', %s::jsonb FROM generate_series(1, %s)",
            (_payload(), EVENTS),
        )


def _copy(url: str) -> None:
    body = _payload()
    with (
        psycopg.connect(url) as conn,
        conn.cursor().copy("COPY sse_pg.events (channel, payload) FROM STDIN") as copy,
    ):
        for _ in range(EVENTS):
            copy.write_row(("bench", body))
