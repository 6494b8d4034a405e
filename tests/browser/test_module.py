"""/sse-pg.js in a real Chromium: pages that come and go, answers that refuse, silence. tests/clients has the cuts."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from aiohttp import web
from clients.proxy import Proxy
from playwright.async_api import Page
from support.client import Client
from support.server import Launcher
from support.waiting import eventually

from browser.watch import Watch

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

FOLLOW = """async ([options, count]) => {
  const { subscribe } = await import('/sse-pg.js')
  const said = []
  const keep = (name) => (what) => { said.push([name, what.error?.message ?? what]) }
  const all = { channels: ['a'], ...options, onOpen: keep('open'), onLost: keep('lost'), onGap: keep('gap') }
  const events = []
  try {
    for await (const event of subscribe('/api/events/stream', all)) {
      events.push(event)
      if (events.length === count) break
    }
  } catch (error) {
    return { events, said, error: error.name, status: error.status, message: error.message }
  }
  return { events, said }
}"""


async def follow(page: Page, count: int, **options: Any) -> dict[str, Any]:
    """Follow channel a in the page until so many events came, or it gives up."""
    return dict(await page.evaluate(FOLLOW, [options, count]))


def port(url: str) -> int:
    return int(url.rpartition(":")[2])


async def test_a_stream_goes_on_in_the_next_page(page: Page, client: Client) -> None:
    for number in range(5):
        await client.publish("a", {"n": number}, "T")
    await page.goto(f"{client.url}/docs")
    first = await follow(page, 2, key="orders", **{"from": "0"})
    assert [e["data"]["n"] for e in first["events"]] == [0, 1]
    assert first["events"][0]["type"] == "T"
    await page.reload()
    # The event that was being handled when the loop was left counts as not handled.
    second = await follow(page, 4, key="orders")
    assert [e["data"]["n"] for e in second["events"]] == [1, 2, 3, 4]


async def test_an_explicit_cursor_wins_over_a_kept_one(page: Page, client: Client) -> None:
    for number in range(3):
        await client.publish("a", number)
    await page.goto(f"{client.url}/docs")
    for _ in range(2):
        events = (await follow(page, 3, key="orders", **{"from": "0"}))["events"]
        assert [e["data"] for e in events] == [0, 1, 2]


async def test_the_last_events_of_each_channel_come_first(page: Page, client: Client) -> None:
    for number in range(5):
        await client.publish("a" if number % 2 else "b", number)
    await page.goto(f"{client.url}/docs")
    got = await follow(page, 2, latest=1, channels=["a", "b"])
    assert [e["data"] for e in got["events"]] == [3, 4]


async def test_nothing_comes_after_it_was_closed(page: Page, client: Client) -> None:
    """Not even what arrived together with the event that was handled last."""
    for number in range(3):
        await client.publish("a", number)
    await page.goto(f"{client.url}/docs")
    got = await page.evaluate(
        """async () => {
          const { listen } = await import('/sse-pg.js')
          const got = []
          const stream = listen('/api/events/stream', { channels: ['a'], from: '0' }, ({ data }) => {
            got.push(data)
            stream.close()
          })
          await stream.done
          return got
        }"""
    )
    assert got == [0]


async def test_an_error_is_seen_if_nobody_awaits_it(page: Page, watch: Watch, client: Client) -> None:
    """What is refused for good, what the callback raises, what is wrong in the call: once each, and never unhandled."""
    watch.expected = ("422", "StreamError", "Error: of the page", "TypeError")
    await page.goto(f"{client.url}/docs")
    await client.publish("a", 1)
    ends = await page.evaluate(
        """async () => {
          const { listen } = await import('/sse-pg.js')
          const end = (url, options, onEvent) => new Promise((resolve) => {
            listen(url, { ...options, onEnd: ({ name, message }) => resolve([name, message]) }, onEvent)
            listen(url, options, onEvent)
          })
          const url = '/api/events/stream'
          return [
            await end(url, { channels: ['white space'] }),
            await end(url, { channels: ['a'], from: '0' }, () => { throw new Error('of the page') }),
            await end(url, { channels: 'a' })
          ]
        }"""
    )
    assert [name for name, _ in ends] == ["StreamError", "Error", "TypeError"]
    assert [message for _, message in ends][1:] == ["of the page", "channels must be an array of strings"]
    await eventually(lambda: len(watch.errors) >= 4)  # one more is the browser's own, of the 422
    assert not any("Uncaught" in line for line in watch.errors)


async def test_an_event_has_its_number_whatever_its_cursor(page: Page, client: Client, database_url: str) -> None:
    """An event that is committed after one with a higher id has a cursor that is above its own id."""
    insert = "INSERT INTO sse_pg.events (channel, payload) VALUES ('a', '{}') RETURNING id"
    await page.goto(f"{client.url}/docs")
    async with await psycopg.AsyncConnection.connect(database_url) as late:
        lower = await (await late.execute(insert)).fetchone()
        higher = await client.publish("a", {})
        (first,) = (await follow(page, 1, **{"from": "0"}))["events"]
        await late.commit()
        (second,) = (await follow(page, 1, **{"from": first["id"]}))["events"]
    assert lower is not None
    assert (first["number"], second["number"]) == (higher, lower[0])
    assert second["id"] == str(higher)


async def test_a_gap_is_told(page: Page, client: Client) -> None:
    await page.goto(f"{client.url}/docs")
    told = await page.evaluate(
        """async () => {
          const { listen } = await import('/sse-pg.js')
          return await new Promise((resolve) => {
            const stream = listen('/api/events/stream', {
              channels: ['a'], from: '999', onGap: async (gap) => { stream.close(); await stream.done; resolve(gap) }
            }, () => {})
          })
        }"""
    )
    assert told == {"reason": "unknown", "after": "999", "before": "0"}


async def test_what_is_refused_for_good_ends_it(page: Page, watch: Watch, client: Client) -> None:
    watch.expected = ("422",)
    await page.goto(f"{client.url}/docs")
    ended = await follow(page, 1, channels=["white space"])
    assert (ended["error"], ended["status"]) == ("StreamError", 422)
    assert "no white space" in ended["message"]


@pytest.mark.parametrize("status", [429, 503, 500])
async def test_what_is_refused_for_now_does_not(page: Page, watch: Watch, launch: Launcher, status: int) -> None:
    watch.expected = (str(status),)
    server = await launch()
    async with Client(server.url) as client, Proxy(port(server.url), port(server.url)) as proxy:
        await page.goto(f"{proxy.url}/docs")
        await client.publish("a", 1)
        problem = json.dumps({"detail": "not now"}).encode()
        proxy.answer = (
            b"HTTP/1.1 %d No\r\nContent-Type: application/problem+json\r\nRetry-After: 0\r\n"
            b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(problem), problem)
        )
        # A connection of its own: the page's goes on to the server as it is.
        followed = await follow(page, 1, **{"from": "0"}, headers={"X-Own": "1"})
        assert [e["data"] for e in followed["events"]] == [1]
        if ["lost", "not now"] in followed["said"]:
            assert proxy.answer is None


async def test_an_answer_that_is_no_stream_ends_it(page: Page, client: Client) -> None:
    await page.goto(f"{client.url}/docs")
    ended = await page.evaluate(
        """async () => {
          const { subscribe } = await import('/sse-pg.js')
          try { for await (const _ of subscribe('/docs')) return } catch (error) {
            return [error.status, error.message]
          }
        }"""
    )
    assert ended[0] == 200
    assert "expected an event stream, got text/html" in ended[1]


class Tokens:
    """A server that wants a token, and counts who came."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.came: list[str | None] = []
        self.silent = 0

    async def stream(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("Authorization")
        self.came.append(token)
        if token != "Bearer good":
            return web.json_response({"detail": "no"}, status=401)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        # CRLF, CR, a comment, a byte order mark, an event in two lines, bytes of a character apart.
        await response.write("\ufeff: hi\r\nretry: 10\r\n\r\nid: 7\rdata: [1,\rdata: 2]\r\r".encode())
        await response.write('id: 8\nevent: T\ndata: "ö'.encode()[:-1])
        await response.write("ö".encode()[-1:] + b'"\n\n')
        if len(self.came) > 2:
            return response
        self.silent += 1
        await eventually(lambda: request.transport is None or request.transport.is_closing())
        return response

    async def page(self, request: web.Request) -> web.Response:
        if request.path == "/sse-pg.js":
            async with Client(self.server) as client, client.session.get(self.server + request.path) as answer:
                return web.Response(text=await answer.text(), content_type="text/javascript")
        return web.Response(text="<link rel=icon href=data:,>", content_type="text/html")


async def test_tokens_line_ends_and_silence(page: Page, watch: Watch, client: Client) -> None:
    watch.expected = ("401",)
    tokens = Tokens(client.url)
    app = web.Application()
    app.add_routes([web.get("/api/events/stream", tokens.stream), web.get("/{path:.*}", tokens.page)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await page.goto(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        got = await page.evaluate(
            """async () => {
              const { subscribe } = await import('/sse-pg.js')
              const tokens = ['bad', 'good', 'good', 'good']
              const got = []
              const lost = []
              const options = { token: async () => tokens.shift(), silence: 300, onLost: (what) => lost.push(what) }
              for await (const { id, type, data } of subscribe('/api/events/stream', options)) {
                got.push([id, type, data])
                if (got.length === 4) return { got, lost: lost.map(({ error }) => error.message) }
              }
            }"""
        )
        assert got["got"] == [["7", "message", [1, 2]], ["8", "T", "ö"]] * 2
        assert tokens.came == ["Bearer bad", "Bearer good", "Bearer good"]
        assert got["lost"][1] == "no data for 0.3 s"
        refused = await page.evaluate(
            """async () => {
              const { subscribe } = await import('/sse-pg.js')
              const options = { token: () => 'bad' }
              try { for await (const _ of subscribe('/api/events/stream', options)) return } catch (error) {
                return error.status
              }
            }"""
        )
        assert refused == 401
        assert tokens.came[3:] == ["Bearer bad"] * 2
    finally:
        await runner.cleanup()


async def test_a_page_goes_on_without_what_it_may_not_read(page: Page, watch: Watch, client: Client) -> None:
    watch.expected = ("403",)
    await page.goto(f"{client.url}/docs")
    await client.post("/api/events/channels/subscribe", {"userId": "7", "channel": "a"})
    await client.publish("a", 1)
    got = await page.evaluate(
        """async () => {
          const { subscribe } = await import('/sse-pg.js')
          const got = []
          const options = { channels: ['a', 'b'], userId: 7, from: '0', onDenied: (channels) => got.push(channels) }
          for await (const { data } of subscribe('/api/events/stream', options)) return [...got, data]
        }"""
    )
    assert got == [["b"], 1]
    refused = await follow(page, 1, channels=["a", "b"], userId=7)
    assert refused["status"] == 403


async def test_aborting_ends_it_without_an_error(page: Page, launch: Launcher) -> None:
    server = await launch()
    await page.goto(f"{server.url}/docs")
    running = page.evaluate(
        """async () => {
          const { subscribe } = await import('/sse-pg.js')
          const abort = new AbortController()
          const options = { channels: ['a'], signal: abort.signal, onOpen: () => setTimeout(() => abort.abort(), 50) }
          for await (const _ of subscribe('/api/events/stream', options)) return 'an event'
          return 'ended'
        }"""
    )
    assert await running == "ended"
    await eventually(lambda: not server.bus.hub.streams)
