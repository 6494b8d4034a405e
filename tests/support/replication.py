"""A primary and a standby, as clusters of this machine that can be killed and promoted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres
from sse_pg.embedded.binaries import Binaries
from sse_pg.embedded.postmaster import postmaster
from support import cluster
from support.waiting import wait_for

#: The name under which the standby receives what is written.
STANDBY = "the_standby"


class Node(EmbeddedPostgres):
    """A cluster that may be a standby."""

    def __init__(self, directory: Path, programs: Binaries, options: dict[str, str]) -> None:
        super().__init__(directory, binaries=programs, options=options)
        self._programs = programs
        self._settings = options

    @property
    def files(self) -> Path:
        """The directory of the cluster."""
        return self.data_dir / f"postgres-{self._programs.major}"

    def _wait_until_ready(self, log_size: int) -> bool:
        child = self._running()
        while not child.ended:
            found = postmaster(self.files)
            if found is not None and found.pid == child.pid and found.status in ("ready", "standby"):
                return True
            time.sleep(0.02)
        return False

    def kill(self) -> None:
        """End all of it at once, as the machine would that loses its power."""
        pids = [self.pid, *map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.stop()

    def sql(self, statement: str, *params: object) -> list[tuple[object, ...]]:
        """Run a statement on a connection of its own; return its rows."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            done = conn.execute(statement, params)  # type: ignore[arg-type]
            return done.fetchall() if done.description else []

    def promote(self) -> None:
        """Make a standby a primary; return when it is one."""
        self.sql("SELECT pg_promote(true, 60)")

    def copy(self, directory: Path) -> Node:
        """Make a standby of it, which is not started yet."""
        standby = Node(directory, self._programs, self._settings)
        directory.mkdir()
        where = conninfo_to_dict(self.url)
        source = make_conninfo("", host=where["host"], port=where["port"], user=where["user"], application_name=STANDBY)
        program = self._programs.bin / "pg_basebackup"
        subprocess.run(
            [program, "-D", standby.files, "-X", "stream", "-c", "fast", "-d", source], check=True, capture_output=True
        )
        (standby.files / "standby.signal").touch()
        with open(standby.files / "postgresql.auto.conf", "a") as conf:
            conf.write(f"primary_conninfo = '{source}'\n")
        owner = self.files.stat()
        for path in (standby.files, *standby.files.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        return standby


def hosts(*nodes: Node) -> str:
    """Return the connection string that names several nodes, in this order."""
    each = [conninfo_to_dict(node.url) for node in nodes]
    return make_conninfo(nodes[0].url, host=",".join(str(where["host"]) for where in each))


def synchronize(primary: Node) -> None:
    """Let every commit wait for the standby."""
    primary.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
    primary.sql("SELECT pg_reload_conf()")
    state = "SELECT sync_state FROM pg_stat_replication WHERE application_name = %s"
    wait_for(lambda: primary.sql(state, STANDBY) == [("sync",)], "synchronous replication")


@contextlib.contextmanager
def pair(programs: Binaries | None = None, **options: str) -> Iterator[tuple[Node, Node]]:
    """A primary with the schema, and a standby that follows it."""

    with cluster.directory() as room, contextlib.ExitStack() as stops:
        (room / "primary").mkdir()
        primary = Node(
            room / "primary",
            programs or cluster.binaries(),
            {**cluster.NOT_DURABLE, "max_connections": "100", "max_prepared_transactions": "10", **options},
        )
        stops.callback(primary.stop)
        primary.start()
        migrate(primary.url)
        standby = primary.copy(room / "standby")
        stops.callback(standby.stop)
        standby.start()
        wait_for(
            lambda: primary.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == [(1,)],
            "the replication",
        )
        yield primary, standby


def publish(node: Node, count: int = 1) -> list[int]:
    """Publish as psql would; return the ids."""
    rows = node.sql("SELECT sse_pg.publish('a', 't', '1') FROM generate_series(1, %s)", count)
    return [int(str(number)) for (number,) in rows]


def caught_up(primary: Node, standby: Node) -> None:
    """Wait until the standby has everything."""
    ((position,),) = primary.sql("SELECT pg_current_wal_insert_lsn()")
    wait_for(lambda: standby.sql("SELECT pg_last_wal_replay_lsn() >= %s", position) == [(True,)], "the standby")


def cut_off(standby: Node) -> None:
    """Let the standby receive nothing more, as behind a network that is down."""
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''")
    standby.sql("SELECT pg_reload_conf()")
    wait_for(lambda: standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") == [(0,)], "the end of the replication")


def follow(standby: Node, primary: Node) -> None:
    """Let a standby follow another primary, as after a failover."""
    where = conninfo_to_dict(primary.url)
    source = make_conninfo("", host=where["host"], port=where["port"], user=where["user"], application_name="follower")
    standby.sql(f"ALTER SYSTEM SET primary_conninfo = '{source}'")
    standby.sql("SELECT pg_reload_conf()")
    wait_for(lambda: standby.sql("SELECT status FROM pg_stat_wal_receiver") == [("streaming",)], "the replication")
