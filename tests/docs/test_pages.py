"""The pages under docs/: links lead somewhere, no machine is named; start.md and operating.md are followed."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support import openapi
from support.cluster import directory, throwaway
from support.pages import Page, Reader, all_pages, syntax_errors
from support.process import CHECKOUT, SSE_PG, process
from support.roles import Logins
from support.waiting import wait_for

from sse_pg.db.migrate import migrate
from sse_pg.embedded import EmbeddedPostgres, find_binaries

PAGES = [Page(path) for path in all_pages()]
START, OPERATING, TABLES = Page("docs/start.md"), Page("docs/operating.md"), Page("docs/tables.md")
#: Paths that pages may print: of an example account, of the system, of a container.
_OF_EVERY_MACHINE = ("/home/you/",)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that the user PostgreSQL runs as gets to."""
    with directory() as made:
        yield made


def broken(page: Page, link: str) -> str:
    """What is wrong with a link of a page; nothing, if it leads somewhere. Other sites are not asked."""
    parts = urlsplit(link)
    if parts.scheme:
        return "" if parts.scheme in ("https", "mailto") else f"{link}: not https"
    if parts.path.startswith("/"):
        return f"{link}: an absolute path"
    target = (CHECKOUT / page.path).parent / unquote(parts.path) if parts.path else CHECKOUT / page.path
    if not target.exists() or not target.resolve().is_relative_to(CHECKOUT):
        return f"{link}: there is no such file"
    if parts.fragment and parts.fragment not in Page(str(target.resolve().relative_to(CHECKOUT))).anchors:
        return f"{link}: there is no such heading"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_the_links_lead_somewhere(page: Page) -> None:
    assert [found for link in page.links if (found := broken(page, link))] == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    page = Page("docs/README.md")
    assert broken(page, "start.md#1-install-and-start") == ""
    assert "no such heading" in broken(page, "start.md#nowhere")
    assert "no such file" in broken(page, "nowhere.md")
    assert "no such file" in broken(page, "../../outside.md")
    assert "absolute" in broken(page, "/docs/start.md")
    assert "not https" in broken(page, "http://example.com/")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_no_page_names_a_machine(page: Page) -> None:
    named = re.findall(r"(?<![\w.~:/-])/(?:home|root|work|tmp|Users)/[^\s`'\"]*", page.text)
    assert [path for path in named if not path.startswith(_OF_EVERY_MACHINE)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_prose_wraps_at_120(page: Page) -> None:
    """Tables, headings and images are lines of their own; a word that is longer, as a URL, stays whole."""
    lines = [line for line in page.prose.split("\n") if not line.startswith(("|", "#", "![", "    "))]
    assert [line for line in lines if len(line) > 120 and " " in line.strip("-* ")] == []


def test_the_index_has_every_page() -> None:
    index = Page("docs/README.md")
    linked = {((CHECKOUT / "docs") / link.partition("#")[0]).resolve() for link in index.links}
    pages = set((CHECKOUT / "docs").glob("*.md")) - {CHECKOUT / "docs" / "README.md"}
    assert sorted(str(path) for path in pages - linked) == []


def test_the_endpoints_are_those_of_the_program() -> None:
    """The table of http.md has every path that openapi.json describes, and no other."""
    described = set(openapi.document()["paths"])
    rows = re.findall(r"^\| (`(?:GET|POST|DELETE) .*?) \|", Page("docs/http.md").text, re.M)
    listed = {path for row in rows for path in re.findall(r"[` ](/[^`?, ]*)", row)}
    assert listed == described - {"/static/{name}"}


@pytest.mark.parametrize(
    ("path", "block"),
    [(page.path, text) for page in PAGES for kind, text in page.blocks if kind == "sh"],
    ids=lambda value: value if value.endswith(".md") else "block",
)
def test_what_is_for_the_reader_s_machine_is_shell(path: str, block: str) -> None:
    assert syntax_errors(block) == "", path


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on this machine")
def test_the_first_half_hour(home: Path) -> None:
    data = home / "data"
    with process("serve", "--port", "0", SSE_PG_DATA_DIR=str(data)) as server:
        assert len(Reader.of(server, data).follow(START, server)) == 4
        assert server.end() == 0


@pytest.mark.parametrize(
    ("path", "kind", "block"),
    [(page.path, kind, text) for page in PAGES for kind, text in page.blocks if kind in ("python", "js")],
    ids=lambda value: value if value.endswith((".md", "js", "python")) else "block",
)
def test_every_snippet_can_be_read_by_its_language(path: str, kind: str, block: str) -> None:
    if kind == "python":
        compile(block, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    done = subprocess.run([node, "--check", "--input-type=module", "-"], input=block, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.oldest
@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on this machine")
def test_operating(home: Path, postgres: EmbeddedPostgres) -> None:
    """With the programs of the PostgreSQL that the tests run on, and a server that has noted which log this is.

    Everything is done by the owner of the database, who is no superuser, but for what the page asks of administrators.
    """
    admin = make_conninfo(postgres.url, dbname="postgres")
    with psycopg.connect(admin, autocommit=True) as conn, throwaway() as another:
        conn.execute("CREATE ROLE shop_owner LOGIN CREATEDB")
        for role in ("sse_pg_publisher", "sse_pg_subscriber", "sse_pg_server"):
            with contextlib.suppress(psycopg.errors.DuplicateObject):  # another test has made it
                conn.execute(f"CREATE ROLE {role}")
        try:
            conn.execute("CREATE DATABASE shop OWNER shop_owner")
            follow_operating(home, postgres, another)
        finally:
            for name in ("restored", "shop"):
                conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            conn.execute("DROP ROLE shop_owner")


def follow_operating(home: Path, postgres: EmbeddedPostgres, another: EmbeddedPostgres) -> None:
    """Do what the page says, with a database ``shop`` and a second cluster."""
    owner = {"user": "shop_owner"}
    database_url = make_conninfo(postgres.url, dbname="shop", **owner)
    programs = os.environ.get("SSE_PG_TEST_POSTGRES")
    command = home / "sse-pg"
    command.write_text(f'#!/bin/sh\nexec "{SSE_PG[0]}" -m sse_pg "$@"\n')
    command.chmod(0o755)
    migrate(database_url)
    with (
        psycopg.connect(database_url, autocommit=True) as db,
        process("serve", "--port", "0", DATABASE_URL=database_url) as server,
    ):
        db.execute((CHECKOUT / "sql" / "roles.sql").read_text())  # type: ignore[arg-type]
        db.execute("SELECT sse_pg.publish('orders', 'PLACED', '{}')")
        reader = Reader(
            home,
            database_url,
            str(urlsplit(server.url()).port),
            DATABASE_URL=database_url,
            RESTORED_URL=make_conninfo(database_url, dbname="restored"),
            NEW_ADMIN_URL=make_conninfo(another.url, dbname="postgres"),
            NEW_POSTGRES_URL=make_conninfo(another.url, dbname="postgres", **owner),
            NEW_URL=make_conninfo(another.url, dbname="shop", **owner),
            PATH=f"{home}:{find_binaries(Path(programs) if programs else None).bin}:{os.environ['PATH']}",
        )
        reader.follow(OPERATING)
        assert server.end() == 0
        (limit,) = db.execute(  # type: ignore[misc]
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'events_payload'"
        ).fetchone()
        assert "4194304" in limit


@pytest.mark.oldest
@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on this machine")
def test_tables(home: Path, login: Logins, db: psycopg.Connection) -> None:
    writer_url = login("writer")
    with process("serve", "--port", "0", DATABASE_URL=login("server")) as server:
        url = server.url()
        names = {"DATABASE_URL": writer_url, "SSE_PG_URL": url, "PYTHONUNBUFFERED": "1"}
        reader = Reader(home, writer_url, str(urlsplit(url).port), **names)
        assert len(reader.follow(TABLES)) == 1
        assert db.execute("SELECT count(*) FROM sse_pg.published_tables").fetchone() == (0,)
        for kind, text in TABLES.blocks[:1]:
            assert kind == "sql"
            reader.execute(text)
        with reader.shell(".venv/bin/python orders_of.py ann") as program:
            try:
                assert program.stdout
                assert program.stdout.readline() == "1 orders\n"
                db.execute("INSERT INTO orders (item, customer) VALUES ('chair', 'ann'), ('chair', 'bob')")
                assert program.stdout.readline() == "INSERT: 2 orders\n"
                db.execute("UPDATE orders SET customer = 'bob' WHERE item = 'book'")
                assert program.stdout.readline() == "DELETE: 1 orders\n"
            finally:
                program.kill()
        assert server.end() == 0


def test_the_pages_have_one_table_of_orders() -> None:
    """Whoever follows one page after the other makes it once, and each page finds its columns."""
    found = [
        (page.path, made)
        for page in PAGES
        for kind, text in page.blocks
        if kind == "sql"
        for made in re.findall(r"CREATE TABLE[^(;]*\borders \(.*?;", text, re.S)
    ]
    assert len({path for path, _ in found}) >= 4
    assert {made for _, made in found} == {found[0][1]}
    assert found[0][1].startswith("CREATE TABLE IF NOT EXISTS")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd on this machine")
def test_the_unit_is_one(home: Path) -> None:
    (unit,) = [text for _, text in OPERATING.blocks if text.startswith("# sse-pg.service")]
    path = home / "sse-pg.service"
    path.write_text(unit.replace("/opt/sse-pg/bin/sse-pg", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (drop_in,) = [text for _, text in OPERATING.blocks if text.startswith("# secrets.conf")]
    (home / "sse-pg.service.d").mkdir()
    (home / "sse-pg.service.d" / "secrets.conf").write_text(drop_in.replace("sse-pg-secrets", "root"))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_relay_resumes(home: Path, database_url: str, db: psycopg.Connection) -> None:
    """The program of scaling.md, ended after one event and started again."""
    with process("serve", "--port", "0", DATABASE_URL=database_url) as server:
        reader = Reader(home, database_url, str(urlsplit(server.url()).port))
        for kind, text in Page("docs/scaling.md").blocks:
            if kind == "python":
                reader.write(text)
        kept = home / "cursor"
        for number in (1, 2):
            db.execute("SELECT sse_pg.publish('orders', 'PLACED', to_jsonb(%s::integer))", [number])
            with reader.shell(".venv/bin/python relay.py") as relay:
                try:
                    assert relay.stdout
                    assert relay.stdout.readline() == f"{number} PLACED {number}\n"
                    wait_for(lambda n=number: kept.exists() and kept.read_text() == str(n), "the cursor")
                finally:
                    relay.kill()
        assert server.end() == 0
