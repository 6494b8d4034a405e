"""The cursor against a model of sets, and its printed form."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sse_pg.core.cursor import MAX_ID, MAX_TEXT_BYTES, START, Cursor
from sse_pg.core.ranges import Ranges
from sse_pg.errors import CursorError

TOP = 24
WORLD = range(1, TOP + 8)


@st.composite
def small(draw: st.DrawFn) -> Cursor:
    """A cursor over a few ids, so that all of them can be compared."""
    high = draw(st.integers(0, TOP))
    gaps = draw(st.frozensets(st.integers(1, high - 1), max_size=8)) if high > 1 else frozenset()
    return Cursor(high, Ranges((gap, gap) for gap in gaps))


@st.composite
def any_cursor(draw: st.DrawFn) -> Cursor:
    """A cursor of any size, with up to ninety gaps."""
    at = draw(st.integers(1, 2**62))
    spans = []
    sizes = st.integers(1, 3) | st.integers(1, 10**6)
    for skip, length in draw(st.lists(st.tuples(sizes, sizes), max_size=90)):
        spans.append((at + skip, at + skip + length - 1))
        at += skip + length
    return Cursor(at + draw(st.integers(0, 5)), Ranges(spans))


def offered(cursor: Cursor) -> set[int]:
    return {number for number in WORLD if cursor.offered(number)}


def is_sound(cursor: Cursor) -> None:
    """No gap is at or above ``high``, and the printed text gives the same cursor again."""
    assert not cursor.gaps or cursor.gaps.spans[-1][1] < cursor.high
    assert Cursor.parse(str(cursor)) == cursor


# ------------------------------------------------------------------ the printed form


@given(any_cursor())
def test_printed_is_short_and_safe_and_comes_back(cursor: Cursor) -> None:
    text = str(cursor)
    assert len(text.encode()) <= MAX_TEXT_BYTES
    assert re.fullmatch("[0-9~,-]+", text)
    back = Cursor.parse(text)
    assert str(back) == text
    if back == cursor:
        return
    # Lowered: a part of what was offered, the whole of it up to the gap that did not fit, and that one did not fit.
    assert cursor.covers(back)
    assert back == cursor.clip(back.high)
    above = cursor.gaps.above(back.high)
    assert above.spans[0][0] == back.high + 1
    end = above.spans[1][0] - 1 if len(above.spans) > 1 else cursor.high
    assert len(unlimited(cursor.clip(end))) > MAX_TEXT_BYTES


def unlimited(cursor: Cursor) -> str:
    """Print a cursor of any length, gap by gap."""
    parts, above = [], cursor.high
    for first, last in reversed(cursor.gaps.spans):
        length = last - first + 1
        parts.append(str(above - last) + (f"-{length}" if length > 1 else ""))
        above = first - 1
    return str(cursor.high) + ("~" + ",".join(parts) if parts else "")


@given(any_cursor())
def test_printed_in_full_where_it_fits(cursor: Cursor) -> None:
    if len(unlimited(cursor)) <= MAX_TEXT_BYTES:
        assert str(cursor) == unlimited(cursor)
        assert Cursor.parse(str(cursor)) == cursor


def test_the_forms_of_the_documentation() -> None:
    assert str(Cursor(1042)) == "1042"
    assert str(Cursor(1042, Ranges([(1040, 1040), (1033, 1035)]))) == "1042~2,4-3"
    assert str(START) == "0"


def test_exactly_at_the_limit() -> None:
    """Every other id of 62 is missing: two bytes a gap. One byte more in the head and the lowest gap still fits."""
    gaps = Ranges((number, number) for number in range(2, 126, 2))
    fits = Cursor(126, gaps)
    assert len(unlimited(fits)) == 3 + 2 * 62
    assert Cursor.parse(str(fits)) == fits
    brim = Cursor(133, gaps)
    brimful = Cursor(134, gaps)
    assert len(unlimited(brim)) == len(unlimited(fits))
    assert len(unlimited(brimful)) == MAX_TEXT_BYTES
    assert Cursor.parse(str(brimful)) == brimful
    over = Cursor(1134, gaps)
    assert len(unlimited(over)) > MAX_TEXT_BYTES
    assert str(over) == unlimited(Cursor(over.gaps.spans[-1][0] - 1, gaps.up_to(over.gaps.spans[-2][1])))


@given(st.text(max_size=140) | st.from_regex(r"[0-9]{1,20}(~[0-9,~-]*)?", fullmatch=True))
@example("")
@example("0~1")
@example("-1")
@example("+1")
@example(" 1")
@example("1\n")
@example("1_0")
@example("٣")
@example("１２")
@example("5~٣")
@example("5~0")
@example("5~1-0")
@example("5~5")
@example("5~4-2")
@example("5~")
@example("5~1,")
@example("5~,1")
@example("5~1--1")
@example("5~1~1")
@example("9223372036854775808")
@example("9" * 19)
@example("9" * 128)
@example("9" * 5000)
@example("1~" + "1," * 100)
@example("5~9999999999999999999")
@example("9223372036854775807~1-9223372036854775807")
@example("\x00")
@example("\udcff")
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    try:
        cursor = Cursor.parse(text)
    except CursorError:
        return
    assert re.fullmatch("[0-9~,-]+", text, re.ASCII)
    assert 0 <= cursor.high <= MAX_ID
    assert all(1 <= first <= last < cursor.high for first, last in cursor.gaps)
    is_sound(cursor)


@pytest.mark.parametrize(
    "text",
    ["", "abc", "-1", "1.5", "1 ", "\u0663", "5~0", "5~1-0", "5~5", "5~4-2", "5~", "5~1,", str(MAX_ID + 1), "1" * 20],
)
def test_refused(text: str) -> None:
    with pytest.raises(CursorError):
        Cursor.parse(text)


def test_the_highest_id_is_taken() -> None:
    assert Cursor.parse(str(MAX_ID)) == Cursor(MAX_ID)


# ------------------------------------------------------------------ the operations


@given(small())
def test_offered(cursor: Cursor) -> None:
    gaps = {n for first, last in cursor.gaps for n in range(first, last + 1)}
    assert offered(cursor) == set(range(1, cursor.high + 1)) - gaps


@given(small(), small())
def test_between_two(a: Cursor, b: Cursor) -> None:
    assert a.covers(b) == (offered(a) >= offered(b))
    missing = {n for first, last in a.missing(b) for n in range(first, last + 1)}
    assert missing == offered(b) - offered(a)
    assert offered(a | b) == offered(a) | offered(b)
    assert offered(a & b) == offered(a) & offered(b)
    is_sound(a | b)
    is_sound(a & b)


@given(small(), st.integers(0, TOP + 4))
def test_up_to_an_id(cursor: Cursor, number: int) -> None:
    clipped = cursor.clip(number)
    assert offered(clipped) == {n for n in offered(cursor) if n <= number}
    is_sound(clipped)
    missing = {n for first, last in cursor.missing_up_to(number) for n in range(first, last + 1)}
    assert missing == set(range(1, number + 1)) - offered(cursor)


@given(small())
def test_start_and_itself(cursor: Cursor) -> None:
    assert cursor.covers(START)
    assert cursor | START == cursor
    assert cursor & START == START
    assert cursor | cursor == cursor & cursor == cursor
    assert not cursor.missing(cursor)
