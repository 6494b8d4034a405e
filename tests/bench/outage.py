"""Publishing while the database is unavailable: a thousand clients repeat, half of them leave before their response."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from collections import Counter
from dataclasses import dataclass, field

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.database_proxy import Proxy

from bench.stack import Server, Stack, memory
from bench.table import Result, percentile

CLIENTS = 1000
#: Seconds for which the database is unavailable.
OUTAGE_S = 60.0
PAYLOAD_BYTES = 50_000
#: During the outage, every other client closes its connection if it has no response after this time, and repeats.
PATIENCE_S = 1.0
#: Pause of a client after a response or after it has left.
PAUSE_S = 0.2
#: Time that all clients together get to publish once the database is back.
RECOVERY_S = 60.0
#: How connections fail: they are refused, or they stay open and nothing comes back.
KINDS = ("refused", "hanging")


@dataclass
class Found:
    """What one outage showed."""

    statuses: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    """Seconds until each 503 that says that nothing was published; the request began during the outage."""
    unknown_waits: list[float] = field(default_factory=list)
    """The same for those whose outcome is unknown, most of which were sent just before the outage."""
    before: int = 0
    memory: list[int] = field(default_factory=list)
    """Resident memory of the server, at intervals during the outage."""
    after: int = 0
    first_s: float = float("inf")
    """Seconds from the return of the database to the first 201, and until 99 % of the clients have had one."""
    all_s: float = float("inf")
    accepted: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)


class Clients:
    """Clients that publish one event after the other, each on its own connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._next = 0
        self.found = Found()
        self.lasting = set[int]()
        """The clients that have published since this was emptied."""
        self.outage = False

    async def run(self, client: int) -> None:
        """Publish until cancelled."""
        writer: asyncio.StreamWriter | None = None
        while True:
            self._next += 1
            number, since, during = self._next, time.monotonic(), self.outage
            try:
                async with asyncio.timeout(PATIENCE_S if during and client % 2 else None):
                    if writer is None:
                        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    body = b'{"channel":"bench","payload":{"n":%d,"filler":"%s"}}' % (number, b"x" * PAYLOAD_BYTES)
                    writer.write(
                        b"POST /api/events/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                        b"Content-Length: %d\r\n\r\n" % len(body) + body
                    )
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length:")[2].split()[0])
                    answer = json.loads(await reader.readexactly(length))
            except TimeoutError:
                self.found.left.add(number)
                self.found.statuses["left"] += 1
            except (OSError, asyncio.IncompleteReadError):
                self.found.statuses["connection lost"] += 1
            else:
                self._note(client, number, head, answer, time.monotonic() - since, during)
                await asyncio.sleep(PAUSE_S)
                continue
            finally:
                if asyncio.current_task().cancelling() and writer is not None:
                    writer.transport.abort()
            if writer is not None:
                writer.transport.abort()
                writer = None
            await asyncio.sleep(PAUSE_S)

    def _note(self, client: int, number: int, head: bytes, answer: dict, seconds: float, during: bool) -> None:
        status = head.split()[1].decode()
        if status == "201":
            self.found.accepted.add(number)
            self.lasting.add(client)
        elif status == "503" and answer["type"] == "about:blank":
            assert b"retry-after" in head.lower(), head
            self.found.refused.add(number)
        else:
            status = f"{status} {answer['title']}"
        self.found.statuses[status] += 1
        if status == "503" and during:
            self.found.waits.append(seconds)
        elif status.startswith("503 "):
            self.found.unknown_waits.append(seconds)


def run(rounds: int = 1) -> Result:
    """Measure."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    result = Result("outage", f"{CLIENTS} clients publish while the database is unavailable for {OUTAGE_S:.0f} s")
    with Stack() as stack:
        for kind in KINDS:
            found, rows = asyncio.run(_outage(stack, kind))
            _report(result, kind, found, rows)
    return result


async def _outage(stack: Stack, kind: str) -> tuple[Found, set[int]]:
    target = conninfo_to_dict(stack.url)
    proxy = Proxy(f"{target['host']}/.s.PGSQL.{target.get('port', 5432)}")
    url = make_conninfo(stack.url, host="127.0.0.1", port=await proxy.start())
    server: Server = await asyncio.to_thread(stack.serve, DATABASE_URL=url)
    clients = Clients(server.port)
    tasks = [asyncio.create_task(clients.run(number)) for number in range(CLIENTS)]
    try:
        async with asyncio.timeout(RECOVERY_S):
            while len(clients.lasting) < CLIENTS:
                await asyncio.sleep(0.1)
        found = clients.found = Found()
        found.before = memory(server.process.pid)["now"]
        clients.outage = True
        if kind == "refused":
            proxy.refusing = True
            proxy.cut()
        else:
            proxy.hang()
        ends = time.monotonic() + OUTAGE_S
        while time.monotonic() < ends:
            await asyncio.sleep(0.25)
            found.memory.append(memory(server.process.pid)["now"])
        clients.outage = False
        clients.lasting.clear()
        proxy.refusing = False
        proxy.resume()
        back = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECOVERY_S):
                while len(clients.lasting) < 0.99 * CLIENTS:
                    await asyncio.sleep(0.02)
                    if clients.lasting:
                        found.first_s = min(found.first_s, time.monotonic() - back)
                found.all_s = time.monotonic() - back
        found.after = memory(server.process.pid)["now"]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.5)  # what was sent is committed
        await asyncio.to_thread(server.process.stop)
        await proxy.close()
    statement = "SELECT (payload->>'n')::bigint FROM sse_pg.events"
    rows = {number for (number,) in await asyncio.to_thread(stack.sql, statement)}
    await asyncio.to_thread(stack.sql, "TRUNCATE sse_pg.events")
    return found, rows


def _report(result: Result, kind: str, found: Found, rows: set[int]) -> None:
    mib = 1 << 20
    quarter = len(found.memory) // 4
    early, late = max(found.memory[:quarter]), max(found.memory[-quarter:])
    result.add(
        f"{kind}: memory before, at most in the first and in the last quarter, after, MiB",
        f"{found.before / mib:.0f}, {early / mib:.0f}, {late / mib:.0f}, {found.after / mib:.0f}",
        "the last at most 16 above the first",
        late <= early + 16 * mib,
    )
    waits = sorted(found.waits) or [float("inf")]
    result.add(
        f"{kind}: time until a 503 for what was not sent, s",
        f"p50 {percentile(waits, 0.5):.1f}, p99 {percentile(waits, 0.99):.1f}, max {waits[-1]:.1f}",
        "p99 below 7, the time-out is 5",
        percentile(waits, 0.99) < 7,
    )
    unknown = max(found.unknown_waits, default=0.0)
    result.add(f"{kind}: the longest until a 503 with an unknown outcome, s", f"{unknown:.1f}", "31", unknown < 31)
    result.add(f"{kind}: responses", ", ".join(f"{name}: {count:,}" for name, count in sorted(found.statuses.items())))
    result.add(f"{kind}: first 201 after the return, s", f"{found.first_s:.2f}", "3", found.first_s < 3)
    result.add(f"{kind}: 99 % of the clients have a 201 after, s", f"{found.all_s:.2f}", "10", found.all_s < 10)
    lost, false = found.accepted - rows, found.refused & rows
    result.add(f"{kind}: 201 and not in the table, 503 and in it", f"{len(lost)}, {len(false)}", "0, 0",
               not lost and not false)  # fmt: skip
    result.add(f"{kind}: published although the client had left", f"{len(found.left & rows):,}")
