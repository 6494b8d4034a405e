"""The bus under gunicorn: gunicorn -c gunicorn_conf.py gunicorn_app:bus"""

import os

from aiohttp import web

from sse_pg import Settings, create_app


async def bus() -> web.AppRunner:
    app = create_app(Settings.from_env(os.environ))
    return web.AppRunner(
        app,
        shutdown_timeout=10,
        access_log=None,
        max_line_size=65536,  # room for a thousand channel names in a URL; aiohttp's default is 8190
    )
