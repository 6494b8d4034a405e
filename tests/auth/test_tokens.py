"""Tokens: every kind of key, what is refused and why, rotation without a restart."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import test_utils, web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import get_default_algorithms
from support.tokens import PRIVATE, SECRET, pem, token

from sse_pg.auth import tokens
from sse_pg.auth.identity import Identity
from sse_pg.auth.tokens import Verifier, mint
from sse_pg.config import Settings
from sse_pg.errors import KeysUnavailable, SettingError, TokenRefused


def verifier(**settings: Any) -> Verifier:
    return Verifier(Settings(**settings))


async def refused(judge: Verifier, text: str) -> str:
    with pytest.raises(TokenRefused) as caught:
        await judge.verify(text)
    assert text not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def public(tmp_path: Path) -> str:
    """A setting: two files, one of them with two keys."""
    (tmp_path / "one.pem").write_text(pem(PRIVATE["RS256"]) + pem(PRIVATE["ES256"]))
    (tmp_path / "two.pem").write_text(pem(PRIVATE["EdDSA"]))
    return f"{tmp_path / 'one.pem'}, {tmp_path / 'two.pem'}"


# ---------------------------------------------------------------- who it is


async def test_a_secret() -> None:
    identity = await verifier(token_secret=SECRET).verify(
        token(publish=["a"], subscribe=["b.*"], actFor=["7"], observe=True)
    )
    assert isinstance(identity, Identity)
    assert (identity.user, identity.observe) == ("42", True)
    assert identity.publish.match("a")
    assert not identity.publish.match("b.1")
    assert identity.subscribe.match("b.1")
    assert identity.act_for.match("7")


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_public_keys(public: str, algorithm: str) -> None:
    judge = verifier(token_public_keys=public)
    assert (await judge.verify(token(key=PRIVATE[algorithm], algorithm=algorithm))).user == "42"


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
async def test_the_other_algorithms_of_rsa(public: str, algorithm: str) -> None:
    judge = verifier(token_public_keys=public)
    assert (await judge.verify(token(key=PRIVATE["RS256"], algorithm=algorithm))).user == "42"


async def test_without_the_claim_nothing_is_allowed() -> None:
    identity = await verifier(token_secret=SECRET).verify(token(claims={"sse_pg": None}))
    assert not identity.subscribe.match("a")
    assert not identity.publish.match("a")
    assert not identity.observe


async def test_a_made_token_is_accepted() -> None:
    settings = Settings(token_secret=SECRET, token_audience="bus", token_issuer="us")
    made = mint(settings, "7", 60, publish=["a"], subscribe=["b"], act_for=["8"], observe=True)
    identity = await Verifier(settings).verify(made)
    assert (identity.user, identity.publish.texts, identity.act_for.texts) == ("7", ("a",), ("8",))


def test_no_token_is_made_without_a_secret(public: str) -> None:
    with pytest.raises(SettingError, match="SSE_PG_TOKEN_SECRET"):
        mint(Settings(token_public_keys=public), "7", 60)
    with pytest.raises(ValueError, match="control characters"):
        mint(Settings(token_secret=SECRET), "a\nb", 60)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"ttl": -1}, "expired"),
        ({"claims": {"exp": None}}, "no claim exp"),
        *(
            ({"claims": {name: value}}, f"claim {name} is not a time")
            for name in ("exp", "nbf", "iat")
            for value in (
                *("soon", "9" * 400, "4000000000", "Infinity", True, [], {}),
                *(10**400, -1, -(10**400), 253402300800, float("inf"), float("-inf"), float("nan")),
            )
        ),
        ({"claims": {"nbf": [None]}}, "claim nbf is not a time"),
        ({"claims": {"nbf": 4_000_000_000}}, "not valid yet"),
        ({"claims": {"aud": "others"}}, "not for this audience"),
        ({"user": None}, "no claim sub"),
        ({"user": ""}, "not a valid user id|no claim sub"),
        ({"user": "a\nb"}, "not a valid user id"),
        ({"user": "x" * 256}, "not a valid user id"),
        ({"key": "another secret, also of more than 32 bytes"}, "no key of this server"),
        ({"publish": "orders"}, "sse_pg"),
        ({"publish": [1]}, "sse_pg"),
        ({"observe": "yes"}, "sse_pg"),
        ({"claims": {"sse_pg": ["a"]}}, "sse_pg"),
        ({"subscribe": ["\ud800*"]}, "sse_pg"),
        ({"user": "u", "claims": {"fill": "x" * 20000}}, "longer than"),
    ],
)
async def test_refused(made: dict[str, Any], reason: str) -> None:
    said = await refused(verifier(token_secret=SECRET), token(**made))
    assert re.search(reason, said), said


@pytest.mark.parametrize("text", ["x", "a.b.c", "..", "é.é.é", "\ud800", "e30.e30.", "a" * 20000])
async def test_what_is_no_token(text: str) -> None:
    await refused(verifier(token_secret=SECRET), text)


async def test_none_is_no_algorithm() -> None:
    unsigned = jwt.encode({"sub": "42", "exp": 4_000_000_000}, None, algorithm="none")
    assert "no key of this server" in await refused(verifier(token_secret=SECRET), unsigned)


def forged(header: dict[str, Any], key: bytes) -> str:
    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    text = part(json.dumps(header).encode()) + b"." + part(json.dumps({"sub": "42", "exp": 4_000_000_000}).encode())
    return (text + b"." + part(hmac.digest(key, text, hashlib.sha256))).decode()


async def test_a_public_key_is_no_secret(public: str) -> None:
    """The old attack: HS256 in the header, signed with what everybody knows."""
    judge = verifier(token_public_keys=public)
    for key in (pem(PRIVATE["RS256"]), pem(PRIVATE["RS256"]).strip(), pem(PRIVATE["ES256"]), ""):
        said = await refused(judge, forged({"alg": "HS256", "typ": "JWT"}, key.encode()))
        assert "no key of this server" in said


async def test_an_extension_that_has_to_be_understood_is_refused() -> None:
    header = {"alg": "HS256", "crit": ["x"], "x": 1}
    said = await refused(verifier(token_secret=SECRET), forged(header, SECRET.encode()))
    assert "extension" in said or "JSON Web Token" in said


async def test_audience_and_issuer() -> None:
    judge = verifier(token_secret=SECRET, token_audience="bus", token_issuer="us")
    assert (await judge.verify(token(claims={"aud": ["x", "bus"], "iss": "us"}))).user == "42"
    for claims in ({"aud": "x", "iss": "us"}, {"aud": "bus", "iss": "them"}, {"aud": "bus"}, {"iss": "us"}):
        await refused(judge, token(claims=claims))


async def test_leeway() -> None:
    assert (await verifier(token_secret=SECRET, token_leeway=60.0).verify(token(ttl=-30))).user == "42"
    await refused(verifier(token_secret=SECRET, token_leeway=10.0), token(ttl=-30))


async def test_a_token_that_is_known_still_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = verifier(token_secret=SECRET)
    text = token(ttl=600)
    identity = await judge.verify(text)
    assert await judge.verify(text) is identity
    assert identity.expires
    monkeypatch.setattr(tokens.time, "time", lambda: identity.expires)
    assert "expired" in await refused(judge, text)


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_CACHED_TOKENS", 3)
    judge = verifier(token_secret=SECRET)
    for number in range(10):
        await judge.verify(token(str(number)))
    assert len(judge._known) == 3


# ---------------------------------------------------------------- files of keys


def private_pem(key: Any) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no PEM"),
        ("nonsense", "no PEM"),
        (private_pem(PRIVATE["ES256"]), "PRIVATE KEY"),
        (pem(rsa.generate_private_key(65537, 1024)), "2048 bits"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "curves"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be used"),
    ],
)
def test_files_that_are_no_keys_stop_the_start(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "key.pem").write_text(text)
    with pytest.raises(SettingError, match=reason) as caught:
        verifier(token_public_keys=str(tmp_path / "key.pem"))
    assert "SSE_PG_TOKEN_PUBLIC_KEYS" in str(caught.value)


def test_secrets_that_are_none_stop_the_start(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    for text in ("", "short\n", SECRET + "\nshort\n"):
        file.write_text(text)
        with pytest.raises(SettingError, match="SSE_PG_TOKEN_SECRET_FILE") as caught:
            verifier(token_secret_file=file)
        assert "short" not in str(caught.value).partition("cannot be used")[2].replace("too short", "")
    with pytest.raises(SettingError, match="No such file"):
        verifier(token_secret_file=tmp_path / "nowhere")
    with pytest.raises(SettingError) as caught:
        Settings.from_env({"SSE_PG_TOKEN_SECRET": "hush"})
    assert "hush" not in str(caught.value)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at with each token."""
    monkeypatch.setattr(tokens, "KEY_FILES_INTERVAL_S", 0.0)


