"""Numbers in JSON whose digits are out of all proportion to their text.

PostgreSQL keeps every digit of a number: ``1e131071`` has 131,072, and a request of 40 kB takes a gigabyte there.
"""

from __future__ import annotations

import re

#: Maximum number of digits of a number when it is written out. A float of 64 bits needs at most 341.
MAX_DIGITS = 400
#: Longest exponent that is looked at; a longer one has leading zeros or is too large.
_MAX_EXPONENT_LENGTH = 6

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789E", b"000000000e")
_MANY_DIGITS = b"0" * MAX_DIGITS
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")


def may_have_long_number(text: bytes | memoryview) -> bool:
    """Tell whether a closer look is needed: at exponents of two digits or more, and at many digits.

    True also if only a string or a fraction looks like a long number.

    It takes about two nanoseconds per byte: no regular expression does.
    """
    plain = bytes(text).translate(_DIGITS_TO_ZERO, b"+-.")
    return b"0e00" in plain or _MANY_DIGITS in plain


def has_long_number(payload: str) -> bool:
    """Tell whether a JSON text contains a number with more than MAX_DIGITS digits when it is written out."""
    return written_out(payload) is None


def written_out(payload: str) -> int | None:
    """Return the length of a JSON text when its numbers are written out, as PostgreSQL does.

    None if a number has more than MAX_DIGITS digits then.
    """
    length = len(payload)
    for found in _NUMBER.finditer(_STRING.sub('""', payload)):
        digits = _digits(*found.groups(""))
        if digits > MAX_DIGITS:
            return None
        if found[3]:
            length += digits - len(found[0])
    return length


def _digits(whole: str, fraction: str, exponent: str) -> int:
    if len(exponent) > _MAX_EXPONENT_LENGTH:
        return MAX_DIGITS + 1
    shift = int(exponent or "0")
    return max(1, len(whole) + shift) + max(0, len(fraction) - shift)
