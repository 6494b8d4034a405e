"""/api/events/session: turns a token into a cookie that scripts cannot read, and says whose token it is."""

from __future__ import annotations

import time

from aiohttp import web

from sse_pg.auth.identity import Identity
from sse_pg.bus import Bus
from sse_pg.http.access import bearer
from sse_pg.http.problem import Problem, json_response
from sse_pg.http.query import require_known


class SessionApi:
    """Sets, shows and deletes the cookie. Pages need it, because an EventSource cannot send an Authorization header."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        path = "/api/events/session"
        return [web.get(path, self.show), web.post(path, self.begin), web.delete(path, self.end)]

    async def show(self, request: web.Request) -> web.Response:
        """Return whose token it is and what it allows. 401 without a token, unless the server requires none."""
        identity = await self._bus.access.identify(request)
        require_known(request.query)
        return json_response(_shown(identity))

    async def begin(self, request: web.Request) -> web.Response:
        """Set the cookie to the token of the Authorization header."""
        access = self._bus.access
        token = None if access.is_open else bearer(request)
        if token is None and not access.is_open:
            raise Problem(
                401,
                "Send the token in the header Authorization: Bearer; the response sets the cookie.",
                headers={"WWW-Authenticate": 'Bearer realm="sse-pg"'},
            )
        identity = await access.identify(request)
        require_known(request.query)
        response = json_response(_shown(identity))
        if token is not None and identity.expires is not None:
            response.set_cookie(
                self._bus.settings.token_cookie,
                token,
                max_age=max(0, int(identity.expires - time.time())),
                path=_path(request),
                httponly=True,
                secure=_is_secure(request),
                samesite="Strict",
            )
        return response

    async def end(self, request: web.Request) -> web.Response:
        """Delete the cookie. Open streams stay open until their token expires."""
        require_known(request.query)
        response = json_response({"ended": True})
        response.del_cookie(
            self._bus.settings.token_cookie,
            path=_path(request),
            httponly=True,
            secure=_is_secure(request),
            samesite="Strict",
        )
        return response


def _shown(identity: Identity) -> dict[str, object]:
    expires = identity.expires
    return {
        "open": identity.user is None,
        "userId": identity.user,
        "publish": identity.publish.texts,
        "subscribe": identity.subscribe.texts,
        "actFor": identity.act_for.texts,
        "observe": identity.observe,
        "expiresIn": None if expires is None else max(0, int(expires - time.time())),
    }


def _path(request: web.Request) -> str:
    """Return the path at which this application is mounted: browsers send the cookie nowhere else on the host."""
    return request.path.removesuffix("api/events/session") or "/"


def _is_secure(request: web.Request) -> bool:
    """Tell whether the browser uses TLS. A client that forges the header affects only its own cookie."""
    return request.secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https"
