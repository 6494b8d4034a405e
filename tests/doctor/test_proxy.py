"""The doctor with a real nginx that breaks streams in every way that nginx can."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.process import SSE_PG, environment, free_port
from support.server import Launcher
from support.waiting import wait_for

from sse_pg.doctor.finding import Finding
from sse_pg.doctor.proxy import proxy

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx)")
Nginx = Callable[..., str]

CONFIGURATION = """
daemon off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port}{ssl};
        location / {{
            {lines}
            proxy_pass {upstream};
        }}
    }}
}}
"""


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture
def nginx() -> Iterator[Nginx]:
    """Start nginx before a server: ``nginx(server.url, "proxy_buffering on;")`` gives its URL."""
    with contextlib.ExitStack() as stack:

        def start(upstream: str, *lines: str, ssl: str = "") -> str:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)))
            port = free_port()
            text = CONFIGURATION.format(
                directory=directory, port=port, lines="\n            ".join(lines), upstream=upstream, ssl=ssl
            )
            (directory / "conf").write_text(text)
            assert NGINX is not None
            process = subprocess.Popen(
                [NGINX, "-p", str(directory), "-c", str(directory / "conf"), "-e", str(directory / "error.log")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

            def end() -> None:
                process.terminate()
                process.wait()

            stack.callback(end)
            wait_for(lambda: listens(port) or process.poll() is not None, "nginx")
            assert process.poll() is None, (directory / "error.log").read_text()
            return f"http://127.0.0.1:{port}"

        yield start


async def look(url: str, wait: float = 0.0, **headers: str) -> dict[str, Finding]:
    """Return the findings by their names."""
    return {finding.name: finding for finding in await proxy(url, wait=wait, headers=headers)}


async def test_a_server_without_a_proxy(launch: Launcher) -> None:
    server = await launch(heartbeat=0.1)
    findings = await look(server.url, wait=1)
    assert {name: finding.state for name, finding in findings.items()} == dict.fromkeys(
        ("stream", "buffering", "compression", "protocol", "resume", "quiet"), "ok"
    )
    assert (await look(server.url))["quiet"].state == "unchecked"


@pytest.mark.parametrize(
    ("setting", "found"), [("off", "none"), ("on", "gzip, by the server, which holds nothing back")]
)
async def test_a_server_that_compresses_is_fine(launch: Launcher, setting: str, found: str) -> None:
    server = await launch(compression=setting)
    finding = (await look(server.url))["compression"]
    assert (finding.state, finding.found) == ("ok", found)


@needs_nginx
async def test_nginx_with_its_defaults(launch: Launcher, nginx: Nginx) -> None:
    """The server's X-Accel-Buffering is all that nginx needs, apart from its timeouts."""
    server = await launch(heartbeat=0.1)
    findings = await look(nginx(server.url), wait=1)
    assert {finding.state for finding in findings.values()} == {"ok"}


COMPRESSING = [
    'proxy_set_header Accept-Encoding "";',
    "gzip on;",
    "gzip_types text/event-stream;",
    "gzip_min_length 0;",
]
BROKEN = [
    ("buffering", "error", ["proxy_buffering on;", "proxy_ignore_headers X-Accel-Buffering;"], "held back"),
    ("resume", "error", ['proxy_set_header Last-Event-ID "";'], "Last-Event-ID does not reach"),
    ("compression", "warning", COMPRESSING, "on its way (gzip)"),
    ("caching", "warning", ["proxy_hide_header Cache-Control;"], "Cache-Control is missing"),
    ("stream", "error", ["return 200 'hello';"], "not text/event-stream"),
    ("stream", "error", ["return 301 https://elsewhere/;"], "responds with 301"),
    ("stream", "error", ["return 401;"], "responds with 401"),
]


@needs_nginx
@pytest.mark.parametrize(("name", "state", "lines", "says"), BROKEN)
async def test_a_proxy_that_breaks_streams(
    launch: Launcher,
    nginx: Nginx,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    state: str,
    lines: list[str],
    says: str,
) -> None:
    if says == "held back":  # nothing comes, so nothing is lost by a short wait
        monkeypatch.setattr("sse_pg.doctor.proxy.RESPONSE_TIMEOUT_S", 1.5)
    server = await launch(heartbeat=3600)
    finding = (await look(nginx(server.url, *lines)))[name]
    assert (finding.state, says in finding.found) == (state, True), finding
    assert finding.fix


