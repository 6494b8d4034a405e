"""Keys and tokens for tests, made apart from the package."""

from __future__ import annotations

import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

SECRET = "a secret for tests, of more than 32 bytes"

PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def pem(private: Any) -> str:
    """Return the public half as PEM."""
    return (
        private.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def token(
    user: object = "42",
    *,
    publish: object = (),
    subscribe: object = (),
    key: Any = SECRET,
    algorithm: str = "HS256",
    ttl: float = 600,
    kid: str | None = None,
    claims: dict[str, Any] | None = None,
    **rights: Any,
) -> str:
    """Return a token; a claim of None is left out."""
    body = {
        "sub": user,
        "exp": time.time() + ttl,
        "sse_pg": {"publish": publish, "subscribe": subscribe, **rights},
        **(claims or {}),
    }
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode(body, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def bearer(text: str) -> dict[str, str]:
    """Return the header."""
    return {"Authorization": f"Bearer {text}"}
