"""Log lines of streams: one at the opening, one at the end, with fields; and nothing in them can be forged."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from typing import Any

import pytest
from support.client import Client
from support.process import process
from support.server import Launcher
from support.tokens import SECRET, bearer, token
from support.waiting import eventually

from sse_pg import logs

#: What a token may name a user: no \n, which is refused.
HOSTILE = 'x","level":"error"}\u2028{"message":"forged"}\x8512:00:00 error   forged'


def lines(caplog: pytest.LogCaptureFixture, style: logging.Formatter) -> list[Any]:
    return [style.format(each) for each in caplog.records if each.name == "sse_pg.api.stream"]


async def test_a_stream_is_two_lines_with_fields(launch: Launcher, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = await launch()
    async with Client(server.url) as client:
        await client.publish("a", 0)
        await eventually(lambda: server.bus.hub.position.high == 1)
        async with client.stream("a,b", last_event_id="0") as stream:
            await stream.event()
            await eventually(lambda: all(each.live for each in server.bus.hub.streams))
            for number in range(3):
                await client.publish("b", number)
            await stream.events(3)
            (sent,) = (each.sent_bytes for each in server.bus.hub.streams)
        await eventually(lambda: not server.bus.hub.streams)
    opened, closed = (json.loads(line) for line in lines(caplog, logs.JsonFormatter()))
    both = {"stream": 1, "remote": "127.0.0.1", "user": None, "channels": ["a", "b"], "channel_count": 2}
    for line, what in ((opened, "opened"), (closed, "closed")):
        assert line.items() >= {**both, "pid": os.getpid(), "level": "info", "logger": "sse_pg.api.stream"}.items()
        assert line["message"].startswith(f"stream {what}: 127.0.0.1 user=None channels='a,b'")
    assert closed.items() >= {"reason": "client", "events": 3, "replayed": 1, "bytes": sent}.items()
    assert 0 < closed["seconds"] < 600


async def test_a_stream_that_changes_its_groups_counts_on(launch: Launcher, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = await launch()
    async with Client(server.url) as client, client.stream("a") as other:
        await client.post("/api/events/channels/subscribe", {"userId": "u", "channel": "a"})
        async with client.stream(userId="u") as stream:
            await eventually(lambda: all(each.live for each in server.bus.hub.streams))
            await client.publish("a", 1)
            await client.post("/api/events/channels/subscribe", {"userId": "u", "channel": "b"})
            await client.publish("b", 2)
            await client.publish("a", 3)
            await stream.events(3)
            await other.events(2)
        await eventually(lambda: len(server.bus.hub.streams) == 1)
        (closed,) = (line for line in map(json.loads, lines(caplog, logs.JsonFormatter())) if "reason" in line)
    assert (closed["user"], closed["channels"]) == ("u", ["a", "b"])
    # While its subscriptions are checked the stream is not live; what comes then counts as replayed.
    assert closed["events"] + closed["replayed"] == 3


STYLES = [logs.JsonFormatter(), logs.TextFormatter(), logs.TextFormatter(pid=True)]


@pytest.mark.parametrize("style", STYLES)
async def test_hostile_names_are_one_line(
    launch: Launcher, caplog: pytest.LogCaptureFixture, style: logging.Formatter
) -> None:
    """A user of a token, and what a trusted proxy says: neither is checked for what it is made of."""
    caplog.set_level(logging.INFO)
    server = await launch(token_secret=SECRET, trusted_proxies="127.0.0.0/8")
    headers = bearer(token(HOSTILE, subscribe=["*"])) | {"X-Forwarded-For": '10.0.0.1,"} {'}
    async with Client(server.url, headers) as client, client.stream("a,b,c,d,e,f"):
        pass
    await eventually(lambda: not server.bus.hub.streams)
    found = lines(caplog, style)
    assert len(found) == 2
    for line in found:
        assert len(line.splitlines()) == 1
        if isinstance(style, logs.JsonFormatter):
            fields = json.loads(line)
            assert (fields["user"], fields["level"], fields["remote"]) == (HOSTILE, "info", "127.0.0.1")
            assert (fields["channels"], fields["channel_count"]) == (list("abcde"), 6)
        else:
            assert line.isprintable()
            assert re.match(r"\d\d:\d\d:\d\d info    (\[\d+\] )?stream (opened|closed): ", line)
            assert ("[" in line[:20]) == (style is not STYLES[1])


def test_fields_take_nothing_from_the_line() -> None:
    record = logging.LogRecord("sse_pg", logging.INFO, "", 0, "truth", (), None)
    record.__dict__.update(logs.fields(level="error", message="forged", user="\udc80", channels=["\udc80"]))
    line = json.loads(logs.JsonFormatter().format(record))
    assert (line["level"], line["message"]) == ("info", "truth")
    assert (line["user"], line["channels"]) == ("\\udc80", ["\\udc80"])


@pytest.mark.parametrize("style", ["json", "text"])
async def test_lines_of_workers_tell_which(database_url: str, style: str) -> None:
    settings = {"SSE_PG_WORKERS": "2", "SSE_PG_LOG_FORMAT": style, "SSE_PG_DRAIN_SECONDS": "0"}
    with process("serve", PORT="0", DATABASE_URL=database_url, **settings) as server:
        url = await asyncio.to_thread(server.url, json_logs=style == "json")
        async with Client(url) as client, client.stream("a"):
            pass
        if style == "text":
            found = await asyncio.to_thread(server.line, r"^\S+ info    \[(\d+)\] stream closed: ", err=True)
            pid = int(found[1])
        else:
            found = await asyncio.to_thread(server.line, r"^(\{.*stream closed: .*\})$", err=True)
            pid = json.loads(found[1])["pid"]
        assert pid != server.popen.pid
        assert await asyncio.to_thread(server.end) == 0
        if style == "json":
            assert all(json.loads(line)["pid"] for line in server.err)
