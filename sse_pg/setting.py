"""One setting: the description of its variable, reading the variable's text, and printing values."""

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
    """Return the dataclass field of a setting with this variable, default and help text.

    Numbers must be between ``low`` and ``high``, in ``unit``. A ``secret`` is not shown.
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
    """Raise SettingError if libpq cannot parse the text. libpq's own errors quote the password; this one does not."""
    try:
        parts = conninfo_to_dict(text)
        ports = str(parts.get("port") or "").split(",")
        # An @ or a : in the password that is not percent-encoded makes part of it end up here.
        good = all(port == "" or port.isdecimal() for port in ports) and "@" not in str(parts.get("host") or "")
    except psycopg.Error:
        good = False
    if not good:
        raise SettingError(
            f"{name} cannot be parsed (not shown, because it may contain a password): allowed is a postgresql:// URL, "
            "with special characters percent-encoded, or a libpq connection string"
        )


def read(meta: Mapping[str, Any], hint: Any, text: str) -> Any:
    """Return the value of a text, in the type of the field. Raises SettingError."""
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
    """Return the range of a number as text, or nothing if the setting is not a number."""
    if meta["low"] is None:
        return ""
    return f"{_number(meta['low'])} to {_number(meta['high'])}"


def shown(meta: Mapping[str, Any], default: Any) -> str:
    """Return a default as text."""
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if meta["unit"] == "ms":
        default *= 1000
    return f"{default:g}" if isinstance(default, float) else str(default)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
