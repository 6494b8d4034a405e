"""The page with the whole contract: its client, its statements and its names, against a server."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import Any

import psycopg
import pytest
from support.client import Client
from support.openapi import document
from support.pages import Page
from support.process import CHECKOUT
from support.server import Launcher, greeted
from support.waiting import eventually

from sse_pg.api.pages import PATHS

PAGE = Page("sse_pg/static/contract.md")
TEXT = (CHECKOUT / "sse_pg" / "static" / "contract.md").read_text()


def block(kind: str, beginning: str) -> str:
    (found,) = [text for name, text in PAGE.blocks if name == kind and text.lstrip().startswith(beginning)]
    return found


def test_every_endpoint_is_named_and_no_other() -> None:
    named = {
        re.sub(r"\?.*", "", path)
        for path in re.findall(
            r"(/(?:api/events|healthz|readyz|metrics|openapi|asyncapi|llms|contract|docs|sse-pg)[\w/.-]*)", TEXT
        )
    }
    named = {name.removesuffix(".") for name in named} | {"/", "/static/{name}", "/api/events/channels/unsubscribe"}
    assert named == set(document()["paths"])


def test_the_index_leads_to_what_is_served() -> None:
    index = (CHECKOUT / "sse_pg" / "static" / "llms.txt").read_text()
    assert index.startswith("# sse-pg\n\n> ")
    links = re.findall(r"\]\(([^)]+)\)", index)
    assert len(links) >= 5
    assert {f"/{link}" for link in links} <= set(PATHS)


def test_the_statements_publish(db: psycopg.Connection) -> None:
    insert, *calls = block("sql", "INSERT").split(";")[:4]
    db.execute(insert.encode())
    assert [db.execute(call.encode()).fetchone() for call in calls] == [(2,), (3,), (4,)]
    rows = db.execute("SELECT DISTINCT channel, event_type, payload FROM sse_pg.events").fetchall()
    assert rows == [("orders", "PLACED", {"id": 17})]


async def test_the_client_resumes(launch: Launcher, db: psycopg.Connection) -> None:
    """The program of the page, word for word: its server ends in the middle, and it misses nothing."""
    program: dict[str, Any] = {}
    exec(compile(block("python", "import http"), "contract.md", "exec"), program)
    program["time"] = type("time", (), {"sleep": staticmethod(lambda _: None)})  # it need not wait for its retry here
    server = await launch()
    async with Client(server.url) as client:
        first = json.loads(block("json", '{"channel"'))
        status, body = await client.post("/api/events/publish", first)
        assert (status, body.keys()) == (201, json.loads(block("json", '{"id"')).keys())
    got: list[tuple[str, str, Any]] = []
    done = threading.Event()

    def read() -> None:
        for event in program["follow"](server.url, "orders,news", "0"):
            got.append(event)
            if event[1] == "LAST":
                break
        done.set()

    reading = asyncio.create_task(asyncio.to_thread(read))
    await eventually(lambda: len(got) == 1 and greeted(server))
    for stream in list(server.bus.hub.streams):
        stream.transport.abort()
    for number, (channel, kind) in enumerate([("news", "message"), ("elsewhere", "message"), ("orders", "LAST")]):
        db.execute("SELECT sse_pg.publish(%s, %s, to_jsonb(%s::integer))", (channel, kind, number))
    await reading
    assert done.is_set()
    assert [(kind, payload) for _, kind, payload in got] == [("PLACED", {"id": 17}), ("message", 0), ("LAST", 2)]


@pytest.mark.parametrize("name", re.findall(r"`sse_pg\.(\w+)\(", TEXT) + re.findall(r"SELECT sse_pg\.(\w+)\(", TEXT))
def test_every_function_exists(db: psycopg.Connection, name: str) -> None:
    assert db.execute(
        "SELECT count(*) > 0 FROM pg_proc WHERE pronamespace = 'sse_pg'::regnamespace AND proname = %s", [name]
    ).fetchone() == (True,)


@pytest.mark.parametrize("call", re.findall(r"^\| `(\w+\([\w, ]+\))", TEXT, re.MULTILINE))
def test_every_function_takes_these_arguments(db: psycopg.Connection, call: str) -> None:
    name, arguments = call.rstrip(")").split("(")
    rows = db.execute(
        "SELECT proargnames[1:pronargs] FROM pg_proc WHERE pronamespace = 'sse_pg'::regnamespace AND proname = %s",
        [name],
    ).fetchall()
    assert any(names[: arguments.count(",") + 1] == arguments.split(", ") for (names,) in rows), rows


def test_a_state_and_its_position(db: psycopg.Connection) -> None:
    for statement in block("sql", "BEGIN").split(";")[:4]:
        db.execute(re.sub("--.*", "", statement).encode())
