"""The files of docs/examples, each run as its page says, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import ANY
from urllib.parse import quote, urlencode

import aiohttp
import psycopg
import pytest
from aiohttp import web
from clients import install
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.orm import Session
from support.client import Client
from support.examples import EXAMPLES, running
from support.pages import Page, all_pages
from support.process import environment
from support.roles import Logins
from support.server import Launcher
from support.waiting import TIMEOUT_S


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def orders(db: psycopg.Connection, publisher_url: str) -> psycopg.Connection:
    """The table of trigger.sql without its trigger: here the programs publish."""
    table, _, _ = (EXAMPLES / "trigger.sql").read_text().partition("\n\n")
    with psycopg.connect(publisher_url, autocommit=True) as conn:
        conn.execute(table.encode())
    return db


# The pages


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.*")), ids=lambda path: path.name)
def test_a_page_shows_each_file_as_it_is(path: Path) -> None:
    shown = [page for page in all_pages() if path.read_text() in [text for _, text in Page(page).blocks]]
    assert shown, f"no page shows docs/examples/{path.name} word for word"


# Headers


async def test_one_trace_leads_from_the_request_to_the_reader(client: Client) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLES / "tracing.py"), client.url, stdout=subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT_S):
        out, _ = await program.communicate()
    placed, reacted = [json.loads(span + "}") for span in out.decode().split("\n}\n")[:-1]]
    assert (placed["name"], reacted["name"]) == ("place order", "react to PLACED")
    assert placed["context"]["trace_id"] == reacted["context"]["trace_id"]
    assert reacted["parent_id"] == placed["context"]["span_id"]


# Publishing in the transaction of a request


def as_url(conninfo: str) -> str:
    """Return the URL that the bus prints, for a connection string of libpq."""
    parts = {key: str(value) for key, value in conninfo_to_dict(conninfo).items()}
    user, dbname = parts.pop("user"), parts.pop("dbname")
    return f"postgresql://{user}@/{dbname}?{urlencode(parts)}"


@pytest.mark.parametrize(
    "words",
    [
        ("gunicorn", "--bind", "127.0.0.1:0", "django_app:application"),
        ("uvicorn", "--port", "0", "fastapi_app:app"),
        ("uvicorn", "--port", "0", "starlette_app:app"),
        ("uvicorn", "--port", "0", "litestar_app:app"),
        ("uvicorn", "--port", "0", "fastapi_sqlalchemy_app:app"),
        ("uvicorn", "--port", "0", "fastapi_sqlalchemy_app:app", "postgresql+asyncpg"),
    ],
    ids=["django", "fastapi", "starlette", "litestar", "sqlalchemy", "sqlalchemy-asyncpg"],
)
async def test_a_request_and_its_event_are_one(
    words: tuple[str, ...], orders: psycopg.Connection, client: Client, publisher_url: str, tmp_path: Path
) -> None:
    words, driver = (words[:-1], {"DRIVER": words[-1]}) if "+" in words[-1] else (words, {})
    # Litestar has many dependencies, and is installed with the clients in an environment of its own.
    python = str(await asyncio.to_thread(install.python)) if "litestar_app:app" in words else sys.executable
    async with (
        client.stream("orders") as stream,
        running(tmp_path / "log", *words, python=python, DATABASE_URL=as_url(publisher_url), **driver) as program,
        aiohttp.ClientSession(program.url) as session,
    ):
        path = "/orders/new" if "django_app:application" in words else "/orders"
        for item, status in (("lamp", 201), ("nothing", 500 if path == "/orders/new" else 422), ("book", 201)):
            async with session.post(path, json={"item": item}) as answer:
                assert answer.status == status, await answer.text()
        received = await stream.events(2)
    assert [(each.event, each.json()["item"]) for each in received] == [("PLACED", "lamp"), ("PLACED", "book")]
    assert orders.execute("SELECT item FROM orders ORDER BY id").fetchall() == [("lamp",), ("book",)]
    assert orders.execute("SELECT count(*) FROM sse_pg.events").fetchone() == (2,)


@pytest.fixture
def engine(orders: psycopg.Connection, publisher_url: str) -> Iterator[Engine]:
    parts = conninfo_to_dict(publisher_url)
    made = create_engine(URL.create("postgresql+psycopg", query={k: str(v) for k, v in parts.items()}))
    yield made
    made.dispose()


async def test_sqlalchemy_commits_both_or_neither(engine: Engine, client: Client) -> None:
    example = load("sqlalchemy_app")
    async with client.stream("orders") as stream:
        with Session(engine) as session, session.begin():
            example.place(session, "lamp")
        with Session(engine) as session:
            example.place(session, "nothing")
            session.rollback()
        with Session(engine) as session, session.begin():
            example.place(session, "book")
        assert [each.json()["item"] for each in await stream.events(2)] == ["lamp", "book"]
    assert [item for _, item in example.orders_and_position(engine)[0]] == ["lamp", "book"]


async def test_the_program_of_the_page_of_sqlalchemy(orders: psycopg.Connection, publisher_url: str) -> None:
    parts = {name: str(value) for name, value in conninfo_to_dict(publisher_url).items()}
    user, database = quote(parts.pop("user")), quote(parts.pop("dbname"))
    (program,) = [text for _, text in Page("docs/frameworks/sqlalchemy.md").blocks if "create_engine(url)" in text]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        cwd=EXAMPLES,
        env={**os.environ, "DATABASE_URL": f"postgresql://{user}@/{database}?{urlencode(parts)}"},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("([(1, 'lamp')], '1')\n", "")


# A page, and the stream that goes on from it


async def test_a_stream_goes_on_from_the_snapshot_of_sqlalchemy(engine: Engine, client: Client) -> None:
    example = load("sqlalchemy_app")
    with Session(engine) as late:
        example.place(late, "in flight")  # its id is below that of the lamp; it commits after the page
        with Session(engine) as session, session.begin():
            example.place(session, "lamp")
        rows, position = example.orders_and_position(engine)
        assert [item for _, item in rows] == ["lamp"]
        late.commit()
    with Session(engine) as session, session.begin():
        example.place(session, "book")
    async with client.stream("orders", last_event_id=position) as stream:
        assert [each.json()["item"] for each in await stream.events(2)] == ["in flight", "book"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/orders/new", ("gunicorn", "--bind", "127.0.0.1:0", "django_app:application")),
        ("/orders", ("uvicorn", "--port", "0", "fastapi_sqlalchemy_app:app")),
    ],
    ids=["django", "fastapi"],
)
async def test_a_stream_goes_on_from_the_page(
    path: str, words: tuple[str, ...], orders: psycopg.Connection, client: Client, publisher_url: str, tmp_path: Path
) -> None:
    publish = "SELECT sse_pg.publish('orders', 'PLACED', jsonb_build_object('item', %s::text))"
    async with (
        running(tmp_path / "log", *words, DATABASE_URL=as_url(publisher_url)) as program,
        aiohttp.ClientSession(program.url) as session,
    ):
        with psycopg.connect(publisher_url) as late:
            late.execute("INSERT INTO orders (item) VALUES ('in flight')")
            late.execute(publish, ["in flight"])
            async with session.post(path, json={"item": "<lamp>"}) as answer:
                assert answer.status == 201
            async with session.get("/orders") as answer:
                page = await answer.text()
            late.commit()
    items = re.search(r'<script id="items" type="application/json">(.*?)</script>', page)
    position = re.search('data-position="(.*?)"', page)
    assert items
    assert position
    assert json.loads(items[1]) == ["<lamp>"]
    async with client.stream("orders", last_event_id=position[1]) as stream:
        assert (await stream.event()).json()["item"] == "in flight"


# Users

SETUP = """
import sys
import django_users
from django.contrib.auth.models import User
from django.test import Client as Browser
from django.core.management import call_command

