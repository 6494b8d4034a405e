"""``sse-pg token``: creates a token."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from sse_pg.auth.tokens import mint
from sse_pg.config import Settings
from sse_pg.core import names

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def token(
    settings: Settings,
    user: str,
    publish: Sequence[str],
    subscribe: Sequence[str],
    act_for: Sequence[str],
    observe: bool,
    ttl: str,
) -> str:
    """Return a token. Raises SettingError without a secret, UsageError if an argument is invalid."""
    found = re.fullmatch("([1-9][0-9]{0,9})([smhd]?)", ttl)
    if found is None:
        raise click.UsageError(f"--ttl {ttl!r}: allowed is a number of seconds, or a number with s, m, h or d")
    for option, patterns in (("--publish", publish), ("--subscribe", subscribe)):
        for name in _names(patterns):
            if fault := names.channel_fault(name.replace("*", "x")):
                raise click.UsageError(f"{option} {name!r}: {fault}")
    for name in act_for:
        if fault := names.user_fault(name):
            raise click.UsageError(f"--act-for {name!r}: {fault}")
    try:
        return mint(
            settings,
            user,
            int(found[1]) * _UNITS[found[2] or "s"],
            publish=_names(publish),
            subscribe=_names(subscribe),
            act_for=act_for,
            observe=observe,
        )
    except ValueError as error:
        raise click.UsageError(f"--user {user!r}: {error}") from None


def _names(options: Sequence[str]) -> list[str]:
    """Return the patterns of an option that may be repeated and may contain several, separated by commas."""
    return [name.strip() for option in options for name in option.split(",") if name.strip()]
