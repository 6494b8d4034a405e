"""Checks of the settings against each other, this machine and the table."""

from __future__ import annotations

import re
import resource
from collections.abc import Mapping

from sse_pg.auth import exposure
from sse_pg.config import Settings, advice, require_no_lost_secret
from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, ok, warning
from sse_pg.errors import SettingError

#: Idle time after which proxies commonly close a connection (nginx, AWS load balancers).
PROXY_IDLE_S = 60.0
#: Number of files that a process has open besides its connections.
OTHER_OPEN_FILES = 64


def settings_checks(settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Return what is wrong with the settings, or one finding that they are consistent."""
    found = [
        warning("settings", line, "correct the name, or remove the variable from the environment")
        for line in advice(env)
    ]
    if settings.heartbeat >= PROXY_IDLE_S:
        found.append(
            warning(
                "settings",
                f"SSE_PG_HEARTBEAT_SECONDS={settings.heartbeat:g}: many proxies close a stream that is silent for "
                f"{PROXY_IDLE_S:g} s",
                f"set it below {PROXY_IDLE_S:g}; 15 is the default",
            )
        )
    if settings.max_body < settings.max_payload:
        found.append(
            warning(
                "settings",
                f"SSE_PG_MAX_BODY_BYTES={settings.max_body} is less than SSE_PG_MAX_PAYLOAD_BYTES="
                f"{settings.max_payload}: the largest payloads are refused",
                "raise SSE_PG_MAX_BODY_BYTES",
            )
        )
    by_address = [
        name
        for name, value in (
            ("SSE_PG_MAX_STREAMS_PER_ADDRESS", settings.max_streams_address),
            ("SSE_PG_PUBLISH_RATE", settings.publish_rate),
        )
        if value
    ]
    if by_address and not settings.trusted_proxies and exposure.is_loopback(settings.host):
        found.append(
            warning(
                "settings",
                f"{' and '.join(by_address)} without SSE_PG_TRUSTED_PROXIES, on loopback: all clients of a proxy "
                "on this machine would count as one address",
                "set SSE_PG_TRUSTED_PROXIES=127.0.0.1,::1 if there is a proxy",
            )
        )
    return found or [ok("settings", "they are consistent")]


def access(settings: Settings, env: Mapping[str, str]) -> Finding:
    """Say who may read and publish."""
    try:
        require_no_lost_secret(settings, env)
        exposure.check(settings)
    except SettingError as problem:
        return error("access", str(problem), "the server does not start with these settings")
    if settings.requires_tokens:
        return ok("access", "tokens are required")
    if settings.open and not exposure.is_loopback(settings.host):
        return warning(
            "access",
            f"no tokens are required, and HOST={settings.host} is reachable by others: anybody who can reach it can "
            "read and publish everything",
            "set SSE_PG_TOKEN_SECRET or another source of keys, or make sure that only your own programs can reach it",
        )
    return ok("access", "no tokens are required; only this machine can connect, unless a proxy lets others in")


def files(settings: Settings) -> Finding:
    """Compare the limit of open files, as it applies to a process started here, with the connections of one process.

    The hard limit counts, because `sse-pg serve` raises the soft limit to it.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = settings.max_connections + settings.pool_size + OTHER_OPEN_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        return warning(
            "files",
            f"{hard} files may be open (ulimit -Hn); SSE_PG_MAX_CONNECTIONS={settings.max_connections} needs {needed}",
            f"set LimitNOFILE={needed} in the systemd unit or ulimits in Compose, or lower SSE_PG_MAX_CONNECTIONS",
        )
    return ok("files", f"the limit is high enough for SSE_PG_MAX_CONNECTIONS={settings.max_connections}")


async def payload(exam: Examination) -> list[Finding]:
    """Compare the maximum payload over HTTP with what the table accepts."""
    settings, row = exam.settings, await exam.session.row("doctor_payload")
    constraint = row[0] if row else None
    bound = re.search(r"\b(\d{2,})\b", constraint or "")
    if bound is None:
        return [
            warning(
                "payload",
                "the table does not limit payloads: the constraint events_payload is missing",
                "see docs/decisions.md",
            )
        ]
    if int(bound[1]) < settings.max_payload:
        return [
            warning(
                "payload",
                f"SSE_PG_MAX_PAYLOAD_BYTES={settings.max_payload}, but the table accepts {bound[1]} bytes",
                "lower the setting, or raise the constraint events_payload (docs/decisions.md)",
            )
        ]
    return [ok("payload", f"up to {settings.max_payload} bytes over HTTP; the table accepts {bound[1]}")]
