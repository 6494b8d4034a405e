"""More streams on one page than HTTP/1.1 has connections, through nginx."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser
from support.proxies import proxy
from support.server import Launcher

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("browser")]

OPEN = """async (count) => {
  const opened = Array.from({ length: count }, () => new Promise((resolve) => {
    const source = new EventSource('/api/events/stream?channels=a')
    source.addEventListener('sse-pg.hello', () => resolve(source))
  }))
  await Promise.all(opened)
  const answer = await fetch('/healthz')
  return [answer.status, performance.getEntriesByType('navigation')[0].nextHopProtocol]
}"""


async def test_twelve_streams_on_a_page(browser: Browser, launch: Launcher, tmp_path: Path) -> None:
    server = await launch()
    async with proxy("nginx", tmp_path, server.url) as url:
        context = await browser.new_context(ignore_https_errors=True)
        page = await context.new_page()
        await page.goto(f"{url}/docs")
        assert await page.evaluate(OPEN, 12) == [200, "h2"]
        assert len(server.bus.hub.streams) == 12
        await context.close()
