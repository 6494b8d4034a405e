"""The package that npm makes of sse_pg/static: TypeScript, esbuild and Vite find it, and docs/javascript.md works."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from playwright.async_api import Page as Tab
from playwright.async_api import async_playwright
from support.client import Client
from support.pages import Page
from support.process import CHECKOUT, free_port, process
from support.proxies import started
from support.server import Launcher, greeted
from support.waiting import eventually

from clients import install
from sse_pg.version import VERSION

STATIC = CHECKOUT / "sse_pg" / "static"
PACKAGE = json.loads((STATIC / "package.json").read_text())
MAX_BYTES = 4096
#: The files of docs/javascript.md, by name.
FILES = {
    found[1]: text
    for kind, text in Page("docs/javascript.md").blocks
    if kind in ("js", "jsx") and (found := re.match(r"// (\S+)\n", text))
}
TYPED = """
import { StreamError, listen, subscribe, type Envelope } from 'sse-pg'
import { acrossTabs } from 'sse-pg/tabs'
import { useEvents } from 'sse-pg/react'

interface Order { id: number, item: string }

export async function all (): Promise<string[]> {
  const items: string[] = []
  try {
    for await (const { data } of subscribe<Order>('/s', { channels: ['a'], fetch: acrossTabs })) items.push(data.item)
  } catch (error) {
    if (error instanceof StreamError) items.push(`${error.status} ${error.problem?.detail}`)
  }
  return items
}

listen<Envelope<Order>>('/s', { envelope: true, onEnd: console.error }, ({ data }) => { data.payload.item.trim() })
// @ts-expect-error: not an array
listen('/s', { channels: 'a' }, () => {})

export function Orders () {
  const { state, error } = useEvents<Order>('/s', { channels: ['a'], enabled: true }, ({ data }) => { data.id })
  // @ts-expect-error: the hook has its own signal
  useEvents('/s', { signal: new AbortController().signal }, () => {})
  return `${state} ${error}`
}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the packed package and what it is used with."""
    _, modules = install.node()
    npm = shutil.which("npm")
    assert npm is not None
    source = tmp_path / "source"
    shutil.copytree(STATIC, source)
    done = subprocess.run([npm, "pack", "--json"], cwd=source, capture_output=True, text=True, check=True, timeout=60)
    (packed,) = json.loads(done.stdout)
    home = tmp_path / "project"
    installed = home / "node_modules" / "sse-pg"
    installed.parent.mkdir(parents=True)
    with tarfile.open(source / packed["filename"]) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "package").rename(installed)
    for package in modules.iterdir():
        if not package.name.startswith(".package"):
            (installed.parent / package.name).symlink_to(package)
    (home / "package.json").write_text('{"type": "module"}')
    for name, text in FILES.items():
        (home / name).write_text(text)
    return home


def tool(project: Path, name: str, *words: str) -> str:
    """Run a program of the project; return what it prints."""
    command = [str(project / "node_modules" / ".bin" / name), *words]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_of_the_page_has_a_test() -> None:
    assert set(FILES) == {"listen.js", "orders.jsx", "table.jsx", "tabs.js", "vite.config.js", "channels.js"}


def test_what_is_packed(project: Path) -> None:
    installed = project / "node_modules" / "sse-pg"
    assert {file.name for file in installed.iterdir()} == {"package.json", *PACKAGE["files"]}
    assert set(PACKAGE["files"]) == {file.name for file in STATIC.glob("sse-pg*")}
    assert PACKAGE["version"] == VERSION
    assert "dependencies" not in PACKAGE


def test_its_size(project: Path) -> None:
    (project / "all.js").write_text("".join(f"export * from 'sse-pg{part}'\n" for part in ("", "/react", "/tabs")))
    tool(project, "esbuild", "all.js", "--bundle", "--minify", "--format=esm", "--external:react", "--outfile=out.js")
    assert len(gzip.compress((project / "out.js").read_bytes(), 9)) <= MAX_BYTES


@pytest.mark.parametrize("resolution", ["bundler", "nodenext"])
def test_typescript_finds_its_types(project: Path, resolution: str) -> None:
    (project / "typed.ts").write_text(TYPED)
    module = "esnext" if resolution == "bundler" else "nodenext"
    options = ["--strict", "--noEmit", "--target", "es2022", "--lib", "es2022,dom,dom.iterable"]
    tool(project, "tsc", *options, "--module", module, "--moduleResolution", resolution, "typed.ts")


def test_vite_builds_with_it(project: Path) -> None:
    (project / "index.html").write_text('<script type="module" src="/listen.js"></script>')
    tool(project, "vite", "build", "--logLevel", "error")
    (built,) = (project / "dist" / "assets").glob("*.js")
    assert "Last-Event-ID" in built.read_text()


async def test_node_imports_it(project: Path, launch: Launcher) -> None:
    server = await launch()
    program, _ = install.node()
    (project / "program.mjs").write_text(FILES["listen.js"].replace("'/api", f"'{server.url}/api").split("window.")[0])
    words = [program, "program.mjs"]
    running = await asyncio.create_subprocess_exec(*words, cwd=project, stdout=asyncio.subprocess.PIPE)
    try:
        await eventually(lambda: greeted(server))
        async with Client(server.url) as client:
            await client.publish("orders", {"item": "lamp"}, "PLACED")
        assert running.stdout is not None
        assert await asyncio.wait_for(running.stdout.readline(), 20) == b"PLACED { item: 'lamp' }\n"
    finally:
        running.kill()
        await running.wait()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("listen('/api/events/stream', { channels: ['a'] }, () => {})", "Invalid URL"),
        ("listen('http://127.0.0.1:9/', { channels: 'a' }, () => {})", "channels must be an array of strings"),
        ("listen('http://127.0.0.1:9/', { channels: [1] }, () => {})", "channels must be an array of strings"),
        ("listen('http://127.0.0.1:9/', { headers: { 'no name': '' } }, () => {})", "no name"),
    ],
)
def test_a_mistake_is_an_error_at_once(project: Path, call: str, says: str) -> None:
    """And one that is seen, although nobody awaits ``done``."""
    program, _ = install.node()
    (project / "program.mjs").write_text(f"import {{ listen }} from 'sse-pg'\n{call}\n")
    done = subprocess.run([program, "program.mjs"], cwd=project, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "TypeError" in done.stderr
    assert says in done.stderr


# In Chromium


@contextlib.asynccontextmanager
async def tab() -> AsyncIterator[tuple[Tab, list[str]]]:
    """A tab of a browser, and what its console says."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed")
    said: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-proxy-server", "--disable-dev-shm-usage"], chromium_sandbox=False
        )
        page = await browser.new_page()
        page.set_default_timeout(20000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(f"failed: {error}"))
        yield page, said
        await browser.close()


