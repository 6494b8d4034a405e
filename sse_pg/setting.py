"""One setting: what is known of its variable, how the text of that is read, and how its values are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, get_args

import psycopg
from psycopg.conninfo import conninfo_to_dict

from sse_pg.errors import SettingError


def setting(
    env: str,
    default: Any,
    help_text: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """Return the field of a dataclass for a setting with this variable, default and meaning.

    Numbers lie from ``low`` to ``high``, in ``unit``; a ``secret`` is not shown.
    """
    return field(
        default=default,
        repr=not secret,
        metadata={
            "env": env,
            "help": help_text,
            "unit": unit,
            "low": low,
            "high": high,
            "choices": choices,
            "secret": secret,
        },
    )


def require_connection_string(name: str, text: str) -> None:
    """Raise SettingError for what libpq cannot read; its own errors quote the password, this one nothing."""
    try:
        parts = conninfo_to_dict(text)
        ports = str(parts.get("port") or "").split(",")
        # A password with an @ or a : that is not percent-encoded ends up in these.
        good = all(port == "" or port.isdecimal() for port in ports) and "@" not in str(parts.get("host") or "")
    except psycopg.Error:
        good = False
    if not good:
        raise SettingError(
            f"{name} cannot be read (it is not shown, for the password in it): allowed is a postgresql:// URL, with "
            "special characters percent-encoded, or a libpq connection string"
        )


def read(meta: Mapping[str, Any], hint: Any, text: str) -> Any:
    """Return the value, of the type of the field, that a text stands for. Raises SettingError."""
    kind = next((t for t in get_args(hint) if t is not type(None)), hint)
    if meta["choices"]:
        if text not in meta["choices"]:
            raise SettingError(f"{meta['env']}={text!r}: allowed are {', '.join(meta['choices'])}")
        return text == "true" if kind is bool else text
    if kind not in (int, float):
        return kind(text)
    try:
        number = kind(text)
        allowed = meta["low"] <= number <= meta["high"]
    except ValueError:
        allowed = False
    if not allowed:
        what = "a whole number" if kind is int else "a number"
        unit = f" {meta['unit']}" if meta["unit"] else ""
        raise SettingError(f"{meta['env']}={text!r}: allowed is {what} from {bounds(meta)}{unit}")
    return number / 1000 if meta["unit"] == "ms" else number


def bounds(meta: Mapping[str, Any]) -> str:
    """Return from where to where a number may be; empty for what is none."""
    if meta["low"] is None:
        return ""
    return f"{_number(meta['low'])} to {_number(meta['high'])}"


def shown(meta: Mapping[str, Any], default: Any) -> str:
    """Return the text that stands for a default."""
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if meta["unit"] == "ms":
        default *= 1000
    return f"{default:g}" if isinstance(default, float) else str(default)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
