"""Headers for browsers: which other origins may use this server, no caching, no guessing of content types."""

from __future__ import annotations

import re

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sse_pg.http.origin import normal
from sse_pg.http.problem import Problem

#: Time for which a browser may cache the response to a preflight.
PREFLIGHT_MAX_AGE_S = 600
REQUEST_HEADERS = "Authorization, Content-Type, Last-Event-ID, Cache-Control, Idempotency-Key, traceparent, tracestate"
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
EXPOSED_HEADERS = "Link, Retry-After, WWW-Authenticate"


class Cors:
    """The headers of every response, streams and errors included, and the responses to preflights."""

    def __init__(self, origins: frozenset[str]) -> None:
        self._origins = frozenset(map(normal, origins))

    async def headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Complete the headers of a response; a handler for the signal on_response_prepare."""
        headers = response.headers
        headers.setdefault("Cache-Control", "no-store")
        headers["X-Content-Type-Options"] = "nosniff"
        if not self._origins:
            return
        # A cache must not give the response for one origin to another.
        headers.add("Vary", "Origin")
        origin = request.headers.get("Origin")
        if origin is not None and normal(origin) in self._origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
            headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS

    @property
    def preflights(self) -> Middleware:
        """The middleware for preflights, which browsers send before they let a page make a request."""
        origins = self._origins

        @web.middleware
        async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
            origin = request.headers.get("Origin")
            fault = request.match_info.http_exception
            if (
                request.method != "OPTIONS"
                or origin is None
                or "Access-Control-Request-Method" not in request.headers
                or not isinstance(fault, web.HTTPMethodNotAllowed)
            ):
                return await handler(request)
            if normal(origin) not in origins:
                raise Problem(
                    403, f"Pages of {origin} may not use this server; SSE_PG_CORS_ORIGINS lists the origins that may."
                )
            return web.Response(
                status=204,
                headers={
                    "Access-Control-Allow-Methods": ", ".join(sorted(fault.allowed_methods)),
                    "Access-Control-Allow-Headers": _request_headers(request),
                    "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
                },
            )

        return preflight


def _request_headers(request: web.Request) -> str:
    """Return the headers that a page may send: those it asks for, since its origin is one that the operator trusts.

    Rejected: a setting with their names. It would protect nothing, and tracing or a proxy would need an entry.
    """
    asked = request.headers.get("Access-Control-Request-Headers", "")
    named = [name.strip() for name in asked.split(",")]
    known = {name.lower() for name in REQUEST_HEADERS.split(", ")}
    others = [name for name in named if _HEADER_NAME.fullmatch(name) and name.lower() not in known]
    return ", ".join([REQUEST_HEADERS, *others])
