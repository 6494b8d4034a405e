"""Every snippet of docs/clients.md runs as it stands there, and prints an event that is published while it runs."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Route, async_playwright
from support.client import Client
from support.pages import Page
from support.server import Launcher, Server, greeted
from support.waiting import eventually

from clients import install

PAGE = Page("docs/clients.md")
SERVER = "http://localhost:8080"
SNIPPETS = [(kind, text) for kind, text in PAGE.blocks if kind in ("python", "js")]
PROGRAMS = [snippet for snippet in SNIPPETS if SERVER in snippet[1]]
SCRIPTS = [text for _, text in SNIPPETS if SERVER not in text]
HTML = """<!doctype html>
<link rel="icon" href="data:,">
<script type="importmap">
  {"imports": {
    "@microsoft/fetch-event-source": "/modules/@microsoft/fetch-event-source/lib/esm/index.js",
    "event-source-polyfill": "/modules/event-source-polyfill/src/eventsource.js"
  }}
</script>
<script type="module" src="/snippet.js"></script>
"""
# What a bundler does for a package that is no module.
WRAPPED = """const module = { exports: {} }, exports = module.exports;
%s
export const { EventSourcePolyfill } = module.exports
"""


def name(text: str) -> str:
    """What a snippet is called in the list of tests: the client that it imports."""
    found = re.search(r"^from (\w+_\w+)\S* import|from '([^']+)'", text, re.M)
    return (found[1] or found[2]) if found else "EventSource"


async def published(server: Server) -> None:
    """Publish once somebody listens."""
    await eventually(lambda: greeted(server))
    async with Client(server.url) as client:
        await client.publish("orders", "lamp", "PAID")


def test_no_snippet_is_left_out() -> None:
    assert {kind for kind, _ in PAGE.blocks} <= {"python", "js", "text"}
    assert {kind for kind, _ in PROGRAMS} == {"python", "js"}
    assert len(SCRIPTS) == 4


@pytest.mark.parametrize(("kind", "text"), PROGRAMS, ids=[name(text) for _, text in PROGRAMS])
async def test_a_program(kind: str, text: str, launch: Launcher, tmp_path: Path) -> None:
    if kind == "js":
        program, modules = install.node()
        (tmp_path / "node_modules").symlink_to(modules)
        command = [program, "snippet.mjs"]
    else:
        command = [str(install.python()), "-u", "snippet.py"]
    server = await launch()
    (tmp_path / command[-1]).write_text(text.replace(SERVER, server.url))
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    said = b""
    try:
        await published(server)
        async with asyncio.timeout(20):
            while b"lamp" not in said:
                line = await process.stdout.readline()
                said += line
                assert line, said.decode()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.browser
@pytest.mark.parametrize("text", SCRIPTS, ids=map(name, SCRIPTS))
async def test_a_script_of_a_page(text: str, launch: Launcher) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed")
    modules = install.node()[1] if re.search("from '[@e]", text) else None
    server = await launch()
    said: list[str] = []

    async def module(route: Route) -> None:
        assert modules is not None
        path = modules / urlsplit(route.request.url).path.removeprefix("/modules/")
        code = path.with_suffix(".js").read_text()
        await route.fulfill(
            body=WRAPPED % code if path.name == "eventsource.js" else code, content_type="text/javascript"
        )

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-proxy-server", "--disable-dev-shm-usage"], chromium_sandbox=False
        )
        page = await browser.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(f"failed: {error}"))
        await page.route("**/page", lambda route: route.fulfill(body=HTML, content_type="text/html"))
        await page.route("**/snippet.js", lambda route: route.fulfill(body=text, content_type="text/javascript"))
        await page.route("**/modules/**", module)
        await page.goto(f"{server.url}/page")
        await eventually(lambda: greeted(server) or said)
        assert said == []
        await published(server)
        await eventually(lambda: said)
        await browser.close()
    assert "lamp" in said[0]