async def bundled(project: Path, page: Tab, url: str, entry: str) -> None:
    """Open a page of the server's origin that runs a bundled file."""
    words = ["--bundle", "--format=esm", "--jsx=automatic", "--define:process.env.NODE_ENV='development'"]
    tool(project, "esbuild", entry, *words, "--outfile=out.js")
    body = (project / "out.js").read_text()
    await page.route("**/page", lambda route: route.fulfill(body=HTML, content_type="text/html"))
    await page.route("**/out.js", lambda route: route.fulfill(body=body, content_type="text/javascript"))
    await page.goto(f"{url}/page")


@pytest.mark.browser
@pytest.mark.parametrize("name", ["listen.js", "tabs.js", "channels.js"])
async def test_a_script_of_the_page(project: Path, launch: Launcher, name: str) -> None:
    server = await launch()
    async with tab() as (page, said):
        await bundled(project, page, server.url, name)
        await eventually(lambda: greeted(server) or said)
        async with Client(server.url) as client:
            await client.publish("orders", {"item": "lamp"}, "PLACED")
        await eventually(lambda: said)
    assert said == [("orders " if name == "channels.js" else "") + "PLACED {item: lamp}"]


HTML = '<link rel="icon" href="data:,"><div id="root"></div><script type="module" src="/out.js"></script>'
STRICT = """
import { StrictMode, useState } from 'react'
import { createRoot } from 'react-dom/client'
import { %(name)s } from './%(file)s'

function App () {
  const [shown, show] = useState(true)
  return <StrictMode><button onClick={() => show(!shown)}>toggle</button>{shown && <%(name)s />}</StrictMode>
}
createRoot(document.getElementById('root')).render(<App />)
"""
ITEMS = "() => [...document.querySelectorAll('li')].map((each) => each.textContent)"


@pytest.mark.browser
async def test_the_hook_in_strict_mode(project: Path, launch: Launcher) -> None:
    server = await launch()
    (project / "main.jsx").write_text(STRICT % {"name": "Orders", "file": "orders.jsx"})
    async with tab() as (page, said), Client(server.url) as client:
        await bundled(project, page, server.url, "main.jsx")
        await page.wait_for_selector("ul[data-state=open]", state="attached")
        for item in ("lamp", "book"):
            await client.publish("orders", {"item": item})
        await page.wait_for_function("() => document.querySelectorAll('li').length >= 2")
        assert await page.evaluate(ITEMS) == ["lamp", "book"]
        await eventually(lambda: len(server.bus.hub.streams) == 1)
        await page.click("button")
        await eventually(lambda: not server.bus.hub.streams)
        await page.click("button")
        await page.wait_for_selector("ul[data-state=open]", state="attached")
        await server.stop()
        await page.wait_for_selector("ul[data-state=lost]", state="attached")
    assert [line for line in said if "failed" in line or "Warning" in line] == []


