"""Whether a server may listen where it is told to: without tokens, on loopback alone."""

from __future__ import annotations

import ipaddress
import socket

from sse_pg.auth.keys import KeyFiles
from sse_pg.config import Settings
from sse_pg.errors import SettingError


def check(settings: Settings) -> str | None:
    """Return the line that a server without tokens prints; None where it asks for tokens.

    Raises SettingError where neither tokens nor SSE_PG_OPEN are set and the address is not loopback, and where files of
    keys cannot be used.
    """
    if settings.asks_for_tokens:
        KeyFiles(settings.token_secret_file, settings.token_public_key_files)
        return None
    if settings.open:
        return "open: no tokens are asked for; whoever reaches this address reads and publishes everything"
    if not is_loopback(settings.host):
        raise SettingError(
            f"HOST={settings.host!r} is open to others and there are no tokens: set SSE_PG_TOKEN_SECRET (or another "
            "source of keys, docs/settings.md), or say with --open or SSE_PG_OPEN=true that everybody may do everything"
        )
    return "open: no tokens are asked for; whoever is on this machine reads and publishes everything"


def is_loopback(host: str) -> bool:
    """Tell whether every address of a host is loopback. An empty host is all interfaces."""
    if not host:
        return False
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return True  # nobody listens on what is no address; listening will say so
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
