"""Whether a server may listen on its address: without tokens, only loopback is allowed."""

from __future__ import annotations

import ipaddress
import socket

from sse_pg.auth.keys import KeyFiles
from sse_pg.config import Settings
from sse_pg.errors import SettingError


def check(settings: Settings) -> str | None:
    """Return the line that a server without tokens prints; None if the server requires tokens.

    Raises SettingError if neither tokens nor SSE_PG_OPEN are set and the address is not loopback, or if a file of keys
    cannot be used.
    """
    if settings.requires_tokens:
        KeyFiles(settings.token_secret_file, settings.token_public_key_files)
        return None
    if settings.open:
        return "open: no tokens are required; everybody who can reach this address can read and publish everything"
    if not is_loopback(settings.host):
        raise SettingError(
            f"HOST={settings.host!r} can be reached from other machines and no tokens are required: set "
            "SSE_PG_TOKEN_SECRET (or another source of keys, docs/settings.md), or let everybody do everything with "
            "--open or SSE_PG_OPEN=true"
        )
    return "open: no tokens are required; everybody on this machine can read and publish everything"


def is_loopback(host: str) -> bool:
    """Tell whether every address of a host is loopback. An empty host means all interfaces."""
    if not host:
        return False
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return True  # not an address, so listening on it will fail with the right message
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