CHANGES = """
import { useState } from 'react'
import { createRoot } from 'react-dom/client'
import { useEvents } from 'sse-pg/react'

function App () {
  const [channel, setChannel] = useState('a')
  const [got, setGot] = useState([])
  const [enabled, enable] = useState(true)
  const { state, error } = useEvents('/api/events/stream', { channels: [channel], enabled }, ({ data }) => {
    setGot((before) => [...before, `${channel}${data}`])
  })
  Object.assign(window, { got, setChannel, enable, status: `${state} ${error?.status}` })
}
createRoot(document.getElementById('root')).render(<App />)
"""


@pytest.mark.browser
async def test_the_hook_follows_its_arguments(project: Path, launch: Launcher) -> None:
    """Another channel is another stream, and the newest function gets the events. A refusal is the state."""
    server = await launch()
    (project / "main.jsx").write_text(CHANGES)
    async with tab() as (page, _), Client(server.url) as client:
        await bundled(project, page, server.url, "main.jsx")
        for channel in ("a", "b"):
            await page.evaluate("(channel) => window.setChannel(channel)", channel)
            await eventually(
                lambda channel=channel: (
                    [stream.channels for stream in server.bus.hub.streams if stream.greeted] == [{channel}]
                )
            )
            for number in range(2):
                await client.publish(channel, number)
            await page.wait_for_function("(last) => window.got.at(-1) === last", arg=f"{channel}1")
        assert await page.evaluate("window.got") == ["a0", "a1", "b0", "b1"]
        await page.evaluate("window.enable(false)")
        await eventually(lambda: not server.bus.hub.streams)
        await page.evaluate("window.enable(true)")
        await eventually(lambda: greeted(server))
        await page.evaluate("window.setChannel('white space')")
        await page.wait_for_function("() => window.status === 'ended 422'")


@pytest.mark.browser
async def test_the_hook_with_a_snapshot(project: Path, launch: Launcher, db: psycopg.Connection) -> None:
    server = await launch()
    (project / "main.jsx").write_text(STRICT % {"name": "Table", "file": "table.jsx"})
    db.execute('SELECT sse_pg.publish(\'orders\', \'PLACED\', \'{"id": 1, "item": "lamp", "state": "PLACED"}\')')
    found = db.execute("SELECT sse_pg.position()").fetchone()
    assert found is not None
    state = {"state": [{"id": 1, "item": "lamp", "state": "PLACED"}], "position": found[0]}
    async with tab() as (page, _), Client(server.url) as client:
        await page.route("**/orders", lambda route: route.fulfill(json=state))
        await client.publish("orders", {"id": 1, "item": "lamp", "state": "PAID"})  # after the state was read
        await bundled(project, page, server.url, "main.jsx")
        await page.wait_for_function("() => document.querySelector('li')?.textContent === 'lamp: PAID'")
        await client.publish("orders", {"id": 2, "item": "book", "state": "PLACED"})
        await page.wait_for_function("() => document.querySelectorAll('li').length === 2")


@pytest.mark.browser
async def test_a_plain_event_source_survives_a_restart_behind_vite(project: Path, database_url: str) -> None:
    port, own = free_port(), free_port()
    config = FILES["vite.config.js"].replace("http://localhost:8080", f"http://127.0.0.1:{port}")
    (project / "vite.config.js").write_text(config)
    (project / "index.html").write_text(
        """<link rel="icon" href="data:,"><script type="module">
        const source = new EventSource('/api/events/stream?channels=a')
        source.onmessage = ({ data }) => console.log(data)
        source.onerror = () => { if (source.readyState === 2) console.log('gave up') }
        </script>"""
    )
    program, _ = install.node()
    vite = ["node_modules/vite/bin/vite.js", "--host", "127.0.0.1", "--port", str(own), "--strictPort"]
    variables = {"PORT": str(port), "SSE_PG_RETRY_MS": "100", "SSE_PG_DRAIN_SECONDS": "0", "DATABASE_URL": database_url}
    async with (
        started(project, own, program, *vite, cwd=project),
        tab() as (page, said),
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn,
    ):

        async def publish(number: int) -> None:
            await conn.execute("SELECT sse_pg.publish('a', 'message', %s)", (str(number),))
            await eventually(lambda: said and said[-1] in (str(number), "gave up"))

        with process("serve", **variables) as server:
            await asyncio.to_thread(server.url)
            await page.goto(f"http://127.0.0.1:{own}/")
            await asyncio.to_thread(server.line, "stream opened", err=True)
            said.clear()
            await publish(1)
            refused = page.wait_for_event("response", lambda response: response.url.endswith("=a"), timeout=20000)
            assert await asyncio.to_thread(server.end) == 0
            await refused
        with process("serve", **variables) as server:
            await asyncio.to_thread(server.url)
            await publish(2)
        assert [line for line in said if line.isdigit() or line == "gave up"] == ["1", "2"]