def replace(path: Path, text: str) -> None:
    """Put a file in the place of another, as those do who rotate keys."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


@pytest.mark.usefixtures("eager")
async def test_secrets_are_rotated_without_a_restart(tmp_path: Path) -> None:
    file, newer = tmp_path / "secrets", "the next secret, of more than 32 bytes too"
    file.write_text(SECRET + "\n")
    judge = verifier(token_secret_file=file)
    old, new = token(), token(key=newer)
    assert await judge.verify(old)
    await refused(judge, new)
    replace(file, f"{newer}\n{SECRET}\n")
    assert await judge.verify(old)
    assert await judge.verify(new)
    assert await judge.verify(mint(Settings(token_secret_file=file), "7", 60))
    replace(file, f"{newer}\n")
    await refused(judge, old)
    assert await judge.verify(new)


@pytest.mark.usefixtures("eager")
async def test_a_file_that_breaks_leaves_the_keys(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(pem(PRIVATE["ES256"]))
    judge = verifier(token_public_keys=str(file))
    text = token(key=PRIVATE["ES256"], algorithm="ES256")
    replace(file, "half a ke")
    assert await judge.verify(text)
    file.unlink()
    assert await judge.verify(text)
    replace(file, pem(PRIVATE["EdDSA"]))
    await refused(judge, text)
    assert await judge.verify(token(key=PRIVATE["EdDSA"], algorithm="EdDSA"))


# ---------------------------------------------------------------- a key set at a URL


class Provider:
    """An identity provider: an HTTP server of this process."""

    def __init__(self) -> None:
        self.document: Any = {"keys": []}
        self.status = 200
        self.asked = 0

    async def answer(self, _request: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response(self.document, status=self.status)


def jwk(algorithm: str, kid: str, key: Any = None, **more: Any) -> dict[str, Any]:
    public = (key or PRIVATE[algorithm]).public_key()
    return {**get_default_algorithms()[algorithm].to_jwk(public, as_dict=True), "kid": kid, **more}


@asynccontextmanager
async def provided(**settings: Any) -> AsyncIterator[tuple[Provider, Verifier]]:
    provider = Provider()
    app = web.Application()
    app.add_routes([web.get("/keys", provider.answer)])
    async with test_utils.TestServer(app) as server:
        values = {"token_jwks_url": str(server.make_url("/keys")), "token_jwks_pause": 0.0, **settings}
        judge = verifier(**values)
        yield provider, judge
        await judge.close()


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_a_key_set(algorithm: str) -> None:
    async with provided() as (provider, judge):
        provider.document = {"keys": [jwk(each, each) for each in PRIVATE]}
        text = token(key=PRIVATE[algorithm], algorithm=algorithm, kid=algorithm)
        assert (await judge.verify(text)).user == "42"
        assert (await judge.verify(token(key=PRIVATE[algorithm], algorithm=algorithm))).user == "42"
        await asyncio.gather(
            *(judge.verify(token(str(n), key=PRIVATE[algorithm], algorithm=algorithm)) for n in range(9))
        )
        assert provider.asked == 1


async def test_a_key_that_is_new_in_the_set_is_fetched() -> None:
    async with provided() as (provider, judge):
        provider.document = {"keys": [jwk("RS256", "1")]}
        await judge.verify(token(key=PRIVATE["RS256"], algorithm="RS256", kid="1"))
        provider.document = {"keys": [jwk("ES256", "2")]}
        assert (await judge.verify(token(key=PRIVATE["ES256"], algorithm="ES256", kid="2"))).user == "42"
        await refused(judge, token(key=PRIVATE["RS256"], algorithm="RS256", kid="1"))


async def test_unknown_keys_do_not_make_us_ask_again_and_again() -> None:
    async with provided(token_jwks_pause=3600.0) as (provider, judge):
        provider.document = {"keys": [jwk("RS256", "1")]}
        await judge.verify(token(key=PRIVATE["RS256"], algorithm="RS256", kid="1"))
        for number in range(5):
            await refused(judge, token(key=PRIVATE["ES256"], algorithm="ES256", kid=str(number)))
        assert provider.asked == 1


async def test_the_keys_stay_while_the_provider_is_away() -> None:
    async with provided() as (provider, judge):
        provider.document = {"keys": [jwk("RS256", "1")]}
        text = token(key=PRIVATE["RS256"], algorithm="RS256", kid="1")
        await judge.verify(text)
        for status, document in ((500, provider.document), (200, {"keys": []}), (200, "x"), (302, {})):
            provider.status, provider.document = status, document
            await refused(judge, token(key=PRIVATE["ES256"], algorithm="ES256", kid="2"))
            assert (await judge.verify(text)).user == "42"


async def test_without_any_keys_nobody_can_say() -> None:
    async with provided() as (provider, judge):
        provider.status = 500
        with pytest.raises(KeysUnavailable):
            await judge.verify(token())
        provider.status, provider.document = 200, {"keys": [jwk("RS256", "1")]}
        assert await judge.verify(token(key=PRIVATE["RS256"], algorithm="RS256"))


async def test_a_set_is_fetched_again_when_it_is_old() -> None:
    async with provided(token_jwks_refresh=0.0) as (provider, judge):
        provider.document = {"keys": [jwk("RS256", "1")]}
        text = token(key=PRIVATE["RS256"], algorithm="RS256", kid="1")
        await judge.verify(text)
        provider.document = {"keys": [jwk("ES256", "2")]}
        async with asyncio.timeout(20):
            while "refused" not in await _judged(judge, text):
                await asyncio.sleep(0.005)
        assert provider.asked > 1


async def _judged(judge: Verifier, text: str) -> str:
    try:
        await judge.verify(text)
    except TokenRefused:
        return "refused"
    return "accepted"


async def test_keys_of_a_set_that_verify_no_signatures_are_left_out() -> None:
    secret = base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()
    weak = rsa.generate_private_key(65537, 1024)
    async with provided() as (provider, judge):
        provider.document = {
            "keys": [
                {"kty": "oct", "k": secret, "kid": "o"},
                jwk("RS256", "e", use="enc"),
                jwk("RS256", "w", key=weak),
                jwk("RS256", "a", key=rsa.generate_private_key(65537, 2048), alg="RS512"),
                {"kty": "RSA", "kid": "broken"},
                "x",
                jwk("ES256", "s", use="sig", alg="ES256"),
            ]
        }
        assert await judge.verify(token(key=PRIVATE["ES256"], algorithm="ES256", kid="s"))
        await refused(judge, token(kid="o"))
        await refused(judge, token(key=PRIVATE["RS256"], algorithm="RS256", kid="e"))
        assert judge._jwks
        assert [key.kid for key in judge._jwks.keys] == ["a", "s"]


def test_secrets_do_not_show_in_settings() -> None:
    settings = Settings(token_secret=SECRET, database_url="postgresql://u:hush@h/d", token="hush")
    assert SECRET not in repr(settings)
    assert "hush" not in repr(settings)
    assert os.linesep not in repr(settings)


async def test_a_password_in_the_url_of_a_key_set_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    for place in ("127.0.0.1:1", "127.0.0.1:99999"):
        judge = verifier(token_jwks_url=f"http://me:hush@{place}/keys?key=hush")
        with pytest.raises(KeysUnavailable):
            await judge.verify(token())
        await judge.close()
    assert "/keys cannot be fetched" in caplog.text
    assert "hush" not in caplog.text
