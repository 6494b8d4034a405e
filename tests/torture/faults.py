"""The faults, one method each, and the servers that they happen to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from random import Random

import psycopg
from support.database_proxy import Proxy
from support.pgbouncer import PgBouncer

from sse_pg.embedded import EmbeddedPostgres

TESTS = Path(__file__).parents[1]
SETTINGS = {
    "SSE_PG_DRAIN_SECONDS": "0.3",
    "SSE_PG_RETRY_MS": "50",
    "SSE_PG_HEARTBEAT_SECONDS": "1",
    "SSE_PG_POSITION_SECONDS": "1",
    "SSE_PG_RING_EVENTS": "300",
    "SSE_PG_REPLAY_PAGE": "100",
    "SSE_PG_STREAM_BUFFER_BYTES": "65536",
    "SSE_PG_LOG_LEVEL": "warning",
}


class ServerProcess:
    """One ``sse-pg serve`` on a port of its own, behind its own proxy to the database."""

    def __init__(self, port: int, database_url: str, log: str, env: dict[str, str], program: str = "sse_pg") -> None:
        """``program`` is a module with the command line of sse_pg."""
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._database_url = database_url
        self._log = log
        self._env = env
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, if it does not run."""
        if self._process is not None and self._process.poll() is None:
            return
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._program, "serve", "--port", str(self._port)],
                cwd=TESTS,
                env={**os.environ, **SETTINGS, **self._env, "DATABASE_URL": self._database_url},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def ended(self) -> None:
        """Wait until it has ended."""
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


class Faults:
    """Injects random faults, and ends each of them."""

    def __init__(
        self,
        seed: int,
        postgres: EmbeddedPostgres,
        servers: list[ServerProcess],
        proxies: list[Proxy],
        pooler: PgBouncer | None = None,
    ) -> None:
        self._random = Random(f"{seed} faults")
        self._postgres = postgres
        self._servers = servers
        self._proxies = proxies
        self._pooler = pooler
        self.done: list[str] = []

    async def run(self, pause: float, *, database_faults: bool = True) -> None:
        """Inject one fault after the other until cancelled; each ends before the next begins."""
        kinds = [
            (self.terminate_listen, 4),
            (self.terminate_any, 4),
            (self.cut_proxy, 3),
            (self.hang_proxy, 2),
            (self.kill_server, 2),
            (self.stop_server, 2),
            (self.freeze_server, 1),
        ]
        if database_faults:
            kinds += [(self.restart_fast, 1), (self.crash_database, 1), (self.database_away, 1)]
        if self._pooler is not None:
            kinds += [(self.kill_pooler, 3), (self.pause_pooler, 3), (self.freeze_pooler, 2)]
        while True:
            await asyncio.sleep(self._random.expovariate(1 / pause))
            (kind,) = self._random.choices([k for k, _ in kinds], [w for _, w in kinds])
            self.done.append(kind.__name__)
            await kind()

    async def terminate_listen(self) -> None:
        """End the backends of all LISTEN connections."""
        await self._sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sse-pg tail'")

    async def terminate_any(self) -> None:
        """End the backend of any client."""
        await self._sql(
            "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 2) some"
        )

    async def cut_proxy(self) -> None:
        """Cut a server off its database; it may come back at once."""
        self._random.choice(self._proxies).cut()

    async def hang_proxy(self) -> None:
        """Let a server's connections hang for a while."""
        proxy = self._random.choice(self._proxies)
        proxy.hang()
        await asyncio.sleep(self._random.uniform(0.2, 3))
        proxy.resume()

    async def kill_server(self) -> None:
        """Kill -9, and start again."""
        server = self._random.choice(self._servers)
        server.kill()
        await asyncio.sleep(self._random.uniform(0, 1))
        server.start()

    async def stop_server(self) -> None:
        """SIGTERM under load, and start again."""
        server = self._random.choice(self._servers)
        server.signal(signal.SIGTERM)
        await server.ended()
        server.start()

    async def freeze_server(self) -> None:
        """Stop a server's process for a while; the others go on."""
        server = self._random.choice(self._servers)
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(self._random.uniform(0.2, 2))
        server.signal(signal.SIGCONT)

    async def restart_fast(self) -> None:
        """Restart PostgreSQL properly."""
        await asyncio.to_thread(self._postgres.stop)
        await asyncio.to_thread(self._postgres.start)

    async def crash_database(self) -> None:
        """kill -9 the postmaster."""
        os.kill(self._postgres.pid, signal.SIGKILL)
        await asyncio.to_thread(self._postgres.stop)
        await asyncio.to_thread(self._postgres.start)

    async def database_away(self) -> None:
        """Keep PostgreSQL down for some seconds."""
        await asyncio.to_thread(self._postgres.stop)
        await asyncio.sleep(self._random.uniform(1, 6))
        await asyncio.to_thread(self._postgres.start)

    async def kill_pooler(self) -> None:
        """Kill PgBouncer, and start it again."""
        assert self._pooler is not None
        self._pooler.kill()
        await asyncio.sleep(self._random.uniform(0, 1))
        self._pooler.start()

    async def pause_pooler(self) -> None:
        """PAUSE: PgBouncer lets transactions end and begins none. Then RESUME."""
        await self._signals(signal.SIGUSR1, signal.SIGUSR2)

    async def freeze_pooler(self) -> None:
        """Stop PgBouncer's process for a while, in the middle of transactions."""
        await self._signals(signal.SIGSTOP, signal.SIGCONT)

    async def _signals(self, stop: int, go_on: int) -> None:
        assert self._pooler is not None
        self._pooler.signal(stop)
        await asyncio.sleep(self._random.uniform(0.2, 3))
        self._pooler.signal(go_on)

    async def _sql(self, statement: str) -> None:
        with contextlib.suppress(psycopg.Error):
            async with await psycopg.AsyncConnection.connect(self._postgres.url, autocommit=True) as conn:
                await conn.execute(statement)


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
