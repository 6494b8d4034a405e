"""The keys that tokens are checked with. What a key may verify follows from its kind, never from a token's header."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from sse_pg.config import SHORTEST_SECRET
from sse_pg.errors import SettingError

log = logging.getLogger(__name__)

#: Bits of an RSA key.
SHORTEST_RSA = 2048
#: Keys that are taken from one set; each costs a token without a key id a verification.
MOST_KEYS = 64
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, repr=False)
class Key:
    """A key and the algorithms that it is for. Never printed."""

    kid: str | None
    algorithms: tuple[str, ...]
    material: Any


def secret_key(text: str) -> Key:
    """Return the key of a shared secret. Raises ValueError where it is too short."""
    material = text.encode()
    if len(material) < SHORTEST_SECRET:
        raise ValueError(f"a secret has at least {SHORTEST_SECRET} bytes (openssl rand -base64 48 makes one)")
    return Key(None, ("HS256",), material)


def secret_keys(text: str) -> list[Key]:
    """Return the keys of a file with a secret a line. The first is the one that makes tokens."""
    keys = [secret_key(line.strip()) for line in text.splitlines() if line.strip()]
    if not keys:
        raise ValueError("there is no secret in it")
    return keys


def pem_keys(text: str) -> list[Key]:
    """Return the public keys of a PEM text. Raises ValueError for anything else in it."""
    found = list(_PEM.finditer(text))
    if not found:
        raise ValueError("there is no PEM block in it")
    for each in found:
        if each[1] not in ("PUBLIC KEY", "RSA PUBLIC KEY"):
            raise ValueError(f"it holds a {each[1]}; a PUBLIC KEY is needed")
    try:
        return [_public(None, load_pem_public_key(each[0].encode())) for each in found]
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None


def jwk_keys(document: Any) -> list[Key]:
    """Return the keys of a JSON Web Key Set that verify signatures; others are left out.

    A symmetric key is no key to publish at a URL, so it is not taken. Raises ValueError when none is left.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it is not a key set")  # noqa: TRY004 - a fault of the document, not of the caller
    keys: list[Key] = []
    for entry in entries[:MOST_KEYS]:
        if not isinstance(entry, dict) or entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
            continue
        try:
            material = jwt.PyJWK(entry).key
            key = _public(entry.get("kid"), material.public_key() if hasattr(material, "public_key") else material)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            log.warning("a key of the key set is left out: %s", type(error).__name__)
            continue
        algorithms = tuple(name for name in key.algorithms if entry.get("alg") in (None, name))
        if algorithms:
            keys.append(Key(key.kid, algorithms, key.material))
    if not keys:
        raise ValueError("there is no key in it that verifies signatures")
    return keys


def _public(kid: str | None, material: Any) -> Key:
    if isinstance(material, RSAPublicKey):
        if material.key_size < SHORTEST_RSA:
            raise ValueError(f"an RSA key has at least {SHORTEST_RSA} bits")
        return Key(kid, _RSA, material)
    if isinstance(material, EllipticCurvePublicKey) and material.curve.name in _CURVES:
        return Key(kid, (_CURVES[material.curve.name],), material)
    if isinstance(material, Ed25519PublicKey | Ed448PublicKey):
        return Key(kid, ("EdDSA",), material)
    raise ValueError("a key is RSA, on one of the curves P-256, P-384 and P-521, or Ed25519 or Ed448")


class KeyFiles:
    """Keys in files, read again when a file changes: a rotation needs no restart."""

    def __init__(self, secrets: Path | None, public: Sequence[Path]) -> None:
        """Read the files. Raises SettingError where one cannot be used."""
        self._secrets = secrets
        self._public = tuple(public)
        self._seen = self._look()
        self.keys = self._read()

    def refresh(self) -> bool:
        """Read again what changed; True when there are other keys. Files that cannot be used leave the keys as is."""
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self.keys = self._read()
        except SettingError as error:
            log.warning("the keys stay as they were: %s", error)
            return False
        log.info("the token keys were read again: %d", len(self.keys))
        return True

    def _files(self) -> Iterable[Path]:
        return (*([self._secrets] if self._secrets else []), *self._public)

    def _look(self) -> list[tuple[int, int, int] | None]:
        seen: list[tuple[int, int, int] | None] = []
        for path in self._files():
            try:
                found = path.stat()
                seen.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                seen.append(None)
        return seen

    def _read(self) -> list[Key]:
        keys: list[Key] = []
        for path in self._files():
            variable = "SSE_PG_TOKEN_SECRET_FILE" if path is self._secrets else "SSE_PG_TOKEN_PUBLIC_KEYS"
            try:
                text = path.read_text("utf-8")
                keys += secret_keys(text) if path is self._secrets else pem_keys(text)
            except OSError as error:
                raise SettingError(f"{variable}: {path} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise SettingError(f"{variable}: {path} is not a text file") from None
            except ValueError as error:
                raise SettingError(f"{variable}: {path} cannot be used: {error}") from None
        return keys
