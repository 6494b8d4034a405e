"""The aiohttp application."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

from sse_pg.api.finish import FinishApi
from sse_pg.api.health import HealthApi
from sse_pg.api.history import HistoryApi
from sse_pg.api.metrics import MetricsApi
from sse_pg.api.open_streams import OpenStreamsApi
from sse_pg.api.pages import PagesApi
from sse_pg.api.publish import PublishApi
from sse_pg.api.rights import RightsApi
from sse_pg.api.session import SessionApi
from sse_pg.api.stats import StatsApi
from sse_pg.api.stream import StreamApi
from sse_pg.api.subscriptions import SubscriptionApi
from sse_pg.bus import Bus
from sse_pg.config import Settings
from sse_pg.http.cors import Cors
from sse_pg.http.problem import REFUSED_REQUESTS, problems

BUS = web.AppKey("BUS", Bus)


def create_app(settings: Settings) -> web.Application:
    """Return the application for a migrated database. It can be mounted in another application.

    When it shuts down, its streams end, spread over the setting ``drain`` (seconds). The timeout of its runner
    (aiohttp's ``shutdown_timeout``) begins after that.
    """
    cors = Cors(settings.allowed_origins)
    app = web.Application(middlewares=[_closing, problems, cors.preflights])
    app.on_response_prepare.append(cors.headers)
    bus = Bus(settings)
    app[BUS] = bus
    app[REFUSED_REQUESTS] = bus.refused_requests
    for api in (
        *(PublishApi, FinishApi, SubscriptionApi, StreamApi, HistoryApi, SessionApi),
        *(HealthApi, OpenStreamsApi, RightsApi, StatsApi, MetricsApi, PagesApi),
    ):
        app.add_routes(api(bus).routes())
    app.on_shutdown.append(_end_streams)
    app.cleanup_ctx.append(_run_bus)
    return app


@web.middleware
async def _closing(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Close connections while the server stops: otherwise a proxy sends a request on one that is being closed."""
    response = await handler(request)
    if request.app[BUS].leaving and not response.prepared:
        response.force_close()
    return response


async def _run_bus(app: web.Application) -> AsyncIterator[None]:
    await app[BUS].start()
    yield
    await app[BUS].stop()


async def _end_streams(app: web.Application) -> None:
    """End the streams unless that was done: a runner other than ours would wait for them until its timeout."""
    if not app[BUS].draining:
        await app[BUS].end_streams(app[BUS].settings.drain)
