"""Who makes a request, and whether they may: tokens, the rules in SQL, and the origin of pages that use a cookie."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web

from sse_pg.auth.authorizer import Authorizer
from sse_pg.auth.identity import OPEN, Identity
from sse_pg.auth.tokens import Verifier
from sse_pg.config import Settings
from sse_pg.errors import TokenRefused
from sse_pg.http.problem import FieldError, Problem

#: Channels that a refusal names.
NAMED = 20
_VERBS = {"publish": "publish to", "subscribe": "read"}


class Access:
    """What handlers ask before they do anything."""

    def __init__(self, settings: Settings, authorizer: Authorizer) -> None:
        """Raises SettingError where the keys cannot be used."""
        self._verifier = Verifier(settings) if settings.asks_for_tokens else None
        self._authorizer = authorizer
        self._any_host = settings.open
        self._own_host = settings.host.lower()
        self._cookie = settings.token_cookie
        self._origins = settings.allowed_origins

    @property
    def is_open(self) -> bool:
        """Whether no tokens are asked for."""
        return self._verifier is None

    async def close(self) -> None:
        """Let go of what is under way."""
        if self._verifier is not None:
            await self._verifier.close()

    async def identify(self, request: web.Request) -> Identity:
        """Return who makes a request. Raises the 401 or 403 that says why nobody can be seen in it."""
        if self._verifier is None:
            if not self._any_host:
                self._require_own_host(request)
            return OPEN
        for name in ("token", "access_token"):
            if name in request.query:
                raise _unauthorized(
                    "A token does not go into the URL, where logs and histories keep it: send the header "
                    "Authorization: Bearer, or the cookie.",
                    "invalid_request",
                )
        token = bearer(request)
        if token is None:
            token = request.cookies.get(self._cookie)
            if not token:
                raise _unauthorized("A token is needed: send it in the header Authorization: Bearer, or in the cookie.")
            self._require_own_origin(request)
        try:
            return await self._verifier.verify(token)
        except TokenRefused as refused:
            raise _unauthorized(f"The token is not accepted: {refused}.", "invalid_token", str(refused)) from None

    def user(self, identity: Identity, claimed: str | None) -> str | None:
        """Return whom a request is about; None is nobody in particular. Raises 403 where the token is for another."""
        if identity.user is None:
            return claimed
        if claimed is None or claimed == identity.user or identity.act_for.match(claimed):
            return claimed or identity.user
        raise Problem(
            403,
            f"The token is of the user {identity.user} and may not act for {claimed}.",
            errors=[FieldError("userId", claimed)],
        )

    def require_observer(self, identity: Identity) -> None:
        """Raise 403 unless the token lets its bearer look at the whole server."""
        if not identity.observe:
            raise Problem(403, "The token does not have observe, which this takes.")

    async def require(
        self, identity: Identity, user: str | None, action: str, channels: Collection[str], field: str
    ) -> None:
        """Raise the 403 that names the channels with which the user may not do this; ``field`` is where they stand.

        Raises RuleFailed where the rule gives no answer, and BusUnavailable when the database is away.
        """
        if identity is not OPEN:
            patterns = identity.publish if action == "publish" else identity.subscribe
            _refuse(
                [name for name in channels if not patterns.match(name)], "The token does not allow to", action, field
            )
        if not self._authorizer.asks_nobody:
            allowed = await self._authorizer.allowed(user, action, channels)
            whom = "It is not allowed" if user is None else f"User {user} is not allowed"
            _refuse([name for name in channels if name not in allowed], f"{whom} to", action, field)

    def _require_own_host(self, request: web.Request) -> None:
        """Refuse a name that is not this machine's where loopback is all that keeps others out.

        A page of anybody's can have its own name point to 127.0.0.1 once it is loaded (DNS rebinding): to the browser,
        what it asks for then is of its own origin. An address in the place of the name cannot be rebound.
        """
        host = request.headers.get("Host")
        if host is None:
            return  # no browser
        name = host.lower().rpartition(":")[0] if not host.endswith("]") and ":" in host else host.lower()
        if name in ("localhost", self._own_host) or name.endswith(".localhost"):
            return
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            raise Problem(
                403,
                f"This server is open and answers to names of its own machine, of which {host[:255]} is none: set up "
                "tokens (docs/authorize.md), or say with SSE_PG_OPEN=true that everybody may do everything.",
            ) from None

    def _require_own_origin(self, request: web.Request) -> None:
        """Refuse a page of somebody else's: browsers send cookies along, whoever's page makes the request.

        The Origin is what the browser says, not the page. Reads of the own origin come without one.
        """
        origin = request.headers.get("Origin")
        if origin is not None:
            allowed = origin in self._origins or _is_own(origin, request.host)
        else:
            site = request.headers.get("Sec-Fetch-Site")
            allowed = site in ("same-origin", "none") or (site is None and request.method in ("GET", "HEAD"))
        if not allowed:
            raise Problem(
                403,
                f"Pages of {origin or 'another origin'} may not use this server with a cookie; "
                "SSE_PG_CORS_ORIGINS names those that may.",
            )


def bearer(request: web.Request) -> str | None:
    """Return the token of the Authorization header, or None. Raises 401 for a header without one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    token = token.strip()
    if not token:
        raise _unauthorized("The header Authorization: Bearer has no token in it.", "invalid_request")
    return token


def _is_own(origin: str, host: str) -> bool:
    """Tell whether a page comes from where the request went. The scheme is left out: a proxy may speak TLS for us."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        return False


def _refuse(channels: list[str], who: str, action: str, field: str) -> None:
    if channels:
        names = ", ".join(channels[:NAMED]) + (f" and {len(channels) - NAMED} more" if len(channels) > NAMED else "")
        raise Problem(
            403,
            f"{who} {_VERBS[action]} {names}.",
            errors=[FieldError(field, name) for name in channels[:NAMED]],
        )


def _unauthorized(detail: str, error: str | None = None, description: str | None = None) -> Problem:
    challenge = 'Bearer realm="sse-pg"'
    if error is not None:
        challenge += f', error="{error}"'
    if description is not None:
        plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "?" for c in description)
        challenge += f', error_description="{plain}"'
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})
