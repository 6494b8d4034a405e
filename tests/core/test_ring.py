"""The ring against a model: what a reader has missed, or None if the ring begins too late."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.log_model import EPOCH, Log

from sse_pg.core import ring as ring_module
from sse_pg.core.cursor import START, Cursor
from sse_pg.core.envelope import WHOLE, CloudEvent
from sse_pg.core.event import Event, Unfollowed
from sse_pg.core.frontier import Frontier
from sse_pg.core.ranges import Ranges
from sse_pg.core.ring import Entry, Ring

ALL = ("a", "b")


def event(number: int, channel: str = "a", payload: str = "{}") -> Event:
    return Event(number, channel, "t", payload, EPOCH)


def ids(entries: list[Entry] | None) -> list[int] | None:
    return None if entries is None else [entry.event.id for entry in entries]


def filled(count: int, most: int) -> Ring:
    ring = Ring(most, 10**9, START)
    for number in range(1, count + 1):
        ring.add(event(number), Cursor(number))
    return ring


def test_the_base_is_the_position_before_the_oldest_entry() -> None:
    ring = filled(10, 4)
    assert len(ring) == 4
    assert ring.base == Cursor(6)
    assert ids(ring.since(Cursor(6), ALL)) == [7, 8, 9, 10]
    assert ring.since(Cursor(5), ALL) is None
    assert ids(ring.since(Cursor(9), ALL)) == [10]
    assert ids(ring.since(Cursor(10), ALL)) == []


def test_no_more_bytes_than_allowed() -> None:
    ring = Ring(1000, 5000, START)
    for number in range(1, 51):
        ring.add(event(number, payload='"' + "x" * 300 + '"'), Cursor(number))
    assert 1 <= len(ring) <= 5
    assert ring.base == Cursor(50 - len(ring))


def test_one_event_larger_than_the_ring_empties_it() -> None:
    ring = Ring(1000, 5000, START)
    ring.add(event(1), Cursor(1))
    ring.add(event(2, payload='"' + "x" * 5000 + '"'), Cursor(2))
    assert len(ring) == 0
    assert ring.since(Cursor(1), ALL) is None
    assert ids(ring.since(Cursor(2), ALL)) == []
    ring.add(event(3), Cursor(3))
    assert ids(ring.since(Cursor(2), ALL)) == [3]


def test_a_ring_of_nothing_keeps_nothing() -> None:
    ring = filled(3, 0)
    assert len(ring) == 0
    assert ring.since(Cursor(2), ALL) is None
    assert ids(ring.since(Cursor(3), ALL)) == []


def test_an_unknown_channel_has_missed_nothing() -> None:
    assert ids(filled(3, 9).since(START, ("elsewhere",))) == []


def test_each_wire_form_is_made_once() -> None:
    entry = filled(1, 9).since(START, ALL)[0]  # type: ignore[index]
    forms = [None, WHOLE, CloudEvent("urn:x"), CloudEvent("urn:y")]
    made = [entry.frame(form) for form in forms]
    assert len(set(made)) == 4
    assert all(entry.frame(form) is one for form, one in zip(forms, made, strict=True))
    assert entry.frame(CloudEvent("urn:x")) is made[2]


@given(
    st.lists(st.text("cro", min_size=1, max_size=6), min_size=1, max_size=8),
    st.integers(0, 12),
    st.sets(st.sampled_from(ALL), min_size=1),
    st.data(),
)
def test_since_is_what_was_missed(rounds: list[str], most: int, channels: set[str], data: st.DataObject) -> None:
    """Readers hold every position that existed; some events come late, out of the order of their ids."""
    log = Log()
    frontier = Frontier(START, 0)
    ring = Ring(most, 10**9, START)
    handed: list[int] = []
    readers: list[tuple[Cursor, int]] = [(START, 0)]
    for fates in rounds:
        log.weave(fates, channels="ab")
        for tx in list(log.running):
            if data.draw(st.booleans()):
                log.commit(tx)
        alive, last = log.alive(), log.last
        frontier.feed(log.rows(frontier.open, frontier.seen, 10**9), 0)
        frontier.settle(last, alive)
        for released, cursor in frontier.release(0):
            ring.add(released, cursor)
            handed.append(released.id)
            readers.append((cursor, len(handed)))
        readers.append((frontier.position, len(handed)))
    for cursor, count in readers:
        # Also in the printed form, as far as it is not lowered.
        assert Cursor.parse(cursor.text) == cursor
        found = ring.since(cursor, channels)
        kept = len(handed) - count <= most
        assert (found is not None) == kept
        if kept:
            assert ids(found) == [number for number in handed[count:] if log.channel_of[number] in channels]


def test_what_is_made_of_an_event_counts() -> None:
    """A text has up to four bytes a character in memory, and each form of the block counts when it is made."""
    ring = Ring(1000, 100_000, START)
    for number in range(1, 101):
        ring.add(event(number, payload='"' + "x" * 1000 + '"'), Cursor(number))
    plain = len(ring)
    assert 50 < plain < 70
    for number in range(101, 201):
        ring.add(event(number, payload='"' + "x" * 1000 + '"'), Cursor(number)).frame(None)
    assert plain / 2 < len(ring) < plain * 0.7
    for number in range(201, 301):
        ring.add(event(number, payload='"' + "x" * 999 + '🎉"'), Cursor(number))
    assert plain / 4 < len(ring) < plain / 2
    assert ring._held.bytes <= 100_000
    held = ring._held
    evicted = ring.add(event(301), Cursor(301))
    for number in range(302, 402):
        ring.add(event(number, payload='"' + "x" * 1000 + '"'), Cursor(number))
    before = held.bytes
    evicted.frame(None)
    assert held.bytes == before, "the ring no longer has it"


# ------------------------------------------------------------------ what was read without its payload


def passed(number: int, channel: str) -> Unfollowed:
    return Unfollowed(number, channel, "t", EPOCH)


def test_who_lacks_an_event_without_its_payload_is_behind() -> None:
    ring = filled(3, 9)
    ring.pass_over(passed(4, "b"), Cursor(4))
    ring.add(event(5, "b"), Cursor(5))
    assert ids(ring.since(START, ("a",))) == [1, 2, 3], "another channel"
    assert ring.since(Cursor(3), ("b",)) is None
    assert ring.since(Cursor(3), ALL) is None
    assert ids(ring.since(Cursor(4), ALL)) == [5]


def test_a_late_id_without_its_payload() -> None:
    """It fills a gap: who was offered a higher id may lack it."""
    ring = filled(1, 9)
    gap = Cursor(3, Ranges([(2, 2)]))
    ring.add(event(3), gap)
    ring.pass_over(passed(2, "a"), Cursor(3))
    assert ring.since(gap, ALL) is None
    assert ids(ring.since(Cursor(3), ALL)) == []


def test_notes_are_forgotten_with_what_is_older() -> None:
    ring = Ring(2, 10**9, START)
    for number in range(1, 101):
        ring.pass_over(passed(3 * number - 2, f"c{number}"), Cursor(3 * number - 2))
        ring.add(event(3 * number - 1), Cursor(3 * number - 1))
        ring.pass_over(passed(3 * number, "b"), Cursor(3 * number))
    assert len(ring._notes) == 3
    assert ring.since(Cursor(296), ("c99",)) == []
    assert ring.since(ring.base, ("c98",)) == []
    assert ring.since(ring.base, ("c99",)) is None
    assert ring.since(Cursor(295), ("c99",)) == []
    assert ring.since(Cursor(299), ("b",)) is None
    assert ring.since(Cursor(300), ("b",)) == []


def test_the_bytes_of_notes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the ring begins later: after the oldest note, and without the events before it."""
    monkeypatch.setattr(ring_module, "MAX_NOTES_BYTES", 10_000)
    ring = filled(1, 1000)
    for number in range(2, 1002, 2):
        ring.pass_over(passed(number, f"{number}" * 20), Cursor(number))
        ring.add(event(number + 1), Cursor(number + 1))
    assert 10 < len(ring._notes) < 25
    assert ring._notes_bytes == sum(ring_module.NOTE_BYTES + sys.getsizeof(name) for name in ring._notes) <= 10_000
    first = next(iter(ring._notes.values())).cursor.high
    assert ring.base == Cursor(first - 2)
    assert ring.since(Cursor(first - 3), ("a",)) is None
    assert ids(ring.since(ring.base, ("a",))) == list(range(first - 1, 1002, 2))
    ring.pass_over(passed(1002, f"{first}" * 20), Cursor(1002))
    assert ring.base == Cursor(first - 2), "a channel that has a note gets no second one"
