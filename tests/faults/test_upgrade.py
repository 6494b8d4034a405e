"""An upgrade with a pre and a post step, under load and with open streams: nothing lost, nothing twice, none refused.

The next release is made up: a copy of this one that publishes through another function. The pre step makes the function
and rewrites the table's definition; the post step drops the function that the old release calls.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import psycopg
import pytest
from support.client import Client
from support.process import CHECKOUT, one_line, process, run
from support.waiting import PROCESS_TIMEOUT_S, eventually

OLD, NEW = "sse_pg.publish_many(", "sse_pg.publish_batch("


@pytest.fixture
def release(tmp_path: Path) -> str:
    """Where the next release is installed."""
    for part in ("sse_pg", "sql"):
        shutil.copytree(CHECKOUT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    schema = (tmp_path / "sql" / "schema.sql").read_text(encoding="utf-8")
    function = re.search(r"CREATE FUNCTION sse_pg\.publish_many\(.*?\nEND \$\$;", schema, re.DOTALL)
    assert function
    migrations = tmp_path / "sql" / "migrations"
    (migrations / "0002_pre_publish_batch.sql").write_text(
        function[0].replace("publish_many", "publish_batch")
        + "REVOKE ALL ON FUNCTION sse_pg.publish_batch FROM PUBLIC;\n"
        + "ALTER TABLE sse_pg.events ADD COLUMN note text;\n"
    )
    (migrations / "0003_post_publish_many.sql").write_text(
        "DROP FUNCTION sse_pg.publish_many;\nALTER TABLE sse_pg.events DROP COLUMN note;\n"
    )
    statements = tmp_path / "sql" / "queries" / "publish.sql"
    text = statements.read_text(encoding="utf-8")
    assert text.count(OLD) == 2
    statements.write_text(text.replace(OLD, NEW))
    version = tmp_path / "sse_pg" / "version.py"
    version.write_text(re.sub('VERSION = ".*"', 'VERSION = "9.9.9"', version.read_text(encoding="utf-8")))
    return str(tmp_path)


class Load:
    """Publishers over HTTP and in SQL; each payload is a number of its own."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self.published: list[int] = []
        self.stop = asyncio.Event()
        self.server = ""

    async def http(self) -> None:
        """Publish at the server that the load balancer would choose."""
        async with aiohttp.ClientSession() as session:
            number = 0
            while not self.stop.is_set():
                body = {"channel": "a", "payload": number}
                async with session.post(f"{self.server}/api/events/publish", json=body) as response:
                    assert response.status == 201, await response.text()
                self.published.append(number)
                number += 2

    async def sql(self) -> None:
        """Publish with plain INSERTs, three statements a transaction; every fourth transaction rolls back."""
        number = 1
        async with await psycopg.AsyncConnection.connect(self._database_url) as conn:
            while not self.stop.is_set():
                numbers = [number, number + 2, number + 4]
                for each in numbers:
                    await conn.execute(
                        "INSERT INTO sse_pg.events (channel, payload) VALUES ('a', to_jsonb(%s::int))", [each]
                    )
                if number % 4 == 3:
                    await conn.rollback()
                else:
                    await conn.commit()
                    self.published += numbers
                number += 6


class Follower:
    """A client that reads a stream, and goes to the next server when it ends."""

    def __init__(self, *servers: str) -> None:
        self.servers = list(servers)
        self.got: list[int] = []
        self.cursor = "0"

    async def run(self) -> None:
        while True:
            async with Client(self.servers[0]) as client, client.stream("a", last_event_id=self.cursor) as stream:
                try:
                    while True:
                        event = await stream.event()
                        assert event.event == "message", event
                        self.got.append(event.json())
                except (EOFError, aiohttp.ClientError):
                    self.cursor = stream.last_id
                    del self.servers[0]


async def test_an_upgrade_under_load(database_url: str, release: str) -> None:
    load = Load(database_url)
    followers: list[Follower] = []
    old_environment = {"DATABASE_URL": database_url}
    new_environment = {**old_environment, "PYTHONPATH": release}

    async def move_on() -> None:
        """Wait until every follower has got something that was published after now."""
        begun = len(load.published)
        await eventually(lambda: len(load.published) >= begun + 20, timeout_s=PROCESS_TIMEOUT_S)
        newest = load.published[-1]
        await eventually(lambda: all(newest in each.got[-2000:] for each in followers), timeout_s=PROCESS_TIMEOUT_S)

    async with AsyncExitStack() as stack:
        old = stack.enter_context(process("serve", "--port", "0", **old_environment))
        load.server = old_url = await asyncio.to_thread(old.url)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        reading: list[asyncio.Task[None]] = []

        def follow(follower: Follower) -> None:
            followers.append(follower)
            reading.append(group.create_task(follower.run()))

        for _ in range(3):
            follow(Follower(old_url))
        publishing = [group.create_task(load.http()), group.create_task(load.sql())]
        await move_on()

        # The pre steps, and both releases at once.
        new = stack.enter_context(process("serve", "--port", "0", **new_environment))
        new_url = await asyncio.to_thread(new.url)
        follow(Follower(new_url))
        for each in followers[:3]:
            each.servers.append(new_url)
        await move_on()
        again = stack.enter_context(process("serve", "--port", "0", **old_environment))
        await asyncio.to_thread(again.url)
        assert await asyncio.to_thread(again.end) == 0

        # The post steps are refused until the old server is gone.
        refused = await asyncio.to_thread(run, "migrate", "--post", **new_environment)
        assert "0003_post_publish_many" in one_line(refused)
        assert "stop these first" in refused.stderr
        load.server = new_url
        await move_on()
        assert await asyncio.to_thread(old.end) == 0
        await move_on()
        done = await asyncio.to_thread(run, "migrate", "--post", **new_environment)
        assert (done.returncode, done.stdout) == (0, "applied migration 0003_post_publish_many\n"), done
        await move_on()
        refused = await asyncio.to_thread(run, "serve", "--port", "0", **old_environment)
        assert "the schema is at version 3" in one_line(refused)

        load.stop.set()
        await asyncio.gather(*publishing)
        await eventually(
            lambda: all(len(each.got) >= len(load.published) for each in followers), timeout_s=PROCESS_TIMEOUT_S
        )
        for each in reading:
            each.cancel()
    expected = Counter(load.published)
    assert len(expected) == len(load.published) > 200
    for follower in followers:
        got = Counter(follower.got)
        assert not got - expected, f"twice, or never published: {sorted(got - expected)[:20]}"
        assert not expected - got, f"lost: {sorted(expected - got)[:20]}"