call_command("migrate", verbosity=0)
for name in ("ann", "bob"):
    user = User.objects.create_user(name)
    browser = Browser(SERVER_NAME="localhost")
    assert browser.get("/live").status_code == 302  # to the login
    browser.force_login(user)
    assert f"channels=user.{user.pk},news" in browser.get("/inbox").content.decode()
    cookie = browser.get("/live").cookies["sse_pg_token"]
    assert (cookie["path"], cookie["httponly"], cookie["samesite"]) == ("/api/events", True, "Strict")
    print(user.pk, cookie.value)
"""
NOTIFY = """
import sys
import django_users
from django.contrib.auth.models import User

for user in User.objects.order_by("username"):
    django_users.notify(user, "MESSAGE", {"text": f"for {user.username}"})
"""


async def in_django(program: str, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=EXAMPLES, env=environment(**variables), stdout=subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT_S):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_each_user_of_django_has_a_channel(launch: Launcher, publisher_url: str) -> None:
    secret = "a secret that Django and the bus share"
    server = await launch(token_secret=secret)
    variables = {"DATABASE_URL": publisher_url, "SSE_PG_TOKEN_SECRET": secret}
    users = [line.split() for line in (await in_django(SETUP, **variables)).splitlines()]
    clients = [Client(server.url, {"Cookie": f"sse_pg_token={token}"}) for _, token in users]
    async with clients[0] as ann, clients[1] as bob:
        assert await ann.get(f"/api/events/history?channel=user.{users[1][0]}") == (403, ANY)
        async with ann.stream(f"user.{users[0][0]}") as anns, bob.stream(f"user.{users[1][0]}") as bobs:
            await in_django(NOTIFY, **variables)
            assert (await anns.event()).json() == {"text": "for ann"}
            assert (await bobs.event()).json() == {"text": "for bob"}


# SQL


async def test_a_trigger_psql_and_pg_cron(client: Client, login: Logins) -> None:
    with psycopg.connect(login("writer"), autocommit=True) as conn:
        async with client.stream("orders,shop", envelope="true") as stream:
            for name in ("trigger.sql", "psql.sql"):
                conn.execute((EXAMPLES / name).read_bytes())
            received = [each.json() for each in await stream.events(3)]
            assert [(each["channel"], each["eventType"]) for each in received] == [
                ("orders", "PLACED"),
                ("shop", "NOTE"),
                ("shop", "REMINDER"),
            ]
            conn.execute("UPDATE orders SET state = 'PAID'")
            paid = (await stream.event()).json()
            assert (paid["eventType"], paid["payload"]["item"]) == ("PAID", "lamp")
            conn.execute("UPDATE orders SET state = 'PLACED'")
            assert (await stream.event()).json()["eventType"] == "PLACED"
            job = re.search(r"\$\$(.*)\$\$", (EXAMPLES / "pg_cron.sql").read_text(), re.S)
            assert job
            conn.execute(job[1].encode())
            assert (await stream.event()).json()["eventType"] == "REMINDER"


# The bus inside, or under, another server


@contextlib.asynccontextmanager
async def mounted(database_url: str, monkeypatch: pytest.MonkeyPatch, **options: bool) -> AsyncIterator[str]:
    for name, value in {"DATABASE_URL": database_url, "SSE_PG_DRAIN_SECONDS": "0"}.items():
        monkeypatch.setenv(name, value)
    runner = web.AppRunner(load("mount_aiohttp").make_app(), shutdown_timeout=TIMEOUT_S * 10, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("handler_cancellation", [True, False])
async def test_the_bus_as_a_sub_application(
    database_url: str, monkeypatch: pytest.MonkeyPatch, handler_cancellation: bool
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        app = mounted(database_url, monkeypatch, handler_cancellation=handler_cancellation)
        url = await stack.enter_async_context(app)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        async with session.get(f"{url}/") as answer:
            assert await answer.text() == "the shop"
        async with session.get(f"{url}/nowhere") as answer:
            assert (answer.status, answer.content_type) == (404, "text/plain")
        async with session.get(f"{url}/bus/nowhere") as answer:
            assert (answer.status, answer.content_type) == (404, "application/problem+json")
        async with session.get(f"{url}/bus/") as answer:
            assert answer.content_type == "text/html"
        client = Client(f"{url}/bus")
        stack.push_async_callback(client.session.close)
        async with client.stream("orders") as stream:
            # More than the megabyte that the outer application allows its own handlers.
            lamps = {"events": [{"channel": "orders", "payload": "x" * 600_000} for _ in range(4)]}
            body, headers = io.BytesIO(json.dumps(lamps).encode()), {"Content-Type": "application/json"}
            async with session.post(f"{url}/bus/api/events/publish", data=body, headers=headers) as answer:
                assert answer.status == 201
            assert len(await stream.events(4)) == 4
        async with asyncio.timeout(TIMEOUT_S):  # who went is not counted any more
            while await active(session, f"{url}/bus"):
                await asyncio.sleep(0.05)
        async with client.stream("orders") as stream:
            async with asyncio.timeout(TIMEOUT_S):
                # With a stream open: it ends by itself, the runner's time-out is longer than this.
                await app.__aexit__(None, None, None)
            await stream.ended()
            stack.pop_all()
            await client.session.close()
            await session.close()


async def active(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(f"{url}/api/events/active-connections") as answer:
        return int((await answer.json())["activeConnections"])


async def test_several_workers_of_gunicorn(empty_database_url: str, tmp_path: Path) -> None:
    words = ("gunicorn", "-c", "gunicorn_conf.py", "--bind", "127.0.0.1:0", "gunicorn_app:bus")
    async with (
        running(tmp_path / "log", *words, DATABASE_URL=empty_database_url, SSE_PG_DRAIN_SECONDS="0.2") as program,
        Client(program.url) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        async with asyncio.timeout(TIMEOUT_S):
            while len((await client.get("/api/events/active-connections"))[1]["servers"]) < 2:
                await asyncio.sleep(0.05)
        many = ",".join(["orders", *(f"channel-{number:04}" for number in range(900))])
        streams = [await stack.enter_async_context(client.stream(many)) for _ in range(12)]
        await client.publish("orders", {"item": "lamp"})
        assert [(await each.event()).json() for each in streams] == [{"item": "lamp"}] * 12
        streams[0].close()
        async with asyncio.timeout(TIMEOUT_S):
            while await active(client.session, program.url) != 11:
                await asyncio.sleep(0.05)
        assert await program.end() == 0
        for each in streams[1:]:
            await each.ended()
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text
    assert "SIGKILL" not in text


def test_the_client_alone_imports_no_server() -> None:
    probe = "import sys, sse_pg.client; print(*{'psycopg', 'sse_pg.app', 'sse_pg.config'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True, env=os.environ).strip() == ""


def test_the_server_comes_when_it_is_asked_for() -> None:
    import sse_pg

    assert {sse_pg.create_app.__module__, sse_pg.Settings.__module__} == {"sse_pg.app", "sse_pg.config"}
    with pytest.raises(AttributeError, match="nothing"):
        sse_pg.nothing  # noqa: B018
