"""The pages and modules, as a browser fetches them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiohttp import web
from clients import install
from jsonschema import Draft7Validator
from support.client import Client
from support.openapi import document
from support.server import Launcher

import sse_pg
from sse_pg.app import create_app
from sse_pg.config import Settings
from sse_pg.version import VERSION

STATIC = Path(sse_pg.__file__).parent / "static"
PAGES = ["/", "/docs", "/sse-pg.js", "/sse-pg.d.ts", "/asyncapi.json", "/llms.txt", "/contract.md"]


@pytest.mark.parametrize("path", [*PAGES, *(f"/static/{file.name}" for file in sorted(STATIC.iterdir()))])
async def test_a_file_is_served_once_and_then_asked_for(kit_client: Client, path: str) -> None:
    async with kit_client.session.get(kit_client.url + path) as response:
        assert response.status == 200
        described = document()["paths"]["/static/{name}" if path.startswith("/static/") else path]["get"]
        assert response.content_type in described["responses"]["200"]["content"]
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        assert response.headers["Cache-Control"] == "no-cache"
        tag = response.headers["ETag"]
        assert await response.read()
    async with kit_client.session.get(kit_client.url + path, headers={"If-None-Match": tag}) as again:
        assert (again.status, await again.read()) == (304, b"")
    async with kit_client.session.get(kit_client.url + path, headers={"If-None-Match": '"other"'}) as changed:
        assert changed.status == 200


async def test_nothing_else_is_served(kit_client: Client) -> None:
    for name in ("nothing.js", "..%2fopenapi.json", ".hidden"):
        async with kit_client.session.get(f"{kit_client.url}/static/{name}") as response:
            assert response.status == 404, name


async def test_the_dashboard_can_be_off(launch: Launcher) -> None:
    server = await launch(dashboard="off")
    async with Client(server.url) as client:
        assert (await client.get("/"))[0] == 404
        for name, status in (("/static/dashboard.js", 404), ("/docs", 200), ("/sse-pg.js", 200)):
            async with client.session.get(server.url + name) as response:
                assert response.status == status, name


def test_pages_name_no_other_host() -> None:
    for file in STATIC.iterdir():
        text = file.read_text()
        for word in ("http://", "https://", "//cdn"):
            for line in text.split("\n"):
                harmless = "www.w3.org/2000/svg" in line
                assert word not in line or harmless, f"{file.name}: {line.strip()[:120]}"


async def test_mounted_in_another_application_the_pages_load_from_there(database_url: str) -> None:
    outer = web.Application()
    outer.add_subapp("/bus/", create_app(Settings(database_url=database_url)))
    runner = web.AppRunner(outer, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with Client(f"http://{host}:{port}/bus") as client:
            for path in (*PAGES, "/static/dashboard.js"):
                async with client.session.get(client.url + path) as response:
                    assert response.status == 200, path
    finally:
        await runner.cleanup()
    for file in STATIC.glob("*.html"):
        assert 'src="/' not in file.read_text()
        assert 'href="/' not in file.read_text()


def test_the_stream_s_description_is_asyncapi() -> None:
    described = json.loads((STATIC / "asyncapi.json").read_text())
    assert described["info"]["version"] == VERSION
    schema = json.loads((install.node()[1] / "@asyncapi" / "specs" / "schemas" / "3.0.0.json").read_text())
    faults = [
        f"{'/'.join(map(str, e.path))}: {e.message[:200]}" for e in Draft7Validator(schema).iter_errors(described)
    ]
    assert faults == []


def test_the_stream_s_examples_follow_their_schemas() -> None:
    described = json.loads((STATIC / "asyncapi.json").read_text())
    messages = described["components"]["messages"].values()
    assert len(messages) > 5
    for message in messages:
        assert message["examples"], message["name"]
        for example in message["examples"]:
            for part in ("headers", "payload"):
                schema = {**message[part], "components": described["components"]}
                assert list(Draft7Validator(schema).iter_errors(example[part])) == [], message["name"]
