"""The cursor: what a reader has been offered, in at most 128 bytes.

Ids commit out of order, so "everything up to 1042" is not enough: 1040 may still be in flight. A cursor is
``(high, gaps)``: every id up to ``high`` was offered, except those in ``gaps``. Printed, it is the plain integer
``1042`` if there are no gaps, which is nearly always. Gaps follow after ``~``, from the highest to the lowest. Each gap
is written as its distance below the gap before it (or below ``high``) and, if it is longer than one id, its length::

    1042~2,4-3      high 1042; 1040 is missing, and 1033 to 1035

Every byte is a digit or one of ``~ , -``, because a browser may send such a Last-Event-ID of up to 128 bytes across
origins without a preflight (the CORS-safelisted request-header rules of the Fetch standard).
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from sse_pg.core.ranges import NONE, Ranges
from sse_pg.errors import CursorError

#: Length of the longest printed cursor.
MAX_TEXT_BYTES = 128
#: No cursor: `sse-pg doctor` sends it as a Last-Event-ID to see whether proxies forward that header.
DOCTOR_TEXT = "sse-pg-doctor"
#: The highest id that a bigint column can hold.
MAX_ID = 2**63 - 1
_FORM = re.compile(r"[0-9]{1,19}(?:~[0-9]{1,19}(?:-[0-9]{1,19})?(?:,[0-9]{1,19}(?:-[0-9]{1,19})?)*)?", re.ASCII)


class Cursor(msgspec.Struct, frozen=True, gc=False):
    """Everything up to ``high`` except ``gaps``, all of which lie below ``high``."""

    high: int
    gaps: Ranges = NONE

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Return the cursor that ``str`` printed as ``text``. A plain integer means everything up to it.

        Raises CursorError, with a reason that a person can read, if ``text`` cannot be a printed cursor.
        """
        if len(text) > MAX_TEXT_BYTES or not _FORM.fullmatch(text):
            raise CursorError(f"not a cursor: {text[:40]!r}")
        head, _, tail = text.partition("~")
        high = int(head)
        if high > MAX_ID:
            raise CursorError(f"beyond any id: {text[:40]!r}")
        spans: list[tuple[int, int]] = []
        above = high
        for part in tail.split(",") if tail else ():
            skip, _, length = part.partition("-")
            last = above - int(skip)
            first = last - int(length or 1) + 1
            if int(skip) < 1 or first > last or first < 1:
                raise CursorError(f"gaps that cannot be: {text[:40]!r}")
            spans.append((first, last))
            above = first - 1
        return cls(high, Ranges(spans))

    @property
    def text(self) -> str:
        """The printed form. If the gaps do not fit, ``high`` is lowered to below the first gap that does not fit.

        A reader that resumes from the lowered cursor may be offered events again, and misses none.
        """
        spans = self.gaps.spans
        return _fit(self.high, spans) if spans else str(self.high)

    def __str__(self) -> str:
        return self.text

    def offered(self, number: int) -> bool:
        """Return whether the reader was offered this id."""
        return number <= self.high and number not in self.gaps

    def missing_up_to(self, number: int) -> Ranges:
        """Return the ids at or below ``number`` that were not offered."""
        if number <= self.high:
            return self.gaps.up_to(number)
        return self.gaps.and_span(self.high + 1, number)

    def missing(self, other: Cursor) -> Ranges:
        """Return the ids that ``other`` was offered and this one was not."""
        return self.missing_up_to(other.high) - other.gaps

    def covers(self, other: Cursor) -> bool:
        """Return whether this cursor was offered everything that ``other`` was offered."""
        if other.high <= self.high and not self.gaps:
            return True
        return self.missing_up_to(other.high).within(other.gaps)

    def clip(self, number: int) -> Cursor:
        """Return the cursor of a reader that was offered only the ids up to ``number``."""
        if number >= self.high:
            return self
        return trimmed(number, self.gaps)

    def __or__(self, other: Cursor) -> Cursor:
        """Return the cursor of a reader that was offered what either of the two was offered."""
        high = max(self.high, other.high)
        if not self.gaps and not other.gaps:
            return Cursor(high)
        return Cursor(high, self.missing_up_to(high) & other.missing_up_to(high))

    def __and__(self, other: Cursor) -> Cursor:
        """Return the cursor of a reader that was offered what both were offered."""
        high = min(self.high, other.high)
        return trimmed(high, self.gaps | other.gaps)


def trimmed(high: int, gaps: Ranges) -> Cursor:
    """Return the cursor of everything up to ``high`` except ``gaps``. If ``high`` is in a gap, it ends below it."""
    gaps = gaps.up_to(high)
    if high in gaps:
        high = gaps.spans[-1][0] - 1
        gaps = gaps.up_to(high)
    return Cursor(high, gaps)


@lru_cache(16)  # a position is printed for many streams one after the other
def _fit(high: int, spans: tuple[tuple[int, int], ...]) -> str:
    while True:
        if len(spans) <= MAX_TEXT_BYTES // 2:  # a gap takes at least two bytes
            printed = _print(high, spans)
            if len(printed) <= MAX_TEXT_BYTES:
                return printed
        high, spans = spans[-1][0] - 1, spans[:-1]


def _print(high: int, spans: tuple[tuple[int, int], ...]) -> str:
    parts: list[str] = []
    above = high
    for first, last in reversed(spans):
        parts.append(f"{above - last}" if first == last else f"{above - last}-{last - first + 1}")
        above = first - 1
    return f"{high}~{','.join(parts)}" if parts else str(high)


START = Cursor(0)
