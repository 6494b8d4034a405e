"""Origins of pages, as browsers send them in the header Origin: scheme, host, and a port that is not the default."""

from __future__ import annotations

from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def normal(origin: str) -> str:
    """Return an origin without the default port of its scheme: browsers leave it out, people write it."""
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition("://")[0], "\n"))


def is_own(origin: str, host: str) -> bool:
    """Tell whether a page has the host of the request. The scheme is not compared: a proxy may terminate TLS."""
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(parts.scheme, "\n")
    return parts.netloc.removesuffix(default) == host.lower().removesuffix(default) != ""
