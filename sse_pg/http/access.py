"""Who makes a request and what they may do: tokens, the access rule in SQL, the origin of pages that use a cookie."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from aiohttp import web

from sse_pg.auth.authorizer import Authorizer
from sse_pg.auth.identity import OPEN, Identity
from sse_pg.auth.tokens import Verifier
from sse_pg.config import Settings
from sse_pg.errors import TokenRefused
from sse_pg.http.origin import is_own, normal
from sse_pg.http.problem import FieldError, Problem

#: Maximum number of channels that a refusal names.
MAX_NAMED_CHANNELS = 20
_VERBS = {"publish": "publish to", "subscribe": "read"}


class Access:
    """Identifies requests and checks their rights. Every handler asks it first."""

    def __init__(self, settings: Settings, authorizer: Authorizer) -> None:
        """Raises SettingError if the keys cannot be used."""
        self._verifier = Verifier(settings) if settings.requires_tokens else None
        self._authorizer = authorizer
        self._any_host = settings.open
        self._own_host = settings.host.lower()
        self._cookie = settings.token_cookie
        self._origins = frozenset(map(normal, settings.allowed_origins))

    @property
    def is_open(self) -> bool:
        """Whether the server requires no tokens."""
        return self._verifier is None

    async def close(self) -> None:
        """Cancel a fetch of keys that is under way."""
        if self._verifier is not None:
            await self._verifier.close()

    async def identify(self, request: web.Request) -> Identity:
        """Return who makes a request. Raises the 401 or 403 that says why the request identifies nobody."""
        if self._verifier is None:
            if not self._any_host:
                self._require_own_host(request)
            return OPEN
        for name in ("token", "access_token"):
            if name in request.query:
                raise _unauthorized(
                    "Tokens are not accepted in the URL, because logs and browser histories keep URLs: "
                    "send the header Authorization: Bearer, or the cookie.",
                    "invalid_request",
                )
        token = bearer(request)
        if token is None:
            token = request.cookies.get(self._cookie)
            if not token:
                raise _unauthorized("A token is required: send the header Authorization: Bearer, or the cookie.")
            self._require_own_origin(request)
        try:
            return await self._verifier.verify(token)
        except TokenRefused as refused:
            raise _unauthorized(f"The token was refused: {refused}.", "invalid_token", str(refused)) from None

    def user(self, identity: Identity, claimed: str | None) -> str | None:
        """Return the user that a request is about, or None. Raises 403 if the token may not act for that user."""
        if identity.user is None:
            return claimed
        if claimed is None or claimed == identity.user or identity.act_for.match(claimed):
            return claimed or identity.user
        raise Problem(
            403,
            f"The token belongs to user {identity.user} and may not act for {claimed}.",
            errors=[FieldError("userId", claimed)],
        )

    def require_observer(self, identity: Identity) -> None:
        """Raise 403 unless the token lets its bearer see the state of the whole server."""
        if not identity.observe:
            raise Problem(403, "This needs a token with the right observe.")

    def require_any(self, identity: Identity, action: str) -> None:
        """Raise a 403 if the token allows this on no channel at all: that needs no look at the body."""
        if not (identity.publish if action == "publish" else identity.subscribe).texts:
            raise Problem(403, f"The token does not allow user {identity.user} to {_VERBS[action]} any channel.")

    async def require(
        self, identity: Identity, user: str | None, action: str, channels: Collection[str], field: str
    ) -> None:
        """Raise a 403 that names the channels on which the user may not do this; ``field`` is the field they are in.

        Raises RuleFailed if the access rule gives no answer, and BusUnavailable if the database is unavailable.
        """
        if identity is not OPEN:
            patterns = identity.publish if action == "publish" else identity.subscribe
            _require_none(
                [name for name in channels if not patterns.match(name)], "token", identity.user, action, field
            )
        if not self._authorizer.asks_nobody:
            allowed = await self._authorizer.allowed(user, action, channels)
            _require_none([name for name in channels if name not in allowed], "access rule", user, action, field)

    async def readable(self, identity: Identity, user: str | None, channels: Collection[str]) -> frozenset[str]:
        """Return those of the channels that the user may read. If there is none, raise what ``require`` raises."""
        by_token = frozenset(channels if identity is OPEN else filter(identity.subscribe.match, channels))
        if not by_token:
            _require_none(sorted(channels), "token", identity.user, "subscribe", "channels")
        if self._authorizer.asks_nobody:
            return by_token
        allowed = await self._authorizer.allowed(user, "subscribe", by_token)
        if not allowed:
            _require_none(sorted(by_token), "access rule", user, "subscribe", "channels")
        return allowed

    def _require_own_host(self, request: web.Request) -> None:
        """Refuse a Host that is not a name of this machine, if loopback is all that keeps others out.

        Any page can make its own name point to 127.0.0.1 after it was loaded (DNS rebinding). The browser then treats
        requests to this server as requests to the page's own origin. An IP address instead of a name cannot be rebound.
        """
        host = request.headers.get("Host")
        if host is None:
            return  # browsers always send it
        name = host.lower().rpartition(":")[0] if not host.endswith("]") and ":" in host else host.lower()
        if name in ("localhost", self._own_host) or name.endswith(".localhost"):
            return
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            raise Problem(
                403,
                f"This server requires no tokens, so it accepts only names of its own machine, and {host[:255]} is not "
                "one. Set up tokens (docs/authorize.md), or let everybody do everything with SSE_PG_OPEN=true.",
            ) from None

    def _require_own_origin(self, request: web.Request) -> None:
        """Refuse pages of other origins: browsers send cookies along, whichever page makes the request.

        The browser sets the Origin header; the page cannot. Reads from the own origin come without it.
        """
        origin = request.headers.get("Origin")
        if origin is not None:
            allowed = normal(origin) in self._origins or is_own(origin, request.host)
        else:
            site = request.headers.get("Sec-Fetch-Site")
            allowed = site in ("same-origin", "none") or (site is None and request.method in ("GET", "HEAD"))
        if not allowed:
            raise Problem(
                403,
                f"Pages of {origin or 'another origin'} may not use this server with a cookie; "
                "SSE_PG_CORS_ORIGINS lists the origins that may.",
            )


def bearer(request: web.Request) -> str | None:
    """Return the token of the Authorization header, or None. Raises 401 for a header without one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    token = token.strip()
    if not token:
        raise _unauthorized("The header Authorization: Bearer contains no token.", "invalid_request")
    return token


def _require_none(refused: list[str], by: str, user: str | None, action: str, field: str) -> None:
    if refused:
        named = refused[:MAX_NAMED_CHANNELS]
        others = len(refused) - len(named)
        names = ", ".join(named) + (f" and {others} more" if others else "")
        whom = "clients without a token" if user is None else f"user {user}"
        raise Problem(
            403,
            f"The {by} does not allow {whom} to {_VERBS[action]} {names}.",
            errors=[FieldError(field, name) for name in named],
        )


def _unauthorized(detail: str, error: str | None = None, description: str | None = None) -> Problem:
    challenge = 'Bearer realm="sse-pg"'
    if error is not None:
        challenge += f', error="{error}"'
    if description is not None:
        plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "?" for c in description)
        challenge += f', error_description="{plain}"'
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})
