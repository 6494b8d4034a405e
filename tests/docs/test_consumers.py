"""docs/consumers.md: its workers, on a database with orders and a mail server."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.cluster import directory
from support.pages import Page, Reader
from support.roles import Logins
from support.waiting import wait_for

pytestmark = pytest.mark.oldest
PAGE = Page("docs/consumers.md")
LAG = "SELECT sum(lag), count(*) FROM sse_pg.consumers WHERE name <> 'report'"


class MailServer(socketserver.ThreadingTCPServer):
    """Takes mails, and keeps them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Talk)
        self.mails: list[str] = []


class Talk(socketserver.StreamRequestHandler):
    """One client's commands."""

    def handle(self) -> None:
        server = self.server
        assert isinstance(server, MailServer)
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            if line.upper().startswith(b"DATA"):
                self.wfile.write(b"354 go on\r\n")
                lines = iter(self.rfile.readline, b".\r\n")
                server.mails.append(b"".join(lines).decode())
            if line.upper().startswith(b"QUIT"):
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(b"250 ok\r\n")


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    with MailServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def home() -> Iterator[Path]:
    with directory() as made:
        yield made


def test_the_workers(home: Path, login: Logins, db: psycopg.Connection, mail_server: MailServer) -> None:
    """Ended after the first order, and started again after the second."""
    address = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(mail_server.server_address[1])}
    url = login("subscriber")
    reader = Reader(home, url, DATABASE_URL=url, **address)
    for kind, text in PAGE.blocks:
        if kind == "sql":
            reader.execute(text)
        elif kind == "python":
            reader.write(text)
    for number, item in enumerate(("lamp", "chair"), 1):
        order = {"id": number, "item": item, "customer": f"{item}@example.com"}
        db.execute("SELECT sse_pg.publish('orders', 'PLACED', %s)", [psycopg.types.json.Jsonb(order)])
        db.execute("SELECT sse_pg.publish('orders', 'PAID', %s)", [psycopg.types.json.Jsonb(order)])
        with contextlib.ExitStack() as stack:
            for program in ("search.py", "mail.py"):
                stack.callback(stack.enter_context(reader.shell(f".venv/bin/python {program}")).kill)
            wait_for(lambda: db.execute(LAG).fetchone() == (0, 2), "the end of both")
    subjects = [mail.partition("Subject: ")[2].partition("\r\n")[0] for mail in mail_server.mails]
    assert subjects == ["Your order: lamp", "Your order: chair"]
    assert db.execute("SELECT event_id, sent_to FROM mails ORDER BY 1").fetchall() == [
        (1, "lamp@example.com"),
        (3, "chair@example.com"),
    ]
    assert db.execute("SELECT order_id FROM order_search WHERE words @@ 'lamp'").fetchall() == [(1,)]
    assert db.execute("SELECT count(*) FROM order_search").fetchone() == (2,)
