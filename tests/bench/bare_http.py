"""The least that publishes over HTTP with aiohttp and psycopg: one INSERT and one NOTIFY, and nothing is delivered from here.

Run by bench.idle_delay, not by hand: ``python bare_http.py PORT DATABASE_URL STATEMENT``.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

from aiohttp import web
from psycopg_pool import AsyncConnectionPool


def app(url: str, statement: str) -> web.Application:
    """Return an application that answers each POST with 201 once the statement is committed."""
    pool = AsyncConnectionPool(url, kwargs={"autocommit": True}, min_size=1, open=False)

    async def publish(request: web.Request) -> web.Response:
        event = await request.json()
        async with pool.connection() as conn:
            await conn.execute(statement)
        return web.json_response({"channel": event["channel"]}, status=201)

    async def run(_: web.Application) -> AsyncIterator[None]:
        async with pool:
            yield

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    application = web.Application()
    application.add_routes([web.post("/publish", publish), web.get("/healthz", health)])
    application.cleanup_ctx.append(run)
    return application


if __name__ == "__main__":
    web.run_app(app(*sys.argv[2:]), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
