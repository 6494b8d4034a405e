"""An aiohttp application with the bus under /bus: python mount_aiohttp.py"""

import os

from aiohttp import web

from sse_pg import Settings, create_app


async def shop(request: web.Request) -> web.Response:
    return web.Response(text="the shop")


def make_app() -> web.Application:
    app = web.Application()
    app.router.add_get("/", shop)
    app.add_subapp("/bus", create_app(Settings.from_env(os.environ)))
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
