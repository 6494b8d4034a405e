"""Who makes a request, and what their token allows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class Patterns:
    """Names, each exact or with ``*`` for any run of characters, which may be empty.

    A channel cannot contain a ``*``. Matching looks for the parts between the stars from left to right and never goes
    back, so no pattern takes long. Rejected: regular expressions and fnmatch, in which ``?``, ``[`` and ``.`` have a
    meaning, and which a pattern can make run for minutes.
    """

    __slots__ = ("_exact", "_parts", "texts")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = tuple(dict.fromkeys(texts))
        self._exact = frozenset(text for text in self.texts if "*" not in text)
        self._parts = tuple(tuple(text.split("*")) for text in self.texts if "*" in text)

    def match(self, name: str) -> bool:
        """Tell whether one of the patterns matches a name."""
        return name in self._exact or any(_matches(parts, name) for parts in self._parts)


def _matches(parts: tuple[str, ...], name: str) -> bool:
    first, last = parts[0], parts[-1]
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    place, end = len(first), len(name) - len(last)
    for part in parts[1:-1]:
        found = name.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return True


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a request. On a server without tokens, ``user`` is None and everything is allowed."""

    user: str | None
    publish: Patterns
    subscribe: Patterns
    act_for: Patterns
    observe: bool
    expires: float | None
    """When the token expires, in seconds since 1970."""


_EVERYTHING = Patterns(["*"])
OPEN = Identity(None, _EVERYTHING, _EVERYTHING, _EVERYTHING, True, None)
"""Anybody, on a server without tokens."""
