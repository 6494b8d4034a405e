"""Tokens: verifying and making JSON Web Tokens that say who somebody is and what they may do."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jwt
import msgspec
from jwt.types import Options

from sse_pg.auth.identity import Identity, Patterns
from sse_pg.auth.jwks import Jwks
from sse_pg.auth.keys import Key, KeyFiles, secret_key
from sse_pg.config import Settings
from sse_pg.core.names import user_fault
from sse_pg.errors import SettingError, TokenRefused

#: Maximum length of a token, in characters.
MAX_TOKEN_LENGTH = 16384
#: The last second of the year 9999. Later times in a token are mistakes, and larger numbers do not fit into a float.
MAX_TIME_S = 253402300799
#: Maximum number of verified tokens that are cached, so that not every request verifies a signature.
MAX_CACHED_TOKENS = 10000
#: Time between two checks whether the key files have changed.
KEY_FILES_INTERVAL_S = 1.0


#: What PyJWT checks. The rest is checked here: PyJWT takes strings and truth values for times, and refuses an integer
#: as the user.
_OPTIONS: Options = {
    "require": ["exp", "sub"],
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_sub": False,
}


class Rights(msgspec.Struct, rename="camel"):
    """The claim ``sse_pg``: patterns of channels, and of users for whom the bearer may act."""

    publish: list[str] = []
    subscribe: list[str] = []
    act_for: list[str] = []
    observe: bool = False


class Verifier:
    """Verifies tokens."""

    def __init__(self, settings: Settings) -> None:
        """Read the keys that the settings name. Raises SettingError if they cannot be used."""
        self._audience = settings.token_audience
        self._issuer = settings.token_issuer
        self._leeway = settings.token_leeway
        self._secret = _setting_secret(settings)
        self._files = KeyFiles(settings.token_secret_file, settings.token_public_key_files)
        self._checked_files_at = time.monotonic()
        self._jwks = (
            Jwks(settings.token_jwks_url, refresh=settings.token_jwks_refresh, pause=settings.token_jwks_pause)
            if settings.token_jwks_url
            else None
        )
        self._known: OrderedDict[bytes, Identity] = OrderedDict()
        self._known_with: list[Key] | None = None

    async def close(self) -> None:
        """Cancel a fetch of keys that is under way."""
        if self._jwks is not None:
            await self._jwks.close()

    async def verify(self, token: str) -> Identity:
        """Return the identity of a token.

        Raises TokenRefused with the reason, and KeysUnavailable if there are no keys to verify it with.
        """
        now = time.monotonic()
        if now - self._checked_files_at >= KEY_FILES_INTERVAL_S:
            self._checked_files_at = now
            if self._files.refresh():
                self._known.clear()
        if self._jwks is not None:
            await self._jwks.current()
            if self._known_with is not self._jwks.keys:
                self._known.clear()
                self._known_with = self._jwks.keys
        # Not the token itself: a memory dump should contain as few tokens as possible.
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        identity = self._known.get(digest)
        if identity is not None:
            if identity.expires is not None and identity.expires <= time.time():
                del self._known[digest]
                raise TokenRefused("the token has expired")
            return identity
        identity = await self._check(token)
        while len(self._known) >= MAX_CACHED_TOKENS:
            self._known.popitem(last=False)
        self._known[digest] = identity
        return identity

    async def _check(self, token: str) -> Identity:
        if len(token) > MAX_TOKEN_LENGTH:
            raise TokenRefused(f"the token is longer than {MAX_TOKEN_LENGTH} characters")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):  # older versions of PyJWT do not catch the last one
            raise TokenRefused("it is not a JSON Web Token") from None
        if "crit" in header:
            raise TokenRefused("the token requires an unknown extension")
        try:
            return self._identity(self._claims(token, header))
        except TokenRefused:
            # The key may be newer than the cached set. `pause` bounds the fetches that bad tokens can cause.
            if self._jwks is None or self._suits(header, self._jwks.keys) or not await self._jwks.fetch():
                raise
        return self._identity(self._claims(token, header))

    def _keys(self) -> list[Key]:
        return [*self._secret, *self._files.keys, *(self._jwks.keys if self._jwks is not None else [])]

    def _suits(self, header: dict[str, Any], keys: Sequence[Key]) -> list[Key]:
        """Return the keys that can have signed a token with this header."""
        kid = header.get("kid")
        return [
            key
            for key in keys
            if header.get("alg") in key.algorithms and (kid is None or key.kid is None or kid == key.kid)
        ]

    def _claims(self, token: str, header: dict[str, Any]) -> dict[str, Any]:
        for key in self._suits(header, self._keys()):
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key.material,
                    algorithms=list(key.algorithms),
                    audience=self._audience,
                    issuer=self._issuer,
                    options=_OPTIONS,
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidAudienceError:
                raise TokenRefused("the token is not for this audience") from None
            except jwt.InvalidIssuerError:
                raise TokenRefused("the token is not from this issuer") from None
            except jwt.MissingRequiredClaimError as error:
                raise TokenRefused(f"the token has no claim {error.claim}") from None
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
                raise TokenRefused("the token cannot be read") from None
            return claims
        raise TokenRefused("no key of this server verifies the token's signature")

    def _identity(self, claims: dict[str, Any]) -> Identity:
        user = claims["sub"]
        if isinstance(user, int) and not isinstance(user, bool):
            user = str(user)  # as in a userId; the decoder has refused numbers of thousands of digits
        if not isinstance(user, str) or user_fault(user):
            raise TokenRefused("the claim sub is not a valid user id")
        try:
            rights = msgspec.convert(claims.get("sse_pg", {}), Rights)
            msgspec.json.encode(rights)  # JSON can escape half a character, which no response can contain
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise TokenRefused(f"the claim sse_pg cannot be read: {error}") from None
        expires = _time(claims, "exp") + self._leeway
        if expires <= time.time():
            raise TokenRefused("the token has expired")
        if "nbf" in claims and _time(claims, "nbf") - self._leeway > time.time():
            raise TokenRefused("the token is not valid yet")
        if "iat" in claims:
            _time(claims, "iat")  # it restricts nothing, because clocks differ
        return Identity(
            user,
            Patterns(rights.publish),
            Patterns(rights.subscribe),
            Patterns(rights.act_for),
            rights.observe,
            expires,
        )


def _time(claims: dict[str, Any], name: str) -> float:
    """Return a claim that is a time in seconds since 1970. Raises TokenRefused for anything else."""
    value = claims[name]
    # NaN fails the comparison, too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TIME_S:
        raise TokenRefused(f"the claim {name} is not a time in seconds since 1970")
    return float(value)


def mint(
    settings: Settings,
    user: str,
    ttl: float,
    *,
    publish: Sequence[str] = (),
    subscribe: Sequence[str] = (),
    act_for: Sequence[str] = (),
    observe: bool = False,
) -> str:
    """Return a token that is signed with the configured secret and valid for ``ttl`` seconds.

    Raises SettingError if no secret is configured, and ValueError for an invalid user id.
    """
    if fault := user_fault(user):
        raise ValueError(fault)
    keys = _setting_secret(settings) or KeyFiles(settings.token_secret_file, ()).keys
    if not keys:
        raise SettingError(
            "set SSE_PG_TOKEN_SECRET or SSE_PG_TOKEN_SECRET_FILE: making a token needs the secret with which the "
            "server verifies it; a public key cannot make one"
        )
    now = int(time.time())
    rights: dict[str, Any] = {"publish": list(publish), "subscribe": list(subscribe)}
    if act_for:
        rights["actFor"] = list(act_for)
    if observe:
        rights["observe"] = True
    claims: dict[str, Any] = {"sub": user, "iat": now, "exp": now + int(ttl), "sse_pg": rights}
    if settings.token_audience:
        claims["aud"] = settings.token_audience
    if settings.token_issuer:
        claims["iss"] = settings.token_issuer
    return jwt.encode(claims, keys[0].material, algorithm="HS256")


def _setting_secret(settings: Settings) -> list[Key]:
    return [secret_key(settings.token_secret)] if settings.token_secret else []
