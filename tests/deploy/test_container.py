"""The container files: consistent with each other and with the package, and understood by the programs they are for."""

import asyncio
import configparser
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import aiohttp
import pytest
from aiohttp import test_utils, web
from support.process import CHECKOUT, free_port
from support.proxies import caddy_environment
from support.proxies import proxy as running

from sse_pg.auth import exposure
from sse_pg.config import Settings
from sse_pg.errors import SettingError

DOCKERFILE = CHECKOUT / "docker" / "Dockerfile"
CADDYFILE = CHECKOUT / "docker" / "Caddyfile"
SECRET = re.compile(r"password|passwd|secret|token|api_?key|private", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word.upper(), rest) for word, _, rest in (line.strip().partition(" ") for line in lines if line.strip())]


def final_stage() -> list[tuple[str, str]]:
    all_of_it = instructions()
    start = max(i for i, (word, _) in enumerate(all_of_it) if word == "FROM")
    return all_of_it[start:]


def last(word: str) -> str:
    return [rest for name, rest in final_stage() if name == word][-1]


def is_sent(path: str) -> bool:
    """Tell whether .dockerignore lets a file through to the build; its last pattern that matches decides."""
    parts = path.split("/")
    prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    sent = True
    for line in (CHECKOUT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#") and any(fnmatch(p, pattern.lstrip("!")) for p in prefixes):
            sent = pattern.startswith("!")
    return sent


def copied() -> list[str]:
    return [
        source
        for word, rest in instructions()
        if word in ("COPY", "ADD") and "--from=" not in rest
        for source in rest.split()[:-1]
    ]


def test_everything_copied_exists_and_is_sent():
    assert copied()
    for source in copied():
        assert (CHECKOUT / source).exists(), source
        assert is_sent(source), source


def test_what_the_wheel_is_made_of_is_copied():
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    needed = {"pyproject.toml", "setup.cfg", setup["metadata"]["license_files"]}
    needed.add(setup["metadata"]["long_description"].removeprefix("file:").strip())
    needed.update(line.split("=")[1].strip() for line in setup["options"]["package_dir"].strip().splitlines())
    assert needed == set(copied())


@pytest.mark.parametrize("path", [".env", ".git/config", "docs/x.md", "tests/x.py", "sse_pg/__pycache__/x.pyc"])
def test_nothing_else_is_sent(path):
    assert not is_sent(path)


def test_the_final_user_is_a_number_and_not_root():
    uid, _, gid = last("USER").partition(":")
    assert int(uid) > 0
    assert int(gid) > 0
    words = [word for word, _ in final_stage()]
    assert "RUN" not in words[words.index("USER") :]


def test_entrypoint_and_command_are_in_exec_form():
    assert json.loads(last("ENTRYPOINT")) == ["sse-pg"]
    assert json.loads(last("CMD")) == ["serve"]
    assert last("STOPSIGNAL") == "SIGTERM"


def test_no_secret_and_no_embedded_database_in_the_image():
    for word, rest in instructions():
        if word in ("ENV", "ARG"):
            assert not SECRET.search(rest), rest
        assert "[embedded]" not in rest
        assert "[dev]" not in rest


def test_all_stages_have_the_same_base():
    bases = {rest.split()[0] for word, rest in instructions() if word == "FROM"}
    assert bases == {"${BASE}"}


class _Ready(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def ready_server() -> Iterator[tuple[type[_Ready], int]]:
    handler = type("Handler", (_Ready,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield handler, server.server_address[1]
        server.shutdown()
        thread.join()


def healthcheck(port: int) -> int:
    command = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert command.pop(0) == "python3"
    # A proxy in the environment must not be asked.
    env = {"PORT": str(port), "http_proxy": "http://127.0.0.1:9", "PATH": os.environ["PATH"]}
    return subprocess.run([sys.executable, *command], env=env, stderr=subprocess.DEVNULL, timeout=30).returncode


def test_the_health_check_follows_readiness(ready_server):
    handler, port = ready_server
    assert healthcheck(port) == 0
    handler.status = 503
    assert healthcheck(port) == 1


def test_the_health_check_fails_without_a_server():
    assert healthcheck(free_port()) == 1


# compose.yaml


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    content: dict[str, Any] = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())
    return content


def servers(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in compose["services"].items() if name.startswith("server")}


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_plain_up_starts_a_database_and_one_server(compose):
    plain = {name for name, service in compose["services"].items() if "profiles" not in service}
    assert plain == {"postgres", "server"}
    assert "version" not in compose
    assert len(servers(compose)) == 3
    assert all(service["profiles"] == ["scaled"] for name, service in compose["services"].items() if name not in plain)


def test_ports_are_published_on_loopback_only(compose):
    assert "ports" not in compose["services"]["postgres"]
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:${PORT:-8080}:8080", "127.0.0.1:${TLS_PORT:-8443}:8443"]


def test_the_database_keeps_its_data_and_is_waited_for(compose):
    postgres = compose["services"]["postgres"]
    name, _, target = postgres["volumes"][0].partition(":")
    assert name in compose["volumes"]
    # 18 and later declare the parent directory as their volume.
    assert re.match(r"postgres:(1[89]|[2-9]\d)\b", postgres["image"])
    assert target == "/var/lib/postgresql"
    assert "pg_isready -h 127.0.0.1" in " ".join(postgres["healthcheck"]["test"])
    for server in servers(compose).values():
        assert server["depends_on"]["postgres"]["condition"] == "service_healthy"


def test_server_and_database_are_told_the_same(compose):
    postgres = compose["services"]["postgres"]["environment"]
    for server in servers(compose).values():
        env = server["environment"]
        user, name = postgres["POSTGRES_USER"], postgres["POSTGRES_DB"]
        assert env["DATABASE_URL"] == f"postgresql://{user}@postgres:5432/{name}"
        assert env["PGPASSWORD"] == postgres["POSTGRES_PASSWORD"]
        # .env may move the published port; inside it stays where the health check and the port mapping look.
        assert (env["HOST"], env["PORT"]) == ("0.0.0.0", "8080")


def test_the_quick_start_may_be_open_and_asks_for_tokens_once_there_is_a_secret(compose):
    for server in servers(compose).values():
        env = {"SSE_PG_OPEN": server["environment"]["SSE_PG_OPEN"], "HOST": server["environment"]["HOST"]}
        assert exposure.check(Settings.from_env(env)).startswith("open: ")
        assert exposure.check(Settings.from_env({**env, "SSE_PG_TOKEN_SECRET": "x" * 32})) is None
        with pytest.raises(SettingError, match="SSE_PG_TOKEN_SECRET"):
            exposure.check(Settings.from_env({"HOST": env["HOST"]}))


def test_servers_are_stopped_gently_and_run_without_privilege(compose):
    for server in servers(compose).values():
        assert seconds(server["stop_grace_period"]) > Settings().drain + 5
        assert server["ulimits"]["nofile"] > Settings().max_streams
        assert server["read_only"] is True
        assert server["tmpfs"] == ["/tmp"]
        assert server["security_opt"] == ["no-new-privileges:true"]
        assert server["restart"] == "unless-stopped"
        assert server["env_file"] == [{"path": ".env", "required": False}]


def test_the_image_is_built_by_one_service_and_pulled_by_none(compose):
    built = [service for service in servers(compose).values() if "build" in service]
    assert len(built) == 1
    assert (CHECKOUT / built[0]["build"]["context"] / built[0]["build"]["dockerfile"]).samefile(DOCKERFILE)
    assert {service["image"] for service in servers(compose).values()} == {built[0]["image"]}
    assert all(service["pull_policy"] in ("build", "never") for service in servers(compose).values())


def output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def test_compose_understands_it(compose, tmp_path):
    if output("docker", "compose", "version"):
        program, knows_all = ["docker", "compose"], True
    elif version := output("docker-compose", "version", "--short"):
        program, knows_all = ["docker-compose"], not version.startswith("1.")
    else:
        pytest.skip("neither docker compose nor docker-compose is installed")
    text = (CHECKOUT / "compose.yaml").read_text()
    if not knows_all:
        # Version 1 has no optional env_file. All the rest it has to understand.
        yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
        lowered = {
            "services": {
                name: {key: value for key, value in service.items() if key != "env_file"}
                for name, service in compose["services"].items()
            },
            "volumes": compose["volumes"],
        }
        text = yaml.safe_dump(lowered)
    (tmp_path / "empty.env").touch()
    program += ["--project-directory", str(CHECKOUT), "--env-file", str(tmp_path / "empty.env"), "-f", "-"]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "POSTGRES_DB": "other"}
    done = subprocess.run(
        [*program, "--profile", "scaled", "config"], input=text, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "postgresql://sse_pg@postgres:5432/other" in done.stdout
    assert "${" not in done.stdout


# The proxy


def test_the_proxy_names_the_servers_and_the_port(compose):
    text = CADDYFILE.read_text()
    found = re.search(r"\{\$UPSTREAMS:(.*)\}", text)
    assert found
    assert found[1].split() == [f"{name}:8080" for name in servers(compose)]
    proxy = compose["services"]["proxy"]
    assert proxy["ports"][0].endswith(":8443")
    assert "{$SITE:https://localhost:8443}" in text
    assert any(
        (CHECKOUT / volume.split(":")[0]).exists() for volume in proxy["volumes"] if volume.startswith("./docker/")
    )


@pytest.fixture
def caddy() -> str:
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("caddy is not installed; Debian's package is caddy")
    return program


def test_caddy_understands_the_caddyfile(caddy, tmp_path):
    done = subprocess.run(
        [caddy, "validate", "--adapter", "caddyfile", "--config", str(CADDYFILE)],
        env=caddy_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "not formatted" not in done.stderr


class _Upstream:
    """A server whose stream sends an event when told to, and which knows whether the stream is open."""

    def __init__(self) -> None:
        self.send: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def ready(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            while True:
                await response.write(await self.send.get())
        finally:
            self.closed.set()


async def test_the_proxy_holds_nothing_back_and_tells_when_a_client_leaves(tmp_path):
    upstream = _Upstream()
    app = web.Application()
    app.add_routes([web.get("/readyz", upstream.ready), web.get("/stream", upstream.stream)])
    async with (
        test_utils.TestServer(app, host="127.0.0.1", handler_cancellation=True) as server,
        running("caddy", tmp_path, f"http://127.0.0.1:{server.port}") as site,
        asyncio.timeout(20),
        aiohttp.ClientSession() as session,
    ):
        # The headers come before there is any event, and each event before the next one is written.
        answer = await session.get(f"{site}/stream", ssl=False, headers={"Accept-Encoding": "gzip"})
        assert answer.content_type == "text/event-stream"
        assert "Content-Encoding" not in answer.headers
        for block in (b"id: 1\ndata: 1\n\n", b"id: 2\ndata: 2\n\n"):
            upstream.send.put_nowait(block)
            assert await answer.content.readexactly(len(block)) == block
        answer.close()
        # Although nothing more is written.
        await upstream.closed.wait()
