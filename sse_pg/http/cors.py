"""What browsers are told: which pages of other origins may use this server, and that nothing is kept or guessed at."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sse_pg.http.problem import Problem

#: Seconds that a browser remembers the answer to a preflight.
MAX_AGE = 600
REQUEST_HEADERS = "Authorization, Content-Type, Last-Event-ID, Cache-Control"
EXPOSED_HEADERS = "Link, Retry-After, WWW-Authenticate"


class Cors:
    """The headers of every answer, streams and errors included, and the answers to preflights."""

    def __init__(self, origins: frozenset[str]) -> None:
        self._origins = origins

    async def headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Complete the headers of an answer: a handler of the signal on_response_prepare."""
        headers = response.headers
        headers.setdefault("Cache-Control", "no-store")
        headers["X-Content-Type-Options"] = "nosniff"
        if not self._origins:
            return
        # A cache that keeps an answer to one origin must not give it to another.
        headers.add("Vary", "Origin")
        origin = request.headers.get("Origin")
        if origin in self._origins:
            headers["Access-Control-Allow-Origin"] = str(origin)
            headers["Access-Control-Allow-Credentials"] = "true"
            headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS

    @property
    def preflights(self) -> Middleware:
        """The middleware that answers what browsers ask before they let a page make a request."""
        origins = self._origins

        @web.middleware
        async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
            origin = request.headers.get("Origin")
            fault = request.match_info.http_exception
            if (
                request.method != "OPTIONS"
                or origin is None
                or "Access-Control-Request-Method" not in request.headers
                or not isinstance(fault, web.HTTPMethodNotAllowed)
            ):
                return await handler(request)
            if origin not in origins:
                raise Problem(
                    403, f"Pages of {origin} may not use this server; SSE_PG_CORS_ORIGINS names those that may."
                )
            return web.Response(
                status=204,
                headers={
                    "Access-Control-Allow-Methods": ", ".join(sorted(fault.allowed_methods)),
                    "Access-Control-Allow-Headers": REQUEST_HEADERS,
                    "Access-Control-Max-Age": str(MAX_AGE),
                },
            )

        return answer
