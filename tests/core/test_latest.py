"""The cursors of a stream that begins with the last events of its channels, against sets of ids."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from sse_pg.core.cursor import Cursor, trimmed
from sse_pg.core.latest import MAX_SPANS, Latest
from sse_pg.core.ranges import Ranges

Logs = st.dictionaries(st.integers(1, 120), st.sampled_from("abc"), max_size=80)


def newest(log: Mapping[int, str], position: Cursor, most: int) -> dict[str, list[int]]:
    """Return what the database does."""
    found: dict[str, list[int]] = {channel: [] for channel in "abc"}
    for number in sorted(log, reverse=True):
        if position.offered(number) and len(found[log[number]]) < most:
            found[log[number]].append(number)
    return found


def lacked(cursor: Cursor, log: Mapping[int, str]) -> list[int]:
    return sorted(number for number in log if not cursor.offered(number))


@given(Logs, st.integers(0, 120), st.sets(st.integers(1, 120), max_size=5), st.integers(1, 12))
def test_wherever_it_is_cut_it_lacks_the_rest(log: dict[int, str], high: int, gaps: set[int], most: int) -> None:
    position = trimmed(high, Ranges((gap, gap) for gap in gaps))
    wanted = newest(log, position, most)
    later = {number for number in log if not position.offered(number)}
    first = sorted(number for numbers in wanted.values() for number in numbers)
    latest = Latest(position, wanted, most)
    assert lacked(latest.cursor, log) == sorted([*first, *later])
    while not latest.is_done:
        channels, ids = latest.next(2)
        among = [number for number in log if number in ids]
        assert sorted({log[number] for number in among}) == channels
        assert len(ids) == len(among)
        latest.note_sent(max(among))
        assert lacked(latest.cursor, log) == sorted({number for number in first if number > max(among)} | later)
        assert latest.cursor == latest.after(max(among))
    assert latest.cursor == latest.base
    # From there on nothing is left out: each event from here to the position is wanted.
    assert {number for number in log if number > latest.base.high} - later <= set(first)


@given(st.integers(1, 400), st.integers(0, 400))
def test_with_more_than_a_cursor_can_say_it_lacks_more_and_never_less(channels: int, sent: int) -> None:
    # Channel n has the events 4n and 4n + 2, and the last one of each is wanted; so what is wanted is scattered.
    wanted = {f"c{n}": [4 * n + 2] for n in range(1, channels + 1)}
    latest = Latest(Cursor(4 * channels + 2), wanted, 1)
    latest.note_sent(4 * sent + 2)
    cursor = latest.cursor
    rest = [number for (number,) in wanted.values() if number > 4 * sent + 2]
    assert not any(cursor.offered(number) for number in rest)
    scattered = [4 * n + 2 for n in range(1, channels)]
    assert all(cursor.offered(number) for number in scattered if number <= 4 * sent + 2)
    assert Cursor.parse(cursor.text) & cursor == Cursor.parse(cursor.text)
    if len(rest) < MAX_SPANS:
        assert all(cursor.offered(4 * n) for n in range(1, channels + 1))


def test_one_channel_needs_no_gaps() -> None:
    latest = Latest(Cursor(90), {"a": [80, 61, 7]}, 3)
    assert latest.is_done
    assert latest.cursor == Cursor(6)


def test_a_channel_with_few_events_has_no_others_that_must_be_left_out() -> None:
    assert Latest(Cursor(90), {"a": [80, 61], "b": [70], "c": []}, 3).cursor == Cursor(60)
    assert Latest(Cursor(90), {"a": []}, 3).cursor == Cursor(90)
