"""gunicorn's settings for gunicorn_app.py."""

import os

from sse_pg.db.migrate import migrate

worker_class = "aiohttp.GunicornWebWorker"
workers = 2
# More than the sum of SSE_PG_DRAIN_SECONDS (5) and the runner's shutdown_timeout (10).
graceful_timeout = 30


def on_starting(server):
    migrate(os.environ["DATABASE_URL"])
