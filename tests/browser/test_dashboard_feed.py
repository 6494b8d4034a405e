"""What the dashboard follows: all channels, patterns, the last stored events, what is not allowed, what is lost."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, Route, expect
from support.client import Client
from support.server import Launcher

from browser.gate import Gate
from browser.watch import Watch
from sse_pg.auth.tokens import mint

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]
expect.set_options(timeout=20000)

SECRET = "a secret of more than thirty-two bytes"


async def ids(page: Page) -> list[str]:
    """The ids of the rows, from the top."""
    return await page.locator("#feed li .id").all_inner_texts()


async def test_all_channels_are_followed_and_new_ones_appear(page: Page, client: Client) -> None:
    await page.goto(client.url)
    for number, channel in enumerate(("orders", "stock", "a/ö?"), 1):
        await client.publish(channel, {}, f"FIRST{number}")
        await expect(page.locator("#feed li .type").first).to_have_text(f"FIRST{number}")
        await expect(page.locator("#state")).to_have_text(f"live, {number} channel{'s' if number > 1 else ''}")
        await expect(page.locator("#t-channels tbody tr")).to_have_count(number)
    await expect(page.locator("#chips .chip")).to_have_text([re.compile("^all channels")])
    assert await ids(page) == ["3", "2", "1"]
    await page.get_by_role("button", name="Follow only stock").click()
    await expect(page.locator("#state")).to_have_text("live, 1 channel")
    await client.publish("orders", {})
    last = await client.publish("stock", {}, "LAST")
    await expect(page.locator("#feed li").first.locator(".id")).to_have_text(str(last))
    await page.locator("#all").click()
    await expect(page.locator("#feed li .id")).to_have_count(5)  # with what came in the other channel meanwhile
    await expect(page.locator("#all")).to_be_hidden()


async def test_a_pattern_is_followed(page: Page, client: Client) -> None:
    await client.publish("stock", {})
    await page.goto(f"{client.url}/#channels=orders.*,notes.**")
    await client.publish("orders.7.items", {}, "TOO DEEP")
    for channel in ("orders.7", "notes.7.a", "orders.8"):
        await client.publish(channel, {}, channel)
        await expect(page.locator("#feed li .type").first).to_have_text(channel)
    await expect(page.locator("#feed li .type")).to_have_text(["orders.8", "notes.7.a", "orders.7"])
    await expect(page.locator("#chips .chip")).to_contain_text(["orders.*", "notes.**"])


async def test_the_last_stored_events_come_first_and_none_twice(page: Page, client: Client) -> None:
    numbers = [await client.publish("a", {"n": n}) for n in range(25)]

    async def between(route: Route) -> None:
        """An event is published when the stream is open, before the log is read: it comes on both ways."""
        numbers.append(await client.publish("a", {}, "BOTH"))
        await expect(page.locator("#feed li")).to_contain_text(["BOTH"])
        await route.continue_()

    await page.route("**/api/events/history?*", between, times=1)
    await page.goto(f"{client.url}/#channels=a")
    await expect(page.locator("#feed .mark")).to_have_text("Live from here on. Below are the last stored events.")
    await expect(page.locator("#feed li")).to_have_count(21)
    assert await ids(page) == [str(number) for number in reversed(numbers[-20:])]
    numbers.append(await client.publish("a", {}, "LIVE"))
    await expect(page.locator("#feed li")).to_have_count(22)
    await expect(page.locator("#feed li").first).to_contain_text("LIVE")
    # Of a channel that is added, the stream sends again what came since; the log has that, too.
    numbers.append(await client.publish("b", {}, "MEANWHILE"))
    await page.locator("#channels").fill("b")
    async with page.expect_response("**/api/events/history?*"):
        await page.keyboard.press("Enter")
    await expect(page.locator("#feed li").first).to_contain_text("MEANWHILE")
    numbers.append(await client.publish("b", {}, "END"))
    await expect(page.locator("#feed li").first).to_contain_text("END")
    assert await ids(page) == [str(number) for number in reversed(numbers[-23:])]


async def test_events_of_another_day_say_so(page: Page, client: Client) -> None:
    await client.publish("a", {})
    await page.clock.set_fixed_time("2040-01-01T12:00:00Z")
    await page.goto(f"{client.url}/#channels=a")
    await expect(page.locator("#feed time")).to_have_text(re.compile(r"^\d\d-\d\d \d\d:\d\d:\d\d$"))


async def test_headers_are_not_part_of_the_payload(page: Page, client: Client) -> None:
    await page.goto(f"{client.url}/#channels=a")
    await expect(page.locator("#state")).to_have_attribute("data-is", "live")
    payload = {"headers": {"a": 1}, "n": ',"headers":'}
    body = {"channel": "a", "eventType": "T", "payload": payload, "headers": {"from": "shop", "headers": "2"}}
    assert (await client.post("/api/events/publish", body))[0] == 201
    row = page.locator("#feed li")
    await expect(row.locator(".short")).to_have_text('{"n": ",\\"headers\\":", "headers": {"a": 1}}')
    await row.locator("summary").click()
    await expect(row.locator("pre.headers")).to_contain_text('"from": "shop"')


async def test_what_the_token_does_not_allow_is_left_out(page: Page, watch: Watch, launch: Launcher) -> None:
    watch.expected = ("401", "403")
    server = await launch(token_secret=SECRET)
    whole = mint(server.bus.settings, "root", 600, publish=["*"], subscribe=["*"])
    async with Client(server.url, {"Authorization": f"Bearer {whole}"}) as client:
        for channel in ("mine", "theirs"):
            await client.publish(channel, {}, channel)
    token = mint(server.bus.settings, "ann", 600, subscribe=["mine"], observe=True)
    await page.goto(server.url)
    await page.locator("#ask [name=token]").fill(token)
    await page.keyboard.press("Enter")
    await expect(page.locator("#state")).to_have_text("live, 1 channel; 1 not allowed")
    await expect(page.locator("#feed li .type")).to_have_text(["mine"])


async def test_a_gap_is_said_in_plain_words(page: Page, client: Client) -> None:
    blocks = [
        "retry: 600000",
        "id: 9\nevent: sse-pg.hello\ndata: {}",
        'id: 9\nevent: sse-pg.gap\ndata: {"reason":"expired","after":"3~1","before":"9"}',
        'id: 9\nevent: sse-pg.gap\ndata: {"reason":"unknown","after":"x","before":"9"}',
    ]
    body = "\n\n".join([*blocks, ""])
    await page.route("**/events/stream?*", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    await page.goto(f"{client.url}/#channels=a")
    marks = page.locator("#feed .mark.bad")
    await expect(marks).to_contain_text(
        [
            "Connection lost",
            "Events before the id 9 may be missing: the log was restored, or another database took over.",
            "Events between the ids 3 and 9 are missing: they were deleted by retention",
        ]
    )


@pytest.mark.parametrize("how", ["the button", "the network is back"])
async def test_reconnect_now(page: Page, watch: Watch, launch: Launcher, how: str) -> None:
    watch.expected = ("net::ERR_",)
    server = await launch(retry=60.0)  # by itself the page would wait for a minute or more
    async with Gate(int(server.url.rpartition(":")[2])) as gate, Client(server.url) as client:
        await page.goto(f"{gate.url}/#channels=a")
        await expect(page.locator("#state")).to_have_attribute("data-is", "live")
        await client.publish("a", {}, "BEFORE")
        await expect(page.locator("#feed li")).to_have_count(1)
        await expect(page.locator("#again")).to_be_hidden()
        gate.shut = True
        await gate.cut()
        await expect(page.locator("#state")).to_contain_text(re.compile(r"connection lost, next attempt in \d\d"))
        await client.publish("a", {}, "MISSED")
        gate.shut = False
        if how == "the button":
            await page.locator("#again").click()
        else:
            await page.evaluate("window.dispatchEvent(new Event('online'))")
        await expect(page.locator("#state")).to_have_text("live, 1 channel")
        await expect(page.locator("#feed li .mark.good")).to_contain_text("1 event replayed")
        await expect(page.locator("#feed li .type")).to_have_text(["MISSED", "BEFORE"])
        await expect(page.locator("#again")).to_be_hidden()
