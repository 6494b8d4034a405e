"""nginx, HAProxy and Caddy with the configurations of docker/, in front of servers of a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.process import CHECKOUT, free_port
from support.waiting import TIMEOUT_S, eventually


def certificate(home: Path) -> None:
    """Write bus.crt, bus.key and both in bus.pem."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    words += ["-keyout", str(home / "bus.key"), "-out", str(home / "bus.crt")]
    subprocess.run(words, check=True, capture_output=True)
    (home / "bus.pem").write_text((home / "bus.crt").read_text() + (home / "bus.key").read_text())


@contextlib.asynccontextmanager
async def proxy(
    name: str, home: Path, *servers: str, quiet: str = "60s", host: str = "127.0.0.1"
) -> AsyncIterator[str]:
    """Run a proxy before servers; yield its URL. ``quiet`` stands for its timeout. HAProxy takes at most two."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed; Debian's package is {name}")
    port = free_port()
    if name == "caddy":
        upstreams = " ".join(dict.fromkeys(urlsplit(server).netloc for server in servers))
        words = [program, "run", "--adapter", "caddyfile", "--config", str(CHECKOUT / "docker" / "Caddyfile")]
        variables = {"SITE": f"https://127.0.0.1:{port}", "BIND": "127.0.0.1", "UPSTREAMS": upstreams}
        async with started(home, port, *words, env=caddy_environment(home, **variables)):
            yield variables["SITE"]
        return
    certificate(home)
    file = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[name]
    text = (CHECKOUT / "docker" / file).read_text()
    for second in re.findall(r"^ +server server-b:8080 .*\n", text, re.MULTILINE):  # nginx
        more = [second.replace("server-b:8080", urlsplit(url).netloc) for url in servers[1:] or servers]
        text = text.replace(second, "".join(more))
    changes = {
        "server:8080": urlsplit(servers[0]).netloc,
        "server-b:8080": urlsplit(servers[-1]).netloc,
        "listen 8443": f"listen {host}:{port}",
        "bind :8443": f"bind 127.0.0.1:{port}",
        f"/etc/{name}/": f"{home}/",
        "proxy_read_timeout 60s": f"proxy_read_timeout {quiet}",
        "timeout server 60s": f"timeout server {quiet}",
        "timeout client 60s": f"timeout client {quiet}",
        # As many files as any user may open.
        "maxconn 32768": "maxconn 400",
        "worker_rlimit_nofile 65536;": "",
        "worker_connections 16384": "worker_connections 400",
        "http {": "http {" + no_files_of_the_machine(home),
    }
    for old, new in changes.items():
        text = text.replace(old, new)
    (home / file).write_text(text)
    words = nginx_words(program, home) if name == "nginx" else [program, "-db", "-f", str(home / file)]
    async with started(home, port, *words, host=host):
        yield f"https://{host}:{port}"


def caddy_environment(home: Path, **more: str) -> dict[str, str]:
    """Return the variables with which Caddy keeps its files in a folder."""
    kept = {"HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    return {"PATH": os.environ["PATH"], **kept, **more}


def nginx_words(program: str, home: Path) -> list[str]:
    """Return the command for nginx with the nginx.conf in a folder."""
    more = f"daemon off; pid {home}/pid;" + (" user root;" if os.geteuid() == 0 else "")
    return [program, "-p", str(home), "-e", "stderr", "-c", str(home / "nginx.conf"), "-g", more]


@contextlib.asynccontextmanager
async def started(
    home: Path,
    port: int,
    *words: str,
    host: str = "127.0.0.1",
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> AsyncIterator[None]:
    """Run a program that listens on a port."""
    log = home / "proxy.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(*words, env=env, cwd=cwd, stdout=out, stderr=out)
    try:

        def listens() -> bool:
            assert process.returncode is None, log.read_text()
            with socket.socket() as probe:
                return probe.connect_ex((host, port)) == 0

        await eventually(listens)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(TIMEOUT_S):
            await process.wait()


def no_files_of_the_machine(home: Path) -> str:
    """Return what an http block of nginx needs to keep its files in a folder."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"{kind}_temp_path {home}/{kind};" for kind in kinds) + "access_log off;"
