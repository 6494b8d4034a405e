"""The keys that verify tokens. Which algorithms a key is for follows from its kind, never from a token's header."""

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

from sse_pg.config import MIN_SECRET_BYTES
from sse_pg.errors import SettingError

log = logging.getLogger(__name__)

#: Minimum size of an RSA key.
MIN_RSA_BITS = 2048
#: Maximum number of keys used from one set: a token without a key id is tried against each of them.
MAX_KEYS = 64
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, repr=False)
class Key:
    """A key and the algorithms it is used for. Never printed."""

    kid: str | None
    algorithms: tuple[str, ...]
    material: Any


def secret_key(text: str) -> Key:
    """Return the key for a shared secret. Raises ValueError if it is too short."""
    material = text.encode()
    if len(material) < MIN_SECRET_BYTES:
        raise ValueError(f"a secret needs at least {MIN_SECRET_BYTES} bytes (openssl rand -base64 48 makes one)")
    return Key(None, ("HS256",), material)


def secret_keys(text: str) -> list[Key]:
    """Return the keys of a file with one secret per line. The first one makes tokens."""
    keys = [secret_key(line.strip()) for line in text.splitlines() if line.strip()]
    if not keys:
        raise ValueError("it contains no secret")
    return keys


def pem_keys(text: str) -> list[Key]:
    """Return the public keys of a PEM text. Raises ValueError if it contains anything else."""
    found = list(_PEM.finditer(text))
    if not found:
        raise ValueError("it contains no PEM block")
    for each in found:
        if each[1] not in ("PUBLIC KEY", "RSA PUBLIC KEY"):
            raise ValueError(f"it contains a {each[1]}; only PUBLIC KEY is allowed")
    try:
        return [_public(None, load_pem_public_key(each[0].encode())) for each in found]
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None


def jwk_keys(document: Any) -> list[Key]:
    """Return the keys of a JSON Web Key Set that verify signatures, and skip the others.

    Symmetric keys are skipped, because a secret must not be published at a URL. Raises ValueError if none is left.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it is not a key set")  # noqa: TRY004 - a fault of the document, not of the caller
    keys: list[Key] = []
    for entry in entries[:MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
            continue
        try:
            material = jwt.PyJWK(entry).key
            key = _public(entry.get("kid"), material.public_key() if hasattr(material, "public_key") else material)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            log.warning("a key of the key set is skipped: %s", type(error).__name__)
            continue
        algorithms = tuple(name for name in key.algorithms if entry.get("alg") in (None, name))
        if algorithms:
            keys.append(Key(key.kid, algorithms, key.material))
    if not keys:
        raise ValueError("it contains no key that verifies signatures")
    return keys


def _public(kid: str | None, material: Any) -> Key:
    if isinstance(material, RSAPublicKey):
        if material.key_size < MIN_RSA_BITS:
            raise ValueError(f"an RSA key needs at least {MIN_RSA_BITS} bits")
        return Key(kid, _RSA, material)
    if isinstance(material, EllipticCurvePublicKey) and material.curve.name in _CURVES:
        return Key(kid, (_CURVES[material.curve.name],), material)
    if isinstance(material, Ed25519PublicKey | Ed448PublicKey):
        return Key(kid, ("EdDSA",), material)
    raise ValueError("supported keys are RSA, Ed25519, Ed448, and the curves P-256, P-384 and P-521")


class KeyFiles:
    """Keys in files, which are read again when they change, so that a rotation needs no restart."""

    def __init__(self, secrets: Path | None, public: Sequence[Path]) -> None:
        """Read the files. Raises SettingError if one cannot be used."""
        self._secrets = secrets
        self._public = tuple(public)
        self._seen = self._stat()
        self.keys = self._read()

    def refresh(self) -> bool:
        """Read the files if one has changed; True if there are new keys. Unusable files leave the keys as they are."""
        seen = self._stat()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self.keys = self._read()
        except SettingError as error:
            log.warning("the token keys stay as they were: %s", error)
            return False
        log.info("read the token keys again: %d", len(self.keys))
        return True

    def _files(self) -> Iterable[Path]:
        return (*([self._secrets] if self._secrets else []), *self._public)

    def _stat(self) -> list[tuple[int, int, int] | None]:
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
