"""GET /openapi.json: the description of the HTTP interface."""

from __future__ import annotations

from importlib import resources

from aiohttp import web


def openapi_routes() -> list[web.RouteDef]:
    """Return the route of the description."""
    return [web.get("/openapi.json", _openapi)]


async def _openapi(_request: web.Request) -> web.Response:
    body = (resources.files("sse_pg") / "openapi.json").read_bytes()
    return web.Response(body=body, content_type="application/json")
