"""Each client connects, is cut in every way there is, resumes, and misses nothing. docs/clients.md has the matrix."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from urllib.parse import quote

import pytest
from support.server import Launcher, Server, greeted
from support.waiting import eventually

from clients.driver import Browser, Driver, ProcessDriver
from clients.proxy import Proxy
from clients.traffic import CHANNEL, TYPES, Traffic
from sse_pg.delivery.end_reason import EndReason

HELLO, POSITION = "sse-pg.hello", "sse-pg.position"
OWN = ["sse-pg.gap", HELLO, POSITION]
SETTINGS = {"retry": 0.05, "heartbeat": 0.2, "position_refresh": 0.3}
UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n"
    b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"
)
# What the proxies of docker/ answer while no server takes a stream; only the time is theirs.
LATER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 10\r\nConnection: close\r\n\r\nretry: 50\n"
)

# Where an event's bytes are cut.
BEHIND_THE_ID = rb"id: [0-9~,-]+\n(?=event: [og])"
INSIDE_THE_HELLO = rb"event: sse-pg\.he"
INSIDE_A_CHARACTER = rb"event: gr\xc3\xb6\xc3\x9fe\ndata: [^\n]*?\xf0\x9f"
BEFORE_THE_BLANK_LINE = rb"data: \{[^\n]{20,}\n(?=\n)"
INSIDE_A_LARGE_EVENT = rb"data: [^\n]{100000}"
LARGE = 200_000


@dataclass(frozen=True)
class Kind:
    """A client and what is particular about it."""

    name: str
    driver: str
    query: bool = False
    """It resumes with the query parameter, never with the header."""
    ends_on_503: bool = True
    """An answer of 503 ends it for ever."""

    def make(self, *, again: bool = True) -> Driver:
        if self.driver in ("browser", "module"):
            return Browser(again=again, page="module.html" if self.driver == "module" else "page.html")
        return ProcessDriver(self.driver)


KINDS = [
    Kind("eventsource", "eventsource.cjs"),
    Kind("eventsource-client", "eventsource-client.cjs", ends_on_503=False),
    Kind("undici", "undici.cjs"),
    Kind("fetch-event-source", "fetch-event-source.cjs", ends_on_503=False),
    Kind("event-source-polyfill", "event-source-polyfill.cjs", query=True),
    Kind("launchdarkly-eventsource", "launchdarkly-eventsource.cjs", ends_on_503=False),
    Kind("requests-sse", "drive_requests_sse.py"),
    Kind("httpx-sse", "drive_httpx_sse.py", ends_on_503=False),
    Kind("aiohttp-sse-client2", "drive_aiohttp_sse_client2.py", ends_on_503=False),
    Kind("chromium", "browser"),
    Kind("sse-pg.js", "sse-pg.cjs", ends_on_503=False),
    Kind("sse-pg.js in chromium", "module", ends_on_503=False),
]
every_client = pytest.mark.parametrize(
    "kind",
    [pytest.param(k, id=k.name, marks=[pytest.mark.browser] * (k.driver in ("browser", "module"))) for k in KINDS],
)


def stream_url(proxy: Proxy, **parameters: str) -> str:
    query = "&".join(f"{name}={quote(value)}" for name, value in {"channels": CHANNEL, **parameters}.items())
    return f"{proxy.url}/api/events/stream?{query}"


def port(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def events(driver: Driver) -> list[tuple[str, str]]:
    """Return (type, data) of what is no control event and no empty message."""
    return [(r["type"], r["data"]) for r in driver.records if r["data"] and r["type"] not in OWN]


async def more(driver: Driver, count: int = 5) -> None:
    """Wait until the client has received so many events more."""
    before = len(events(driver))
    await eventually(lambda: driver.gave_up or len(events(driver)) >= before + count)
    assert not driver.gave_up, driver.said


async def again(driver: Driver, proxy: Proxy, requests: int) -> None:
    """Wait until the client has come back and received events."""
    await eventually(lambda: driver.gave_up or len(proxy.requests) > requests)
    await more(driver)


@every_client
async def test_every_client_reads_a_compressed_stream(kind: Kind, launch: Launcher, database_url: str) -> None:
    """Bursts, single events, and a connection that is cut, which has no end of the gzip member."""
    server = await launch(**{**SETTINGS, "compression": "on"})
    async with kind.make() as driver, Proxy(port(server), driver.pages) as proxy:
        await driver.open(stream_url(proxy), [*TYPES[1:], *OWN])
        await eventually(lambda: driver.gave_up or any(r["type"] == HELLO for r in driver.records))
        async with Traffic(database_url):
            await more(driver, 50)
            requests = len(proxy.requests)
            proxy.cut()
            await again(driver, proxy, requests)
            requests = len(proxy.requests)
            for stream in list(server.bus.hub.streams):
                stream.end(EndReason.EXPIRED)  # the response has its end, the gzip member has none
            await again(driver, proxy, requests)


@every_client
async def test_nothing_is_lost_and_nothing_is_doubled(kind: Kind, launch: Launcher, database_url: str) -> None:
    server = await launch(**SETTINGS)
    async with kind.make() as driver, Proxy(port(server), driver.pages) as proxy:
        await driver.open(stream_url(proxy), [*TYPES[1:], *OWN])
        await eventually(lambda: driver.gave_up or any(r["type"] == HELLO for r in driver.records))
        async with Traffic(database_url) as traffic:
            await more(driver)

            proxy.cut()
            await proxy.cut_at(INSIDE_THE_HELLO)
            await again(driver, proxy, 2)

            for place in (BEHIND_THE_ID, INSIDE_A_CHARACTER, BEFORE_THE_BLANK_LINE):
                before = len(proxy.requests)
                await proxy.cut_at(place)
                await again(driver, proxy, before)

            # Transactions in flight: the cursor carries gaps, and the client brings them back.
            await traffic.open_late(8)
            await eventually(lambda: driver.gave_up or any(r["id"].count(",") >= 7 for r in driver.records))
            before = len(proxy.requests)
            proxy.cut()
            await again(driver, proxy, before)
            assert proxy.requests[-1].cursor.count(",") >= 7, proxy.requests[-1]

            # Another server on the same database; the late transactions commit while nobody listens.
            proxy.refusing = True
            await server.stop()
            await traffic.commit_late()
            await traffic.publish_large(LARGE)
            await eventually(lambda: driver.gave_up or proxy.refused)
            server = await launch(**SETTINGS)
            proxy.target = port(server)
            before = len(proxy.requests)
            proxy.refusing = False
            await proxy.cut_at(INSIDE_A_LARGE_EVENT)
            await again(driver, proxy, before + 1)

            await traffic.stop()
            rows = await traffic.rows()
            await eventually(lambda: driver.gave_up or len(events(driver)) >= len(rows))

            # A quiet stream: heartbeats and positions are no events.
            seen = proxy.heartbeats
            await traffic.publish_large(1)
            rows = await traffic.rows()
            await eventually(lambda: driver.gave_up or len(events(driver)) >= len(rows))
            await eventually(lambda: proxy.heartbeats >= seen + 3)

        assert not driver.gave_up, driver.said
        received = events(driver)
        assert Counter(received) - Counter(rows) == Counter(), "doubled or changed"
        assert Counter(rows) - Counter(received) == Counter(), "lost"
        assert any(len(data) > LARGE for _, data in received)

        assert [r for r in driver.records if not r["data"]] == [], "a heartbeat came out as a message"
        for request in proxy.requests[1:]:
            assert request.cursor
            assert not (kind.query and request.header_id)
        assert {r["data"] for r in driver.records if r["type"] in OWN} == {"{}"}


@every_client
async def test_the_envelope_reaches_onmessage(kind: Kind, launch: Launcher, database_url: str) -> None:
    server = await launch(**SETTINGS)
    async with kind.make() as driver, Proxy(port(server), driver.pages) as proxy:
        await driver.open(stream_url(proxy, envelope="true"), [])
        await eventually(lambda: driver.gave_up or greeted(server))
        async with Traffic(database_url) as traffic:
            await more(driver)
            proxy.cut()
            await again(driver, proxy, 1)
            await traffic.stop()
            rows = await traffic.rows()
            await eventually(lambda: driver.gave_up or len(events(driver)) >= len(rows))
        received = [json.loads(data) for _, data in events(driver)]
        assert {kind for kind, _ in events(driver)} == {"message"}
        assert {e["channel"] for e in received} == {CHANNEL}
        assert [(e["eventType"], e["payload"]) for e in received] == [(kind, json.loads(text)) for kind, text in rows]


@every_client
async def test_what_an_answer_of_503_does(kind: Kind, launch: Launcher, database_url: str) -> None:
    await _meet(UNAVAILABLE, kind.make(again=False), launch, database_url, ends=kind.ends_on_503)


@pytest.mark.browser
async def test_a_page_outlives_a_503(launch: Launcher, database_url: str) -> None:
    """The snippet of docs/clients.md."""
    await _meet(UNAVAILABLE, Browser(again=True), launch, database_url, ends=False)


@every_client
async def test_every_client_comes_back_after_an_empty_stream(kind: Kind, launch: Launcher, database_url: str) -> None:
    """And takes it for no event."""
    await _meet(LATER, kind.make(again=False), launch, database_url, ends=False)


async def _meet(answer: bytes, made: Driver, launch: Launcher, database_url: str, *, ends: bool) -> None:
    server = await launch(**SETTINGS)
    async with made as driver, Proxy(port(server), driver.pages) as proxy:
        await driver.open(stream_url(proxy), [*TYPES[1:], *OWN])
        await eventually(lambda: driver.gave_up or greeted(server))
        async with Traffic(database_url) as traffic:
            await more(driver)
            proxy.answer = answer
            proxy.cut()
            if ends:
                await eventually(lambda: driver.gave_up)
                return
            await again(driver, proxy, 2)
            await traffic.stop()
            rows = await traffic.rows()
            await eventually(lambda: len(events(driver)) >= len(rows))
        assert Counter(events(driver)) == Counter(rows)
        assert [record for record in driver.records if not record["data"]] == []


async def test_fetch_event_source_left_to_itself_loses_an_event(launch: Launcher, database_url: str) -> None:
    """It takes the id of an event when the id line comes; a connection that is cut behind that line loses the event."""
    server = await launch(**SETTINGS)
    async with ProcessDriver("fetch-event-source-plain.cjs") as driver, Proxy(port(server)) as proxy:
        await driver.open(stream_url(proxy), ["reopen"])
        await eventually(lambda: driver.gave_up or greeted(server))
        async with Traffic(database_url) as traffic:
            await more(driver)
            await proxy.cut_at(BEHIND_THE_ID)
            await again(driver, proxy, 1)
            await traffic.stop()
            rows = await traffic.rows()
            await eventually(lambda: driver.gave_up or events(driver)[-1] == rows[-1])
        assert len(list((Counter(rows) - Counter(events(driver))).elements())) == 1


async def test_fetch_event_source_left_to_itself_ends_with_the_stream(launch: Launcher) -> None:
    server = await launch(**SETTINGS)
    async with ProcessDriver("fetch-event-source-plain.cjs") as driver, Proxy(port(server)) as proxy:
        await driver.open(stream_url(proxy), [])
        await eventually(lambda: driver.gave_up or driver.records)
        await server.stop()
        await eventually(lambda: driver.gave_up)
