"""Ranges against Python's sets, and their cost against the number of ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sse_pg.core.ranges import NONE, Ranges

TOP = 30
IDS = st.integers(-2, TOP + 2)
SETS = st.frozensets(st.integers(1, TOP))
SPANS = st.lists(st.tuples(st.integers(1, TOP), st.integers(0, TOP)), max_size=12)


def of(ids: frozenset[int]) -> Ranges:
    return Ranges((number, number) for number in ids)


def ids_of(ranges: Ranges) -> set[int]:
    """Return the ids, after checking the form: ascending, no empty and no touching ranges, one object if empty."""
    for first, last in ranges:
        assert first <= last
    for (_, last), (first, _) in zip(ranges.spans, ranges.spans[1:], strict=False):
        assert last + 1 < first
    found = {number for first, last in ranges for number in range(first, last + 1)}
    assert len(ranges) == len(found)
    assert bool(ranges) == bool(found)
    return found


@given(SPANS)
def test_made_of_any_spans(spans: list[tuple[int, int]]) -> None:
    assert ids_of(Ranges(spans)) == {number for first, last in spans for number in range(first, last + 1)}


@given(SETS, IDS)
def test_contains(ids: frozenset[int], number: int) -> None:
    assert (number in of(ids)) == (number in ids)


@given(SETS, IDS)
def test_less_one_id(ids: frozenset[int], number: int) -> None:
    assert ids_of(of(ids).without(number)) == ids - {number}


@given(SETS, IDS)
def test_cut_at_an_id(ids: frozenset[int], number: int) -> None:
    assert ids_of(of(ids).up_to(number)) == {n for n in ids if n <= number}
    assert ids_of(of(ids).above(number)) == {n for n in ids if n > number}


@given(SETS, st.integers(1, 20))
def test_in_parts(ids: frozenset[int], size: int) -> None:
    parts = [ids_of(part) for part in of(ids).parts(size)]
    assert [number for part in parts for number in sorted(part)] == sorted(ids)
    assert all(len(part) == size for part in parts[:-1])
    assert all(0 < len(part) <= size for part in parts)


@given(SETS, IDS, IDS)
def test_with_a_range_added(ids: frozenset[int], first: int, last: int) -> None:
    assert ids_of(of(ids).and_span(first, last)) == ids | set(range(first, last + 1))


@given(SETS, SETS)
def test_set_operations(mine: frozenset[int], theirs: frozenset[int]) -> None:
    a, b = of(mine), of(theirs)
    assert ids_of(a & b) == mine & theirs
    assert ids_of(a | b) == mine | theirs
    assert ids_of(a - b) == mine - theirs
    assert a.within(b) == (mine <= theirs)


@given(SETS, SETS)
def test_equal_when_the_ids_are(mine: frozenset[int], theirs: frozenset[int]) -> None:
    assert (of(mine) == of(theirs)) == (mine == theirs)
    assert hash(of(mine)) == hash(Ranges(reversed(of(mine).spans)))
    assert of(mine) != mine


@given(SETS, SETS, IDS)
def test_operands_stay_as_they_are(mine: frozenset[int], theirs: frozenset[int], number: int) -> None:
    a, b = of(mine), of(theirs)
    _ = a & b, a | b, a - b, a.without(number), a.up_to(number), a.above(number), a.and_span(number, number + 3)
    assert (ids_of(a), ids_of(b)) == (mine, theirs)


def test_none_is_empty() -> None:
    assert ids_of(NONE) == set()
    assert NONE == Ranges() == Ranges([(5, 4)])


def test_a_million_ids_are_one_range() -> None:
    wide = Ranges([(1, 10**18)])
    assert len(wide.without(5 * 10**17).spans) == 2
    assert (wide - Ranges([(2, 10**18 - 1)])).spans == ((1, 1), (10**18, 10**18))
    assert 10**17 in wide
