"""Checks of the settings against each other and against this machine; they ask nobody but for the payload."""

from __future__ import annotations

import re
import resource
from collections.abc import Mapping

from sse_pg.auth import exposure
from sse_pg.config import Settings, misspelt
from sse_pg.doctor.examination import Examination
from sse_pg.doctor.finding import Finding, error, ok, warning
from sse_pg.errors import SettingError

#: Seconds without a byte after which proxies commonly cut a connection (nginx, AWS load balancers).
PROXY_SECONDS = 60.0
#: Files that a process has open beside its connections.
OTHER_FILES = 64


def settings_checks(settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Return what is wrong with the settings, or one line that nothing is."""
    found = [
        warning("settings", advice, "mend the name, or take the variable out of the environment")
        for advice in misspelt(env)
    ]
    if settings.heartbeat >= PROXY_SECONDS:
        found.append(
            warning(
                "settings",
                f"SSE_PG_HEARTBEAT_SECONDS={settings.heartbeat:g}: many proxies cut a stream that is silent for "
                f"{PROXY_SECONDS:g} s",
                f"set it below {PROXY_SECONDS:g}; 15 is the default",
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
                "on this machine count as one address",
                "set SSE_PG_TRUSTED_PROXIES=127.0.0.1,::1 where there is a proxy",
            )
        )
    return found or [ok("settings", "no two are at odds")]


def access(settings: Settings) -> Finding:
    """Tell who may read and publish."""
    try:
        exposure.check(settings)
    except SettingError as problem:
        return error("access", str(problem), "the server does not start like this")
    if settings.asks_for_tokens:
        return ok("access", "tokens are asked for")
    if settings.open and not exposure.is_loopback(settings.host):
        return warning(
            "access",
            f"no tokens are asked for, and HOST={settings.host} is open to others: whoever reaches it reads and "
            "publishes everything",
            "set SSE_PG_TOKEN_SECRET or another source of keys, or see that only your own programs reach it",
        )
    return ok("access", "no tokens are asked for: for this machine only, unless a proxy lets others in")


def files(settings: Settings) -> Finding:
    """Check the limit of open files, as it is for a process started here, against the connections of one process.

    The hard limit: `sse-pg serve` raises the soft one to it.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = settings.max_connections + settings.pool_size + OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        return warning(
            "files",
            f"{hard} files may be open (ulimit -Hn); SSE_PG_MAX_CONNECTIONS={settings.max_connections} needs {needed}",
            f"LimitNOFILE={needed} in a systemd unit, ulimits in Compose, or a lower SSE_PG_MAX_CONNECTIONS",
        )
    return ok("files", f"enough may be open for SSE_PG_MAX_CONNECTIONS={settings.max_connections}")


async def payload(exam: Examination) -> list[Finding]:
    """Compare the largest payload over HTTP with what the table takes."""
    settings, row = exam.settings, await exam.session.row("doctor_payload")
    constraint = row[0] if row else None
    bound = re.search(r"\b(\d{2,})\b", constraint or "")
    if bound is None:
        return [warning("payload", "the table does not bound payloads (events_payload)", "see docs/decisions.md")]
    if int(bound[1]) < settings.max_payload:
        return [
            warning(
                "payload",
                f"SSE_PG_MAX_PAYLOAD_BYTES={settings.max_payload}, but the table takes {bound[1]} bytes",
                "lower the setting, or raise the constraint events_payload (docs/decisions.md)",
            )
        ]
    return [ok("payload", f"up to {settings.max_payload} bytes; the table takes {bound[1]}")]
