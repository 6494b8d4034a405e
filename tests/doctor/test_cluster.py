"""The doctor with clusters of its own: a replica, a notification queue that fills up, a durable cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.doctor import apply_fixes, one, report
from support.waiting import wait_for

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres, find_binaries

SIZE = "max_notify_queue_pages"


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL as `sse-pg serve` starts it, durable, with the smallest notification queue."""
    programs = os.environ.get("SSE_PG_TEST_POSTGRES")
    binaries = find_binaries(Path(programs) if programs else None)
    directory = Path(tempfile.mkdtemp(prefix="sse-pg-doctor-", dir="/tmp"))
    directory.chmod(0o755)
    options = {SIZE: "64"} if binaries.major >= 17 else {}
    try:
        with EmbeddedPostgres(directory, binaries=binaries, options=options) as server:
            migrate(server.url)
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def test_a_durable_cluster(cluster: EmbeddedPostgres) -> None:
    assert {f.name for f in await report(cluster.url) if f.state != "ok"} <= {"files"}


async def test_a_notification_queue_that_fills(cluster: EmbeddedPostgres) -> None:
    with psycopg.connect(cluster.url, autocommit=True) as db:
        if db.info.server_version < 170000:
            pytest.skip(f"PostgreSQL {db.info.server_version // 10000} has no {SIZE}: its queue holds 8 GB")
        role = f"r{uuid4().hex[:12]}"
        db.execute(f"CREATE ROLE {role} LOGIN")  # type: ignore[arg-type]
        with psycopg.connect(cluster.url, autocommit=True) as listener:
            listener.execute("LISTEN anything")
            listener.execute("BEGIN")
            listener.execute("SELECT 1")
            # Many small commits, because one that notifies fails when the queue is full.
            while db.execute("SELECT pg_notification_queue_usage()").fetchone() < (0.1,):  # type: ignore[operator]
                db.execute("SELECT pg_notify('x', repeat('x', 7000) || n) FROM generate_series(1, 5) n")
            finding = await one("queue", cluster.url)
            assert finding.state == "warning"
            assert f"pid {listener.info.backend_pid} of postgres" in finding.found
            hidden = await one("queue", make_conninfo(cluster.url, user=role))
            assert "this role may not see" in hidden.found
            apply_fixes(db, [hidden])
            assert str(listener.info.backend_pid) in (await one("queue", make_conninfo(cluster.url, user=role))).found
            while db.execute("SELECT pg_notification_queue_usage()").fetchone() < (0.5,):  # type: ignore[operator]
                db.execute("SELECT pg_notify('x', repeat('x', 7000) || n) FROM generate_series(1, 5) n")
            finding = await one("queue", cluster.url)
            assert finding.state == "error"
            apply_fixes(db, [finding])
            wait_for(lambda: db.execute("SELECT pg_notification_queue_usage()").fetchone() == (0,), "an empty queue")
            with pytest.raises(psycopg.OperationalError):
                listener.execute("SELECT 1")
        assert (await one("queue", cluster.url)).state == "ok"
        db.execute(f"DROP ROLE {role}")  # type: ignore[arg-type]


@pytest.fixture
def replica(cluster: EmbeddedPostgres) -> Iterator[str]:
    """A standby of that cluster, made by pg_basebackup with the same programs."""
    programs = os.environ.get("SSE_PG_TEST_POSTGRES")
    binaries = find_binaries(Path(programs) if programs else None)
    if not (binaries.bin / "pg_basebackup").exists():
        pytest.skip(f"there is no pg_basebackup in {binaries.bin}")
    there = conninfo_to_dict(cluster.url)
    data = next(cluster.data_dir.glob("postgres-[0-9]*[0-9]"))
    owner = data.stat()
    directory = Path(tempfile.mkdtemp(prefix="sse-pg-replica-", dir="/tmp"))
    root = os.geteuid() == 0
    as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if root else {}
    if root:
        os.chown(directory, owner.st_uid, owner.st_gid)
    socket = str(there["host"])
    try:
        subprocess.run(
            [binaries.bin / "pg_basebackup", "-D", directory / "data", "-h", socket, "-U", "postgres", "-R",
             "-X", "stream", "-c", "fast"], check=True, capture_output=True, cwd="/", **as_owner,
        )  # fmt: skip
        standby = subprocess.Popen(
            [binaries.bin / "postgres", "-D", directory / "data", "-c", "listen_addresses=",
             "-c", f"unix_socket_directories={directory}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **as_owner,
        )  # fmt: skip
        try:
            url = make_conninfo(cluster.url, host=str(directory), port="5432")
            wait_for(lambda: answers(url), "the replica")
            yield url
        finally:
            standby.terminate()
            standby.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


async def test_a_replica(cluster: EmbeddedPostgres, replica: str) -> None:
    finding = await one("primary", replica)
    assert (finding.state, "replica" in finding.found) == ("error", True)
    findings = await report(replica)
    assert [f.name for f in findings if f.state == "error"] == ["primary"], findings
    hosts = [conninfo_to_dict(url)["host"] for url in (replica, cluster.url)]
    both = make_conninfo(cluster.url, host=",".join(map(str, hosts)), port="5432,5432")
    assert (await one("primary", both)).state == "warning"  # sse-pg finds the primary; libpq's programs do not
    assert "target_session_attrs=read-write" in finding.fix
    assert (await one("primary", make_conninfo(both, target_session_attrs="read-write"))).state == "ok"


async def test_two_hosts_accept_writes(cluster: EmbeddedPostgres, replica: str) -> None:
    """As when an old primary comes back after its standby was promoted."""
    (old, port), new = [
        (conninfo_to_dict(url)["host"], conninfo_to_dict(url).get("port")) for url in (cluster.url, replica)
    ]

    def several(*hosts: object) -> str:
        ports = ",".join(str(port) if host == old else "5432" for host in hosts)
        return make_conninfo(cluster.url, host=",".join(map(str, hosts)), port=ports)

    assert not [f for f in await report(cluster.url) if f.name == "primaries"]
    assert (await one("primaries", several(old, new[0]))).state == "ok"
    assert (await one("primaries", several(old, f"{old}/../{Path(str(old)).name}"))).state == "ok"  # one, by two names
    nobody = await one("primaries", several(old, "/nowhere"))
    assert (nobody.state, "/nowhere" in nobody.found) == ("warning", True)
    with psycopg.connect(replica, autocommit=True) as promoted:
        promoted.execute("SELECT pg_promote()")
    for settings in ({"url": several(new[0], old)}, {"url": cluster.url, "listen_database_url": several(old, new[0])}):
        both = await one("primaries", **settings)
        assert (both.state, str(old) in both.found, str(new[0]) in both.found) == ("error", True, True)
    with psycopg.connect(cluster.url, autocommit=True) as fenced:
        fenced.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        fenced.execute("SELECT pg_reload_conf()")
        try:
            wait_for(lambda: fenced.execute("SHOW default_transaction_read_only").fetchone() == ("on",), "the setting")
            assert (await one("primaries", several(new[0], old))).state == "ok"
        finally:
            fenced.execute("SET default_transaction_read_only = off")
            fenced.execute("ALTER SYSTEM RESET default_transaction_read_only")
            fenced.execute("SELECT pg_reload_conf()")