@needs_nginx
async def test_a_proxy_that_closes_quiet_streams(launch: Launcher, nginx: Nginx) -> None:
    cut = "proxy_read_timeout 1s;"
    server = await launch(heartbeat=3600)
    finding = (await look(nginx(server.url, cut), wait=30))["quiet"]
    assert (finding.state, "is closed after" in finding.found) == ("error", True)
    often = await launch(heartbeat=0.2)
    assert (await look(nginx(often.url, cut), wait=2))["quiet"].state == "ok"


async def test_a_stream_without_heartbeats(launch: Launcher) -> None:
    server = await launch(heartbeat=3600)
    finding = (await look(server.url, wait=0.5))["quiet"]
    assert (finding.state, "not even a heartbeat" in finding.found) == ("warning", True)


@needs_nginx
async def test_a_proxy_without_a_server(nginx: Nginx) -> None:
    finding = (await look(nginx(f"http://127.0.0.1:{free_port()}")))["stream"]
    assert (finding.state, "502" in finding.found) == ("error", True)


@needs_nginx
async def test_headers_go_with_the_requests(launch: Launcher, nginx: Nginx) -> None:
    server = await launch(heartbeat=3600)
    url = nginx(server.url, 'if ($http_authorization != "Bearer x") { return 403; }')
    assert "403" in (await look(url))["stream"].found
    assert (await look(url, Authorization="Bearer x"))["resume"].state == "ok"


async def test_an_address_other_than_loopback(launch: Launcher) -> None:
    """0.0.0.0 leads to this machine, but the doctor does not treat it as loopback."""
    server = await launch(heartbeat=3600)
    url = server.url.replace("127.0.0.1", "0.0.0.0")
    findings = await look(url)
    assert (findings["access"].state, findings["protocol"].state) == ("warning", "warning")
    assert "access" not in await look(url, Authorization="Bearer x")


async def test_a_server_that_requires_tokens(launch: Launcher) -> None:
    settings = {"heartbeat": 3600, "token_secret": "x" * 32}
    server = await launch(**settings)
    finding = (await look(server.url))["stream"]
    assert (finding.state, "SSE_PG_TOKEN" in finding.fix) == ("error", True)
    assert "401 Unauthorized: " in finding.found, "the detail of the refusal is missing"


async def test_the_doctor_is_not_counted_as_a_gap(launch: Launcher) -> None:
    server = await launch(heartbeat=3600)
    assert (await look(server.url))["resume"].state == "ok"
    assert not server.bus.hub.gap_notices
    assert not server.bus.cursors["malformed"]


@needs_nginx
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(("http2", "state", "says"), [(" http2", "ok", "HTTP/2"), ("", "warning", "HTTP/1.1")])
async def test_the_protocol_of_browsers(
    launch: Launcher, nginx: Nginx, tmp_path: Path, http2: str, state: str, says: str
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True,
    )  # fmt: skip
    server = await launch(heartbeat=0.1)
    url = nginx(
        server.url, ssl=f" ssl{http2}; ssl_certificate {certificate}; ssl_certificate_key {key}; root {tmp_path}"
    )
    url = url.replace("http://127.0.0.1", "https://localhost")
    finding = (await look(url))["stream"]
    assert (finding.state, "certificate" in finding.found) == ("error", True)
    assert "SSL_CERT_FILE" in finding.fix
    # aiohttp reads the certificates that it trusts when it is imported.
    command = [*SSE_PG, "doctor", "--json", "--url", url, "--wait", "1"]
    variables = environment(SSE_PG_DATA_DIR=str(tmp_path / "none"), SSL_CERT_FILE=str(certificate))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=variables, cwd="/")
    out, _ = await process.communicate()
    findings = {finding["name"]: finding for finding in json.loads(out)["findings"]}
    assert (findings["protocol"]["state"], says in findings["protocol"]["found"]) == (state, True), findings
    assert findings["quiet"]["state"] == "ok"


async def test_addresses_that_lead_nowhere() -> None:
    assert "cannot be read" in (await look(f"http://127.0.0.1:{free_port()}"))["stream"].found
    for url in ("ftp://x", "localhost:8080", "http://", "http://[::1"):
        assert "is not an http" in (await look(url))["stream"].found
