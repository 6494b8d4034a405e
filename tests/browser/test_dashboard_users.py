"""Who uses the dashboard, what others may read, and what is copied from it."""

from __future__ import annotations

import asyncio
import json
import shlex

import psycopg
import pytest
from click.testing import CliRunner
from playwright.async_api import Page, expect
from support.client import Client
from support.server import Launcher

from browser.watch import Watch
from sse_pg.auth.tokens import mint
from sse_pg.cli.main import cli

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]
expect.set_options(timeout=20000)

SECRET = "a secret of more than thirty-two bytes"
RULE = """
    CREATE OR REPLACE FUNCTION sse_pg.authorize(user_id text, action text, channel text) RETURNS boolean
    LANGUAGE sql STABLE AS $$ SELECT channel = 'news' AND action = 'subscribe' OR channel = 'order:' || user_id $$
"""


async def test_the_command_that_the_sign_in_shows_makes_a_token(page: Page, watch: Watch, launch: Launcher) -> None:
    watch.expected = ("401",)
    server = await launch(token_secret=SECRET)
    await page.goto(f"{server.url}/#channels=a")
    command = await page.locator("#ask-command").inner_text()
    program, *arguments = shlex.split(command)
    assert program == "sse-pg"
    made = CliRunner().invoke(cli, arguments, env={"SSE_PG_TOKEN_SECRET": SECRET})
    assert made.exit_code == 0, made.output
    await expect(page.locator("#who")).to_be_hidden()
    await page.locator("#ask [name=token]").fill(made.output.strip())
    await page.keyboard.press("Enter")
    await expect(page.locator("#state")).to_have_attribute("data-is", "live")
    await expect(page.locator("#v-streams")).to_have_text("1")
    await expect(page.locator("#who")).to_have_text("me")
    await page.locator("#who").click()
    await expect(page.locator("#about-who")).to_contain_text("User me")
    await expect(page.locator("#who-rights dd")).to_contain_text(["*", "nothing", "nothing", "yes", "20"])
    await page.keyboard.press("Escape")
    await page.reload()  # the cookie
    await expect(page.locator("#who")).to_have_text("me")


async def test_what_may_user_42_read(page: Page, launch: Launcher, db: psycopg.Connection) -> None:
    db.execute(RULE)
    server = await launch()
    async with Client(server.url) as client:
        await ask(page, client)


async def ask(page: Page, client: Client) -> None:
    await client.post("/api/events/channels/subscribe", {"userId": "42", "channel": "news"})
    await page.goto(client.url)
    await page.locator("#ask-rights [name=user]").fill("42")
    await page.locator("#ask-rights [name=channels]").fill("order:42, order:43 news")
    await page.keyboard.press("Enter")
    await expect(page.locator("#rights-note")).to_contain_text("User 42 may read 2 of 3 channels.")
    shown = [
        await each.all_inner_texts() for each in [page.locator(f"#t-rights tr:nth-child({n}) td") for n in (1, 2, 3)]
    ]
    assert shown == [["order:42", "yes", "yes", "no"], ["order:43", "no", "no", "no"], ["news", "yes", "no", "yes"]]
    async with client.stream(userId="42"):
        await page.get_by_role("button", name="What may user 42 read?").click()
        await expect(page.locator("#rights-note")).to_contain_text("User 42 may read 1 of 1 channel.")
    await expect(page.locator("#t-rights tbody td")).to_have_text(["news", "yes", "no", "yes"])


async def test_a_question_that_is_refused_is_told(page: Page, watch: Watch, client: Client) -> None:
    watch.expected = ("422",)
    await page.goto(client.url)
    await page.locator("#ask-rights [name=user]").fill("42")
    await page.locator("#ask-rights [name=channels]").fill("x" * 256)
    await page.keyboard.press("Enter")
    await expect(page.locator("#rights-note.bad")).to_contain_text("255")
    await expect(page.locator("#t-rights")).to_be_hidden()


async def test_what_is_copied_works(page: Page, client: Client) -> None:
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await client.publish("it's/odd", {"n": 1}, "FIRST")
    await page.goto(client.url)
    await expect(page.locator("#feed li")).to_contain_text(["Live from here", "FIRST"])
    await page.locator("#copy").click()
    copied = []
    for button in await page.locator("#snippets button").all():
        await button.click()
        await expect(button).to_have_text("Copied")
        copied.append(await page.evaluate("navigator.clipboard.readText()"))
    await page.keyboard.press("Escape")
    curl, code = copied
    seen: asyncio.Queue[str] = asyncio.Queue()
    page.on("console", lambda message: seen.put_nowait(message.text))
    process = await asyncio.create_subprocess_exec(
        *shlex.split(curl), "-s", "--noproxy", "*", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while b"sse-pg.hello" not in await process.stdout.readline():
                pass
            await page.evaluate(
                f"() => {{ {code}\nreturn new Promise((opened) => {{ source.onopen = opened }}).then(() => 1) }}"
            )
            number = await client.publish("it's/odd", {"n": 2}, "FIRST")
            while f"id: {number}" not in (await process.stdout.readline()).decode():
                pass
            assert (await seen.get()).startswith(f"{{id: {number}, channel: it's/odd, eventType: FIRST")
    finally:
        process.kill()
        await process.wait()
    await page.locator("#tab-history").click()
    await expect(page.locator("#pages li")).to_have_count(2)
    await page.locator("#copy").click()
    command = shlex.split(await page.locator("#snippets pre").inner_text())
    process = await asyncio.create_subprocess_exec(*command, "-s", "--noproxy", "*", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert [each["id"] for each in json.loads(out)["events"]] == [2, 1]


async def test_with_tokens_the_command_has_a_place_for_one(page: Page, watch: Watch, launch: Launcher) -> None:
    watch.expected = ("401",)
    server = await launch(token_secret=SECRET)
    token = mint(server.bus.settings, "ann", 600, subscribe=["*"], observe=True)
    await page.goto(f"{server.url}/#channels=a,b")
    await page.locator("#ask [name=token]").fill(token)
    await page.keyboard.press("Enter")
    await expect(page.locator("#state")).to_have_attribute("data-is", "live")
    await page.locator("#copy").click()
    curl = await page.locator("#snippets pre").first.inner_text()
    url = f"{server.url}/api/events/stream?channels=a,b&envelope=true"
    assert curl == f"curl -N -H \"Authorization: Bearer $TOKEN\" '{url}'"
    assert token not in await page.locator("body").inner_text()
