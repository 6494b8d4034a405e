"""What is remembered of the events that were read last."""

from __future__ import annotations

import pytest

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import Unfollowed
from sse_pg.core.ranges import Ranges
from sse_pg.core.recent import Recent


def _events(*numbers: int) -> list[Unfollowed]:
    return [Unfollowed(number, "a", "t", 1000 + number) for number in numbers]


def test_what_is_not_certain_is_returned_with_its_time() -> None:
    recent = Recent(0)
    recent.add(_events(1, 2, 4))
    recent.add(_events(3, 5))
    assert recent.beyond(Cursor(3), Cursor(5)) == {4: 1004, 5: 1005}
    assert recent.beyond(Cursor.parse("4~2"), Cursor(5)) == {2: 1002, 5: 1005}
    recent.drop(Ranges([(4, 4)]))
    assert recent.beyond(Cursor(3), Cursor(5)) == {5: 1005}


@pytest.mark.parametrize(
    ("certain", "position", "read"),
    [
        ("10", "12", {11: 1011, 12: 1012}),
        ("9", "12", None),  # 10 was handed on before this began
        ("10~2", "12", None),
        ("10~2", "12~4", {11: 1011, 12: 1012}),  # 8 was not handed on
    ],
)
def test_what_was_handed_on_before_it_began(certain: str, position: str, read: dict[int, int] | None) -> None:
    recent = Recent(10)
    recent.add(_events(11, 12))
    assert recent.beyond(Cursor.parse(certain), Cursor.parse(position)) == read


def test_an_event_that_came_late_is_remembered() -> None:
    recent = Recent(10)
    recent.add(_events(11, 7))
    assert recent.beyond(Cursor.parse("10~3"), Cursor(11)) == {7: 1007, 11: 1011}


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse_pg.core.recent.KEPT_EVENTS", 3)
    recent = Recent(0)
    recent.add(_events(1, 2, 9, 3, 4, 5))
    assert len(recent) == 6
    recent.add(_events(6))
    assert len(recent) == 3
    assert recent.beyond(Cursor(9), Cursor(9)) == {}
    assert recent.beyond(Cursor(8), Cursor(9)) is None
