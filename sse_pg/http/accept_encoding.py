"""What the request header Accept-Encoding allows (RFC 9110, section 12.5.3)."""

from __future__ import annotations

from collections.abc import Iterable


def accepts_gzip(headers: Iterable[str]) -> bool:
    """Return whether the client names gzip. ``*`` does not count: a client that can read gzip says so."""
    for part in ",".join(headers).split(","):
        name, _, parameters = part.partition(";")
        if name.strip().lower() in ("gzip", "x-gzip"):
            return _quality(parameters) > 0
    return False


def _quality(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip().lower() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0  # a client that cannot say how much it wants it does not get it
