"""Sets of ids as inclusive ranges. A COPY of a million rows in flight is one range, not a million ids."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """An immutable set of positive integers, stored as ascending ranges that neither overlap nor touch.

    ``spans`` is a tuple of pairs ``(first, last)``; both ends belong to the set. The cost of every operation depends on
    the number of ranges, never on the number of ids.
    """

    __slots__ = ("spans",)

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        """Take ranges in any order. Empty ones (first > last) are dropped, ranges that touch or overlap are joined."""
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
        """Return the set of spans that are already ascending and disjoint."""
        if not spans:
            return NONE
        made = cls.__new__(cls)
        made.spans = spans
        return made

    def __bool__(self) -> bool:
        return bool(self.spans)

    def __len__(self) -> int:
        """Return the number of ids, not of ranges."""
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
        """Return the set without one id."""
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
        part = self.spans[:at]
        if part and part[-1][1] > number:
            part = (*part[:-1], (part[-1][0], number))
        return Ranges._of(part)

    def above(self, number: int) -> Ranges:
        """Return the part above ``number``."""
        at = bisect_left(self.spans, number + 1, key=_last)
        part = self.spans[at:]
        if part and part[0][0] <= number:
            part = ((number + 1, part[0][1]), *part[1:])
        return Ranges._of(part)

    def and_span(self, first: int, last: int) -> Ranges:
        """Return the set with a range added."""
        if first > last:
            return self
        if not self.spans or self.spans[-1][1] + 1 < first:
            return Ranges._of((*self.spans, (first, last)))
        return Ranges((*self.spans, (first, last)))

    def parts(self, ids: int) -> Iterator[Ranges]:
        """Return the set in parts of at most so many ids, ascending."""
        part: list[tuple[int, int]] = []
        room = ids
        for first, last in self.spans:
            start = first
            while start <= last:
                end = min(last, start + room - 1)
                part.append((start, end))
                room -= end - start + 1
                start = end + 1
                if room == 0:
                    yield Ranges._of(tuple(part))
                    part, room = [], ids
        if part:
            yield Ranges._of(tuple(part))

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
        """Return whether every id of this set is in the other."""
        return not self.spans or not (self - other).spans


def _first(span: tuple[int, int]) -> int:
    return span[0]


def _last(span: tuple[int, int]) -> int:
    return span[1]


NONE = Ranges.__new__(Ranges)
NONE.spans = ()
