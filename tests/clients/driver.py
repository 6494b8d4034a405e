"""Clients at work: each in a process of its own, its events read here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlencode

import pytest
from aiohttp import web

import sse_pg
from clients import install

DRIVERS = Path(__file__).parent / "drivers"
MODULE = Path(sse_pg.__file__).parent / "static" / "sse-pg.js"
LONGEST_LINE = 2**22
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--no-proxy-server",
)


@dataclass
class Driver:
    """What a client has received. ``gave_up`` is set where it will not come back by itself."""

    pages: int | None = None
    records: list[dict[str, str]] = field(default_factory=list)
    gave_up: bool = False
    said: str = ""

    async def open(self, url: str, types: list[str]) -> None:
        """Let the client connect."""
        raise NotImplementedError

    async def __aenter__(self) -> Driver:
        return self

    async def __aexit__(self, *_: object) -> None:
        raise NotImplementedError


class ProcessDriver(Driver):
    """A driver with the protocol of drivers/common.cjs."""

    def __init__(self, script: str) -> None:
        super().__init__()
        self._script = DRIVERS / script
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self, url: str, types: list[str]) -> None:
        environ = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
        if self._script.suffix == ".cjs":
            program, modules = install.node()
            environ["NODE_PATH"] = str(modules)
        else:
            program = str(install.python())
        self._process = await asyncio.create_subprocess_exec(
            program,
            str(self._script),
            url,
            *types,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
            env=environ,
        )
        self._reading = asyncio.create_task(self._read(self._process))

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is None or self._reading is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
        await self._reading

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(process.stderr.read())
        while line := await process.stdout.readline():
            self.records.append(json.loads(line))
        self.said = (await errors).decode(errors="replace")
        self.gave_up = await process.wait() != 0


class Browser(Driver):
    """Chromium's own EventSource, or the server's module, in a page that posts what it receives back to here."""

    def __init__(self, *, again: bool = False, page: str = "page.html") -> None:
        super().__init__()
        self._again = again
        self._file = DRIVERS / page
        app = web.Application(client_max_size=LONGEST_LINE)
        app.add_routes([web.get("/", self._page), web.post("/record", self._record), web.post("/gave-up", self._gave)])
        app.add_routes([web.get("/sse-pg.js", self._module)])
        app.on_response_prepare.append(_close_after)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        self._profile = TemporaryDirectory(prefix="sse-pg-chromium-", ignore_cleanup_errors=True)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Browser:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.pages = self._runner.addresses[0][1]
        return self

    async def open(self, url: str, types: list[str]) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("chromium is not installed")
        origin, path = url.split("/api/", 1)
        parameters = [("url", f"/api/{path}"), *(("type", kind) for kind in types), *[("again", "1")] * self._again]
        page = f"{origin}/?{urlencode(parameters)}"
        self._process = await asyncio.create_subprocess_exec(
            program,
            *CHROMIUM_FLAGS,
            f"--user-data-dir={self._profile.name}",
            page,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # a group of our own: its helpers go with it
            await self._process.wait()
        await self._runner.cleanup()
        self._profile.cleanup()

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text=self._file.read_text(), content_type="text/html")

    async def _module(self, _: web.Request) -> web.Response:
        return web.Response(text=MODULE.read_text(), content_type="text/javascript")

    async def _record(self, request: web.Request) -> web.Response:
        self.records += await request.json()
        return web.Response()

    async def _gave(self, _: web.Request) -> web.Response:
        self.gave_up = True
        return web.Response()


async def _close_after(_: web.Request, response: web.StreamResponse) -> None:
    """Let the connection end, so that the next request opens one, and the proxy sees where it goes.

    Every response, also the one to the favicon.ico that nobody has: a connection that is kept leads to the pages, and a
    stream that the browser asks for on it gets 404 for ever.
    """
    response.force_close()
