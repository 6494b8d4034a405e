"""Sets of ids as inclusive ranges. A COPY of a million rows in flight is one range, not a million ids."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """An immutable set of positive integers, kept as disjoint ascending ranges with ids between them.

    ``spans`` is a tuple of ``(first, last)``, both inside. The work of every operation is proportional to the
    number of ranges, never to the number of ids.
    """

    __slots__ = ("spans",)

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        """Take ranges in any order; empty ones (first > last) are dropped, touching ones are joined."""
        joined: list[tuple[int, int]] = []
        for first, last in sorted(spans):
            if first > last:
                continue
            if joined and first <= joined[-1][1] + 1:
                if last > joined[-1][1]:
                    joined[-1] = (joined[-1][0], last)
            else:
                joined.append((first, last))
        self.spans: tuple[tuple[int, int], ...] = tuple(joined)

    @classmethod
    def _of(cls, spans: tuple[tuple[int, int], ...]) -> Ranges:
        """Wrap spans that are known to be in order."""
        if not spans:
            return NONE
        made = cls.__new__(cls)
        made.spans = spans
        return made

    def __bool__(self) -> bool:
        return bool(self.spans)

    def __len__(self) -> int:
        """Count the ids, not the ranges."""
        return sum(last - first + 1 for first, last in self.spans)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.spans)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self.spans == other.spans

    def __hash__(self) -> int:
        return hash(self.spans)

    def __repr__(self) -> str:
        return f"Ranges({list(self.spans)})"

    def __contains__(self, number: int) -> bool:
        spans = self.spans
        at = bisect_right(spans, number, key=_first) - 1
        return at >= 0 and number <= spans[at][1]

    def without(self, number: int) -> Ranges:
        """Return the set less one id."""
        at = bisect_right(self.spans, number, key=_first) - 1
        if at < 0 or number > self.spans[at][1]:
            return self
        first, last = self.spans[at]
        middle: tuple[tuple[int, int], ...] = ((first, number - 1),) if number > first else ()
        if number < last:
            middle += ((number + 1, last),)
        return Ranges._of(self.spans[:at] + middle + self.spans[at + 1 :])

    def up_to(self, number: int) -> Ranges:
        """Return the part at or below ``number``."""
        at = bisect_right(self.spans, number, key=_first)
        kept = self.spans[:at]
        if kept and kept[-1][1] > number:
            kept = (*kept[:-1], (kept[-1][0], number))
        return Ranges._of(kept)

    def above(self, number: int) -> Ranges:
        """Return the part above ``number``."""
        at = bisect_left(self.spans, number + 1, key=_last)
        kept = self.spans[at:]
        if kept and kept[0][0] <= number:
            kept = ((number + 1, kept[0][1]), *kept[1:])
        return Ranges._of(kept)

    def and_span(self, first: int, last: int) -> Ranges:
        """Return the set with a range added."""
        if first > last:
            return self
        if not self.spans or self.spans[-1][1] + 1 < first:
            return Ranges._of((*self.spans, (first, last)))
        return Ranges((*self.spans, (first, last)))

    def __and__(self, other: Ranges) -> Ranges:
        found: list[tuple[int, int]] = []
        mine, theirs = self.spans, other.spans
        i = j = 0
        while i < len(mine) and j < len(theirs):
            first = max(mine[i][0], theirs[j][0])
            last = min(mine[i][1], theirs[j][1])
            if first <= last:
                found.append((first, last))
            if mine[i][1] < theirs[j][1]:
                i += 1
            else:
                j += 1
        return Ranges._of(tuple(found))

    def __sub__(self, other: Ranges) -> Ranges:
        left: list[tuple[int, int]] = []
        theirs = other.spans
        j = 0
        for first, last in self.spans:
            while j < len(theirs) and theirs[j][1] < first:
                j += 1
            start, k = first, j
            while k < len(theirs) and theirs[k][0] <= last:
                if start < theirs[k][0]:
                    left.append((start, theirs[k][0] - 1))
                start = theirs[k][1] + 1
                k += 1
            if start <= last:
                left.append((start, last))
        return Ranges._of(tuple(left))

    def __or__(self, other: Ranges) -> Ranges:
        if not other.spans:
            return self
        if not self.spans:
            return other
        return Ranges(self.spans + other.spans)

    def within(self, other: Ranges) -> bool:
        """Tell whether every id of this set is in the other."""
        return not self.spans or not (self - other).spans


def _first(span: tuple[int, int]) -> int:
    return span[0]


def _last(span: tuple[int, int]) -> int:
    return span[1]


NONE = Ranges.__new__(Ranges)
NONE.spans = ()
