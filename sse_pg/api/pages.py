"""Pages and modules for browsers: the dashboard, /docs, /sse-pg.js, and the descriptions for people and programs.

All are files in sse_pg/static and none is generated at run time. So the Content-Security-Policy allows nothing inline
and no other host.
"""

from __future__ import annotations

from hashlib import sha256
from importlib import resources

from aiohttp import ETag, web
from aiohttp.typedefs import Handler

from sse_pg.bus import Bus

SECURITY_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
CONTENT_TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "json": "application/json",
    "md": "text/markdown",
    "svg": "image/svg+xml",
    "ts": "text/plain",
    "txt": "text/plain",
}
#: Files with a path of their own; the others are served under /static/.
PATHS = {
    "/": "dashboard.html",
    "/docs": "docs.html",
    "/sse-pg.js": "sse-pg.js",
    "/sse-pg.d.ts": "sse-pg.d.ts",
    "/openapi.json": "openapi.json",
    "/asyncapi.json": "asyncapi.json",
    "/llms.txt": "llms.txt",
    "/contract.md": "contract.md",
}


class PagesApi:
    """Serves the files, each with an ETag with which browsers revalidate it."""

    def __init__(self, bus: Bus) -> None:
        self._files = {
            file.name: (file.read_bytes(), CONTENT_TYPES[file.name.rpartition(".")[2]])
            for file in (resources.files("sse_pg") / "static").iterdir()
            if file.name.rpartition(".")[2] in CONTENT_TYPES
            and not (bus.settings.dashboard == "off" and file.name.startswith("dashboard"))
        }
        self._tags = {name: sha256(body).hexdigest()[:20] for name, (body, _) in self._files.items()}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        named = [web.get(path, self._serving(file)) for path, file in PATHS.items()]
        return [*named, web.get("/static/{name}", self.static)]

    def _serving(self, name: str) -> Handler:
        async def serve(request: web.Request) -> web.StreamResponse:
            return self._file(request, name)

        return serve

    async def static(self, request: web.Request) -> web.StreamResponse:
        """Serve a file that a page loads."""
        return self._file(request, request.match_info["name"])

    def _file(self, request: web.Request, name: str) -> web.StreamResponse:
        if name not in self._files:
            raise web.HTTPNotFound
        body, content_type = self._files[name]
        known = request.if_none_match or ()
        response = web.Response()
        if any(tag.value in (self._tags[name], "*") for tag in known):
            response.set_status(304)
        else:
            response.body = body
            response.content_type = content_type
            if content_type.startswith("text/"):
                response.charset = "utf-8"
        response.etag = ETag(self._tags[name])
        response.headers["Cache-Control"] = "no-cache"  # a browser may store it, but has to revalidate it
        response.headers["Content-Security-Policy"] = SECURITY_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response
