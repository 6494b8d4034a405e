"""The numbers and charts of the dashboard: what is not known is not shown as zero, nor as if it were of now."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, Route, expect
from support.client import Client

from browser.watch import Watch

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]
expect.set_options(timeout=20000)

STATS = "**/api/events/stats?*"


@pytest.mark.parametrize("how", ["the server has no database", "the server is not reached"])
async def test_numbers_that_are_not_of_now_are_grey(page: Page, watch: Watch, client: Client, how: str) -> None:
    watch.expected = ("503", "net::ERR_")
    refused = 0

    async def refuse(route: Route) -> None:
        nonlocal refused
        refused += 1
        if how == "the server is not reached":
            await route.abort()
        else:
            await route.fulfill(status=503, json={"detail": "The database is unavailable."})

    await page.goto(f"{client.url}/#channels=a")
    await expect(page.locator("#v-streams")).to_have_text("1")
    await expect(page.locator("#c-events path.line")).to_have_count(1)
    await expect(page.locator("#c-events rect.hole")).to_have_count(1)  # before the server started
    opacity = "getComputedStyle(document.querySelector('#v-streams').parentElement).opacity"
    assert await page.evaluate(opacity) == "1"
    await page.route(STATS, refuse)
    await expect(page.locator("#stale")).to_contain_text(
        "The database is unavailable." if "database" in how else "The server does not respond."
    )
    await expect(page.locator("#stale")).to_contain_text("UTC")
    assert float(await page.evaluate(opacity)) < 0.6
    await expect(page.locator("#c-events rect.hole")).to_have_count(2)
    assert refused >= 2
    await page.unroute(STATS)
    await expect(page.locator("#stale")).to_have_text("")
    assert await page.evaluate(opacity) == "1"
    # A server that was only not reached has counted meanwhile. One without a database does not know what was published.
    await expect(page.locator("#c-events rect.hole")).to_have_count(1 if "reached" in how else 2)


async def test_a_chart_has_a_hole_where_nothing_is_known(page: Page, client: Client) -> None:
    await page.goto(f"{client.url}/#channels=a")
    drawn = await page.evaluate("""async () => {
        const { Charts } = await import('/static/dashboard-chart.js')
        const charts = new Charts()
        const second = (at, events) => ({ at, events, delayP50Ms: 1, delayP99Ms: 2 })
        charts.add([second(1000, 5), second(1001, 7)], 1000, 1010)
        charts.add([second(1025, 5), second(1029, 7)], 1020, 1030)
        charts.draw(1030)
        const holes = [...document.querySelectorAll('#c-events rect.hole')].map((each) => each.dataset.seconds)
        const lines = (kind) => document.querySelector(kind).getAttribute('d').split('M').length - 1
        charts.draw(1100)
        const later = [...document.querySelectorAll('#c-events rect.hole')].map((each) => each.dataset.seconds)
        const counts = [lines('#c-events .line'), lines('#c-delay .line')]
        return [holes, ...counts, later, charts.lately(1030), charts.lately(1100)]
    }""")
    holes, lines, delays, later, lately, nothing = drawn
    assert holes == ["271", "10"]
    assert (lines, delays) == (2, 2)
    assert later == ["201", "10", "70"]
    assert lately == {"rate": 1.2, "p50": 1, "p99": 2}
    assert nothing == {"rate": None, "p50": None, "p99": None}


async def test_each_term_can_be_opened_without_a_mouse(page: Page, client: Client) -> None:
    await page.goto(client.url)
    terms = page.locator(".vitals dt button")
    assert await page.locator(".vitals [title]").count() == 0
    assert await terms.all_inner_texts() == ["Delay", "Not yet read", "Reads the log", "Uncommitted"]
    for term in await terms.all():
        about = page.locator(f"#{await term.get_attribute('popovertarget')}")
        await expect(about).to_be_hidden()
        await term.focus()
        await page.keyboard.press("Enter")
        await expect(about).to_be_visible()
        box = await about.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1280
        await page.keyboard.press("Escape")
        await expect(about).to_be_hidden()
    body = await page.locator("body").inner_text()
    assert "asleep" not in body
    assert "bell" not in body.lower()


async def test_a_phone_shows_events_above_the_fold(page: Page, client: Client) -> None:
    await client.publish("orders", {"item": "lamp"}, "PLACED")
    await page.set_viewport_size({"width": 360, "height": 640})
    await page.goto(client.url)
    row = page.locator("#feed li").last
    await expect(row).to_contain_text("PLACED")
    box, chart = await row.bounding_box(), await page.locator("#charts").bounding_box()
    assert box is not None
    assert chart is not None
    assert box["y"] + box["height"] < 500
    assert chart["y"] > box["y"]
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
