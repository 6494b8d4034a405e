"""What is measured, started for it: a PostgreSQL of its own, ``sse-pg serve``, and the rivals. All on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import sse_pg
from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres, find_binaries

HERE = Path(__file__).parent
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

NCHAN_CONF = """
load_module {module};
daemon off;
worker_processes 1;
error_log {directory}/error.log warn;
pid {directory}/nginx.pid;
worker_rlimit_nofile 20000;
events {{ worker_connections 15000; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 100000000;
    nchan_max_reserved_memory 256m;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location /stream {{ nchan_subscriber eventsource; nchan_channel_id bench; nchan_subscriber_first_message newest; }}
        location /publish {{ nchan_publisher; nchan_channel_id bench;
                             nchan_message_buffer_length {buffer}; nchan_message_timeout 5m; }}
    }}
}}
"""


class Missing(Exception):
    """A program that a measurement needs is not on this machine."""


def program(name: str, *, hint: str) -> str:
    """Return the path of a program; raises Missing."""
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not on this machine ({hint})")
    return found


def free_port() -> int:
    """Find a port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Process:
    """A child that is ended with the measurement, by its id."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str] | None = None, cwd: Path | None = None):
        with open(log, "ab") as output:
            self.popen = subprocess.Popen(
                command, env={**os.environ, **(env or {})}, cwd=cwd, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self.log = log

    @property
    def pid(self) -> int:
        return self.popen.pid

    def wait_for(self, url: str, seconds: float = 40.0) -> None:
        """Wait until it answers 2xx there."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return
            except OSError:
                if self.popen.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.popen.args} does not serve:\n{self.log.read_text()[-2000:]}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(15)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


class Stack:
    """The directory and the processes of one run; leaves nothing behind."""

    def __init__(self, options: dict[str, str] | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sse-pg-bench-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.binaries = find_binaries()
        self._postgres = EmbeddedPostgres(
            self.directory / "data", binaries=self.binaries, options={"max_connections": "150", **(options or {})}
        )
        self._stops = contextlib.ExitStack()
        self._count = 0

    def __enter__(self) -> Stack:
        self._stops.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._postgres.start()
        self._stops.callback(self._postgres.stop)
        self.url = self._postgres.url
        migrate(self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self._stops.close()

    @property
    def postgres(self) -> EmbeddedPostgres:
        """The cluster."""
        return self._postgres

    def stop_postgres(self) -> None:
        """Take PostgreSQL away."""
        self._postgres.stop()

    def start_postgres(self) -> None:
        """Bring it back."""
        self._postgres.start()

    @property
    def postgres_pid(self) -> int:
        """The postmaster."""
        return self._postgres.pid

    def sql(self, statement: str, database: str | None = None) -> list[tuple]:
        """Run a statement on a connection of its own; return its rows."""
        with psycopg.connect(self.database(database), autocommit=True) as conn:
            cursor = conn.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def database(self, name: str | None) -> str:
        """Return the connection string of a database of this PostgreSQL."""
        return make_conninfo(self.url, dbname=name) if name else self.url

    def copy_database(self, name: str, statement: str) -> None:
        """Make a database with the same schema, then run a statement in it. Nobody may be connected."""
        dbname = conninfo_to_dict(self.url)["dbname"]
        with psycopg.connect(make_conninfo(self.url, dbname="postgres"), autocommit=True) as conn:
            conn.execute(f'CREATE DATABASE {name} TEMPLATE "{dbname}"')
        self.sql(statement, name)

    def pg_program(self, name: str) -> tuple[str, dict[str, str]]:
        """Return a program of PostgreSQL and the environment that points it at this server."""
        path = self.binaries.bin / name
        target = conninfo_to_dict(self.url)
        env = {"PGHOST": str(target["host"]), "PGPORT": str(target.get("port", 5432)), "PGUSER": str(target["user"]),
               "PGDATABASE": str(target["dbname"])}  # fmt: skip
        return str(path) if path.exists() else program(name, hint="Debian: postgresql"), env

    def start(self, command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> Process:
        """Start a process that ends with the stack."""
        self._count += 1
        process = Process(command, self.directory / f"process{self._count}.log", env, cwd)
        self._stops.callback(process.stop)
        return process

    def serve(self, *, wait: bool = True, port: int = 0, **env: str) -> Server:
        """Start ``sse-pg serve`` and, unless not ``wait``, wait until it is ready."""
        port = port or free_port()
        process = self.start(
            [sys.executable, "-m", "sse_pg", "serve", "--port", str(port)],
            {
                "DATABASE_URL": self.url,
                "PYTHONPATH": str(Path(sse_pg.__file__).parents[1]),
                "SSE_PG_LOG_LEVEL": "warning",
                "SSE_PG_DRAIN_SECONDS": "0",
                **env,
            },
        )
        if wait:
            process.wait_for(f"http://127.0.0.1:{port}/readyz")
        return Server("sse-pg", port, process, "/api/events/stream?channels=bench", "/api/events/publish")

    def serve_node(self, database: str) -> Server:
        """Start the Express server on a database; installs its packages on first use."""
        node, npm = program("node", hint="Debian: nodejs"), program("npm", hint="Debian: npm")
        home = self.directory / "node"
        if not home.exists():
            shutil.copytree(HERE / "rival", home)
            subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=home, check=True, capture_output=True)
        port = free_port()
        _, env = self.pg_program("psql")
        process = self.start([node, "server.js", str(port)], {**env, "PGDATABASE": database}, home)
        process.wait_for(f"http://127.0.0.1:{port}/healthz")
        return Server("node", port, process, "/stream", "/publish")

    def serve_nchan(self, buffer: int = 2000) -> Server:
        """Start nginx with nchan, one worker."""
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        if not NCHAN_MODULE.exists() or not Path(nginx).exists():
            raise Missing("nchan is not on this machine (Debian: nginx libnginx-mod-nchan)")
        home = self.directory / f"nginx{self._count}"
        home.mkdir(mode=0o777)
        home.chmod(0o777)
        port = free_port()
        conf = home / "nginx.conf"
        conf.write_text(NCHAN_CONF.format(module=NCHAN_MODULE, directory=home, port=port, buffer=buffer))
        process = self.start([nginx, "-p", str(home), "-c", str(conf), "-e", str(home / "error.log")])
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        return Server("nchan", port, process, "/stream", "/publish")


class Server:
    """Something that publishes and streams."""

    #: The database, if it is not that of the stack.
    database: str | None = None

    def __init__(self, name: str, port: int, process: Process, stream: str, publish: str) -> None:
        self.name = name
        self.port = port
        self.process = process
        self.stream = stream
        self.publish = publish

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def worker_pid(self) -> int:
        """Return the process that holds the connections: nginx has a master above it."""
        if self.name != "nchan":
            return self.process.pid
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])


def memory(pid: int) -> dict[str, int]:
    """Return resident memory and its peak, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"now": found["VmRSS"], "peak": found["VmHWM"]}


def forget_peak(pid: int) -> None:
    """Let the peak begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ended_children_seconds(pid: int) -> float:
    """Return the processor time of a process's children that have ended: the backends of a postmaster."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
