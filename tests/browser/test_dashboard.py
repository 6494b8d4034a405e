"""The dashboard in a real Chromium: what a person sees and does."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import psycopg
import pytest
from playwright.async_api import Browser, Page, expect
from support.client import Client
from support.server import Launcher

from browser.gate import Gate
from browser.watch import Watch
from sse_pg.auth.tokens import mint

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]
expect.set_options(timeout=20000)


def publish(db: psycopg.Connection, channel: str, event_type: str, payload: object) -> int:
    row = db.execute("SELECT sse_pg.publish(%s, %s, %s)", (channel, event_type, json.dumps(payload))).fetchone()
    assert row is not None
    return int(row[0])


async def live(page: Page, url: str, *channels: str) -> None:
    """Open the dashboard on some channels and wait until its stream is open."""
    await page.goto(f"{url}/#channels={','.join(map(quote, channels))}")
    await expect(page.locator("#state")).to_have_attribute("data-is", "live")


async def test_an_event_is_shown_as_it_comes(page: Page, client: Client, db: psycopg.Connection) -> None:
    await live(page, client.url, "orders", "a/ö?")
    number = publish(db, "orders", "PLACED", {"item": "book", "n": 12345678901234567890})
    row = page.locator("#feed li").first
    await expect(row).to_contain_text("PLACED")
    await expect(row.locator(".id")).to_have_text(str(number))
    await row.locator("summary").click()
    await expect(row.locator("pre")).to_have_text('{\n  "n": 12345678901234567890,\n  "item": "book"\n}')
    await page.locator("#tab-history").click()
    await page.locator("#search button").click()
    await expect(page.locator("#pages li .short")).to_have_text('{"n": 12345678901234567890, "item": "book"}')
    await page.locator("#tab-live").click()
    await client.publish("a/ö?", [1], "OTHER")
    await expect(page.locator("#feed li").first).to_contain_text("a/ö?")
    await client.publish("elsewhere", {})
    last = await client.publish("orders", {}, "LAST")
    await expect(page.locator("#feed li").first.locator(".id")).to_have_text(str(last))
    await expect(page.locator("#feed li")).to_have_count(3)


async def test_the_streams_are_listed_and_a_user_is_disconnected(page: Page, client: Client) -> None:
    async with client.stream(userId="42") as stream, client.stream("orders"):
        await page.goto(f"{client.url}/")
        users = page.locator("#t-streams tbody td:first-child")
        await expect(users).to_have_text(["42", "–"])
        await expect(page.locator("#streams-note")).to_contain_text("the worst readers first")
        page.on("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Disconnect user 42").click()
        await stream.ended()
        await expect(users).to_have_text(["–"])


async def test_the_streams_of_all_servers_are_listed_on_demand(page: Page, launch: Launcher) -> None:
    one, two = await launch(server_name="one"), await launch(server_name="two")
    async with (
        Client(one.url) as client,
        Client(two.url) as other,
        client.stream(userId="42"),
        other.stream(userId="43"),
    ):
        await page.goto(one.url)
        users = page.locator("#t-streams tbody td:first-child")
        await expect(users).to_have_text(["42"])
        await page.locator("#all-servers").check()
        await expect(users).to_have_text(["42", "43"])
        await expect(page.locator("#streams-note")).to_have_text("the worst readers first, on 2 servers")
        await page.locator("#all-servers").uncheck()
        await expect(users).to_have_text(["42"])


async def test_hostile_events_stay_text(page: Page, client: Client) -> None:
    bad = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    await live(page, client.url, bad.replace(" ", ""))
    before = await page.title()
    await client.publish(bad.replace(" ", ""), {bad: bad, "u": "\u202e</pre>"}, bad)
    row = page.locator("#feed li").first
    await row.locator("summary").click()
    await expect(row.locator("pre")).to_contain_text("onerror")
    await expect(row.locator(".type")).to_have_text(bad)
    await expect(page.locator("#t-channels tbody")).to_contain_text("onerror")
    assert await page.locator("#feed img, #feed script, aside img, aside script, .chips img").count() == 0
    assert await page.title() == before


async def test_pause_and_filter(page: Page, client: Client) -> None:
    await live(page, client.url, "a")
    await client.publish("a", {"n": 1}, "ONE")
    await expect(page.locator("#feed li")).to_have_count(1)
    await page.keyboard.press("p")
    await expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    await client.publish("a", {"n": 2}, "TWO")
    await expect(page.locator("#pause")).to_have_text("Resume (1 new)")
    assert await page.locator("#feed li").count() == 1
    await page.locator("#pause").click()
    await expect(page.locator("#feed li")).to_have_count(2)
    await page.keyboard.press("/")
    await expect(page.locator("#filter")).to_be_focused()
    await page.keyboard.type("two")
    await expect(page.locator("#feed li:visible")).to_have_count(1)
    await expect(page.locator("#feed li:visible")).to_contain_text("TWO")
    await client.publish("a", {"word": "Two in the payload"}, "THREE")
    await client.publish("a", {}, "FOUR")
    await expect(page.locator("#feed li")).to_have_count(4)
    await expect(page.locator("#feed li:visible")).to_have_count(2)
    await page.locator("#filter").fill("nothing has this")
    await expect(page.locator("#empty")).to_have_text("No event matches the filter.")
    await page.locator("#filter").fill("")
    await expect(page.locator("#feed li:visible")).to_have_count(4)
    await page.locator("#clear").click()
    await expect(page.locator("#feed li")).to_have_count(0)


async def test_publishing_by_keyboard(page: Page, client: Client, db: psycopg.Connection) -> None:
    await live(page, client.url, "a")
    form = page.locator("#publish")
    await form.locator("[name=channel]").focus()
    await page.keyboard.type("a")
    await page.keyboard.press("Tab")
    await page.keyboard.type("TYPED")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Control+a")
    await page.keyboard.type('{"n": 1.50')
    await page.keyboard.press("Control+Enter")
    await expect(page.locator("#published")).to_contain_text("not JSON")
    await page.keyboard.press("End")
    await page.keyboard.type("}")
    await page.keyboard.press("Control+Enter")
    await expect(page.locator("#published")).to_have_text("Published, id 1.")
    await expect(page.locator("#feed li").first).to_contain_text("TYPED")
    rows = db.execute("SELECT channel, event_type, payload::text FROM sse_pg.events").fetchall()
    assert rows == [("a", "TYPED", '{"n": 1.50}')]


async def test_what_is_refused_is_said(page: Page, client: Client, watch: Watch) -> None:
    watch.expected = ("422",)
    await live(page, client.url, "a")
    await page.locator("#publish [name=channel]").fill("no spaces allowed")
    await page.locator("#publish button").click()
    await expect(page.locator("#published")).to_contain_text("no white space")
    await expect(page.locator("#publish button")).to_be_enabled()


async def test_a_publish_without_an_answer_is_told(page: Page, watch: Watch, launch: Launcher) -> None:
    watch.expected = ("net::ERR_",)
    server = await launch()
    async with Gate(int(server.url.rpartition(":")[2])) as gate:
        await live(page, gate.url, "a")
        await page.locator("#publish [name=channel]").fill("a")
        gate.shut = True
        await gate.cut()
        await page.locator("#publish button").click()
        await expect(page.locator("#published")).to_have_text(
            "The server does not respond; it is not known whether this was done."
        )


async def test_history_in_pages(page: Page, client: Client) -> None:
    await client.post("/api/events/publish", [{"channel": "a", "payload": n, "eventType": f"T{n}"} for n in range(60)])
    await live(page, client.url, "a")
    await page.locator("#tab-live").focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.locator("#tab-history")).to_be_focused()
    await expect(page.locator("#search [name=channel]")).to_have_value("a")
    shown = page.locator("#pages li .type")
    await expect(page.locator("#found")).to_have_text("Page 1: 25 events, more follow.")
    assert await shown.all_inner_texts() == [f"T{n}" for n in range(59, 34, -1)]
    await page.locator("#next").click()
    await expect(page.locator("#found")).to_have_text("Page 2: 25 events, more follow.")
    await page.locator("#next").click()
    await expect(page.locator("#found")).to_have_text("Page 3: 10 events, last page.")
    assert await shown.all_inner_texts() == [f"T{n}" for n in range(9, -1, -1)]
    await expect(page.locator("#next")).to_be_disabled()
    await page.locator("#previous").click()
    await expect(page.locator("#found")).to_contain_text("Page 2")
    assert (await shown.all_inner_texts())[0] == "T34"
    await page.locator("#search [name=order]").select_option("asc")
    await page.locator("#search [name=eventType]").fill("T7")
    await page.locator("#search button").click()
    await expect(page.locator("#found")).to_have_text("Page 1: 1 event, last page.")
    assert await shown.all_inner_texts() == ["T7"]


async def test_a_lost_server_and_what_was_replayed(
    page: Page, watch: Watch, launch: Launcher, db: psycopg.Connection
) -> None:
    watch.expected = ("net::ERR_",)
    server = await launch()
    async with Gate(int(server.url.rpartition(":")[2])) as gate:
        await live(page, gate.url, "a")
        publish(db, "a", "BEFORE", 0)
        await expect(page.locator("#feed li")).to_have_count(1)
        gate.shut = True
        await gate.cut()
        await server.stop()
        await expect(page.locator("#state")).to_have_attribute("data-is", "lost")
        await expect(page.locator("#feed li .mark.bad")).to_contain_text("Connection lost")
        for number in range(7):
            publish(db, "a", "MISSED", number)
        gate.target = int((await launch()).url.rpartition(":")[2])
        # The page asks where the log ends, to tell what was replayed from what is new: nothing new before the response.
        async with page.expect_response(lambda response: response.url.endswith("/stats?seconds=0")):
            gate.shut = False
        await expect(page.locator("#state")).to_have_attribute("data-is", "live")
        await expect(page.locator("#feed li .mark.good")).to_contain_text("7 events replayed")
        await expect(page.locator("#feed li.replayed")).to_have_count(7)
        publish(db, "a", "AFTER", 0)
        await expect(page.locator("#feed li").first).to_contain_text("AFTER")
        await expect(page.locator("#feed li.replayed")).to_have_count(7)
        await expect(page.locator("#feed li .mark.good")).to_contain_text("7 events replayed")


async def test_channels_are_followed_and_left(page: Page, client: Client) -> None:
    await page.goto(client.url)
    await expect(page.locator("#empty")).to_contain_text("There is no channel to show yet")
    await expect(page.locator("#chips .chip")).to_contain_text(["all channels"])
    await client.publish("first", {})
    await page.get_by_role("button", name="Follow only first").click()
    await page.locator("#channels").fill("second, third")
    await page.keyboard.press("Enter")
    await expect(page.locator("#chips .chip")).to_have_count(3)
    await expect(page.locator("#state")).to_have_text("live, 3 channels")
    await page.get_by_role("button", name="Stop following second").click()
    await expect(page.locator("#state")).to_have_text("live, 2 channels")
    await client.publish("third", {}, "HERE")
    await expect(page.locator("#feed li").first).to_contain_text("HERE")
    await client.publish("fourth", {})
    await page.get_by_role("button", name="Follow fourth").click()
    await expect(page.locator("#state")).to_have_text("live, 3 channels")
    assert page.url.endswith("#channels=first,third,fourth")


async def test_the_numbers(page: Page, client: Client, db: psycopg.Connection, database_url: str) -> None:
    await live(page, client.url, "a")
    await expect(page.locator("#v-streams")).to_have_text("1")
    await expect(page.locator("#v-bell")).to_have_text("when notified")
    await expect(page.locator("#v-lag")).to_have_text("nothing")
    await expect(page.locator("#v-ids")).to_have_text("nothing")
    with psycopg.connect(database_url) as in_flight:
        in_flight.execute("SELECT sse_pg.publish('a', 'T', '1')")
        publish(db, "a", "T", 2)
        await expect(page.locator("#v-delay")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
        await expect(page.locator("#v-flight")).to_have_text("1")
        await expect(page.locator("#v-gaps")).to_have_text("1 id may still appear")
        await expect(page.locator("#v-ids")).to_have_text("2 – 2")
    await expect(page.locator("#v-flight")).to_have_text("0")
    await expect(page.locator("#t-servers tbody tr")).to_have_count(1)
    await expect(page.locator("#c-events path.line")).to_have_count(1)


async def test_consumers_published_tables_and_kept_channels(page: Page, client: Client, db: psycopg.Connection) -> None:
    await live(page, client.url, "a")
    await expect(page.locator("#t-servers tbody tr")).to_have_count(1)
    for part in ("#consumers", "#tables", "#kept"):
        await expect(page.locator(part)).to_be_hidden()
    db.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    db.execute("CREATE TABLE bills (id int PRIMARY KEY)")
    db.execute("SELECT sse_pg.publish_changes('orders', 'orders.{id}')")
    db.execute("SELECT sse_pg.publish_changes('bills', 'bills')")
    db.execute("ALTER TABLE bills DISABLE TRIGGER sse_pg_insert")
    db.execute("SELECT FROM sse_pg.consume('mail', '{orders.7,orders.8}')")
    db.execute("SELECT sse_pg.keep('old', '36 hours')")
    db.execute("INSERT INTO orders VALUES (7), (8), (9)")
    await expect(page.locator("#t-consumers tbody tr")).to_have_count(1)
    await expect(page.locator("#t-consumers tbody td")).to_have_text(
        ["mail", "orders.7, orders.8", "2", re.compile(".")]
    )
    await expect(page.locator("#t-tables tbody tr")).to_contain_text(
        ["public.bills", "public.ordersorders.{id}published"]
    )
    await expect(page.locator("#t-tables td.warn")).to_contain_text("a trigger is missing or disabled")
    await expect(page.locator("#t-kept tbody td")).to_have_text(["old", "36 h", "0", "–"])
    db.execute("SELECT FROM sse_pg.consume('mail', '{orders.7,orders.8}')")
    await expect(page.locator("#t-consumers tbody td")).to_have_text(["mail", "orders.7, orders.8", "0", "–"])
    db.execute("SELECT sse_pg.drop_consumer('mail')")
    await expect(page.locator("#consumers")).to_be_hidden()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [360, 768, 1280])
async def test_nothing_sticks_out(page: Page, client: Client, width: int) -> None:
    await page.set_viewport_size({"width": width, "height": 800})
    await live(page, client.url, "a", "x" * 255)
    await client.publish("a", {"long": "word" * 500}, "T" * 255)
    await page.locator("#feed li summary").click()
    await expect(page.locator("#feed pre")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_light_and_dark(browser: Browser, client: Client, page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    await page.goto(client.url)
    light = await page.evaluate(ground)
    await page.emulate_media(color_scheme="dark")
    dark = await page.evaluate(ground)
    assert light != dark
    await page.locator("#theme").click()
    assert await page.evaluate(ground) == light
    await page.locator("#theme").click()
    await page.emulate_media(color_scheme="light")
    assert await page.evaluate(ground) == dark
    await page.reload()
    await expect(page.locator("#theme")).to_have_text("Theme: dark")
    assert await page.evaluate(ground) == dark


async def test_a_token_is_asked_for_and_kept_out_of_reach(page: Page, watch: Watch, launch: Launcher) -> None:
    watch.expected = ("401",)
    server = await launch(token_secret="a secret of more than thirty-two bytes")
    token = mint(server.bus.settings, "ann", 600, publish=["a"], subscribe=["a"], observe=True)
    await page.goto(f"{server.url}/#channels=a")
    ask = page.locator("#ask")
    await expect(ask).to_be_visible()
    await expect(page.locator("#ask [name=token]")).to_be_focused()
    await page.keyboard.type("wrong")
    await page.keyboard.press("Enter")
    await expect(page.locator("#ask-why")).to_contain_text("was refused")
    await page.locator("#ask [name=token]").fill(token)
    await page.keyboard.press("Enter")
    await expect(ask).to_be_hidden()
    await expect(page.locator("#state")).to_have_attribute("data-is", "live")
    await expect(page.locator("#v-streams")).to_have_text("1")
    await page.locator("#publish [name=channel]").fill("a")
    await page.locator("#publish button").click()
    await expect(page.locator("#feed li")).to_have_count(1)
    assert await page.evaluate("document.cookie + JSON.stringify({ ...localStorage, ...sessionStorage })") == "{}"
    await page.reload()  # the cookie
    await expect(page.locator("#state")).to_have_attribute("data-is", "live")
    await expect(page.locator("#v-streams")).to_have_text("1")
    await page.locator("#publish [name=channel]").fill("a")
    await page.locator("#publish button").click()
    await expect(page.locator("#feed li .id")).to_have_text(["2", "1"])
    await page.locator("#publish [name=channel]").fill("b")
    watch.expected = ("401", "403")
    await page.locator("#publish button").click()
    await expect(page.locator("#published")).to_contain_text("does not allow")
    await page.locator("#leave").click()
    await expect(ask).to_be_visible()


async def test_a_token_that_may_not_see_the_numbers(page: Page, watch: Watch, launch: Launcher) -> None:
    watch.expected = ("401", "403")
    server = await launch(token_secret="a secret of more than thirty-two bytes")
    token = mint(server.bus.settings, "ann", 600, publish=["a"], subscribe=["a"])
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/stats" in request.url else None)
    await page.goto(f"{server.url}/#channels=a")
    await page.locator("#ask [name=token]").fill(token)
    await page.keyboard.press("Enter")
    await expect(page.locator("#state")).to_have_attribute("data-is", "live")
    await expect(page.locator("#database")).to_contain_text("--observe")
    await expect(page.locator("#charts")).to_be_hidden()
    await expect(page.locator("#v-rate")).to_have_text("–")
    await page.locator("#publish [name=channel]").fill("a")
    await page.locator("#publish button").click()
    await expect(page.locator("#feed li")).to_have_count(1)
    await page.goto(f"{server.url}/#channels=a,b")
    await expect(page.locator("#chips .denied")).to_have_text(re.compile("b: not allowed"))
    await expect(page.locator("#state")).to_have_text("live, 1 channel; 1 not allowed")
    await page.goto(f"{server.url}/#channels=b")
    await expect(page.locator("#state")).to_contain_text("does not allow user ann to read b")
    await page.goto(f"{server.url}/#channels=a,b")
    await page.locator("#chips button").last.click()
    await expect(page.locator("#state")).to_have_attribute("data-is", "live")
    assert len(asked) <= 3


async def test_everything_can_be_reached_with_tab(page: Page, client: Client) -> None:
    await live(page, client.url, "a")
    await client.publish("a", {}, "T")
    await expect(page.locator("#feed li")).to_have_count(1)
    reached = set()
    for _ in range(40):
        await page.keyboard.press("Tab")
        reached.add(await page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached >= {"theme", "tab-live", "channels", "filter", "pause", "clear", "SUMMARY", "TEXTAREA"}
    names = await page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')]"
        ".filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert names == []


async def test_docs_show_every_endpoint(page: Page, client: Client) -> None:
    await page.goto(f"{client.url}/docs")
    _, described = await client.get("/openapi.json")
    operations = [item for path in described["paths"].values() for item in path.values()]
    await expect(page.locator("article")).to_have_count(len(operations))
    publish_article = page.locator("article#publish")
    await expect(publish_article).to_contain_text("idempotencyKey")
    await expect(publish_article.locator("pre").filter(has_text="curl -s")).to_contain_text("/api/events/publish'")
    stream = page.locator("article#stream")
    await expect(stream.locator("table").first).to_contain_text("Last-Event-ID")
    await expect(stream).to_contain_text("curl -sN")
    for status in described["paths"]["/api/events/stream"]["get"]["responses"]:
        await expect(stream.locator("summary", has_text=status)).to_have_count(1)
    await page.set_viewport_size({"width": 360, "height": 800})
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await page.get_by_role("link", name="AsyncAPI", exact=True).get_attribute("href") == "asyncapi.json"
    assert await page.evaluate("fetch('asyncapi.json').then((a) => a.json()).then((d) => d.asyncapi)") == "3.0.0"
