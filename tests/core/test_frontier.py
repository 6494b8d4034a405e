"""The frontier against a model of the log, in random schedules of publishers, reads, clocks and resuming clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from support.log_model import EPOCH, FOREVER, ORDER_WAIT_S, SUPPRESSED_CHECKS, Log

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import Event
from sse_pg.core.frontier import Frontier
from sse_pg.core.ranges import NONE, Ranges


class Schedule(RuleBasedStateMachine):
    """Publishers and one tail, step by step, in any order; the checks are in ``finish_read`` and ``teardown``."""

    make: Callable[[Cursor, float], Frontier] = Frontier
    settles_when_cut_off = False
    reads_rows_first = False
    sound = False

    @initialize(last=st.sampled_from([0, 7, 2**31 - 3, 2**32 - 2, 2**53]), before=st.text("cro", max_size=4))
    def start(self, last: int, before: str) -> None:
        self.log = Log(last)
        self.log.weave(before)
        self.sound = True
        self.now = 100.0
        start = self.log.start()
        self.first = start.high
        self.frontier = type(self).make(start, ORDER_WAIT_S)
        self.phase = "idle"
        self.known_last = 0
        self.alive = NONE
        self.early: list[Event] = []
        self.sent: list[int] = []
        self.resume: list[tuple[Cursor, int]] = [(start, 0)]
        self.read_at: dict[int, float] = {}
        self.noticed: dict[int, float] = {}
        self.top = start.high

    # ------------------------------------------------------------ publishers

    @rule()
    def begins(self) -> None:
        self.log.begin()

    @rule(which=st.integers(0, 9), count=st.sampled_from([0, 1, 1, 2, 5]))
    def goes_on(self, which: int, count: int) -> None:
        """A publisher takes its next step: the bound, the lock, ids, the end of the statement."""
        if not self.log.running:
            return
        tx = self.log.running[which % len(self.log.running)]
        if not tx.publishing:
            if tx.bound < 0:
                tx.bound = self.log.last
            else:
                self.log.lock(tx)
        elif count:
            self.log.draw(tx, count)
        else:
            self.log.close(tx)

    @rule(which=st.integers(0, 9), commits=st.sampled_from([True, True, False]))
    def ends(self, which: int, commits: bool) -> None:
        if self.log.running:
            tx = self.log.running[which % len(self.log.running)]
            (self.log.commit if commits else self.log.roll_back)(tx)

    @rule(count=st.integers(1, 3))
    def skips(self, count: int) -> None:
        self.log.last += count

    @rule(count=st.integers(1, 3))
    def publishes(self, count: int) -> None:
        self.log.publish(count)

    @rule(fates=st.text("cro", min_size=1, max_size=12) | st.just("co" * 40) | st.just("c" + "ro" * 3 + "c"))
    def weave(self, fates: str) -> None:
        self.log.weave(fates)

    # ------------------------------------------------------------ the tail

    @rule(seconds=st.sampled_from([0.0, ORDER_WAIT_S / 3, ORDER_WAIT_S - 0.001, ORDER_WAIT_S, 3 * ORDER_WAIT_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        limit=st.sampled_from([FOREVER, FOREVER, 1, 2, 4]),
        settles=st.booleans(),
        twice=st.booleans(),
        releases=st.sampled_from([True, True, True, False]),
    )
    def read_goes_on(self, limit: int, settles: bool, twice: bool, releases: bool) -> None:
        """The tail takes its next step: the last id, the locks, the rows."""
        if self.phase == "idle":
            self.read_last()
        elif self.phase == "last":
            self.read_locks()
        else:
            self.finish_read(limit, settles, twice, releases)

    @rule(seconds=st.sampled_from([0.0, ORDER_WAIT_S / 3, ORDER_WAIT_S]), limit=st.sampled_from([FOREVER, FOREVER, 2]))
    def reads(self, seconds: float, limit: int) -> None:
        """The rest of a read, with nothing in between."""
        if self.phase == "idle":
            self.read_last()
        if self.phase == "last":
            self.read_locks()
        self.finish_read(limit, True, False, True)
        self.now += seconds

    def read_last(self) -> None:
        if self.reads_rows_first:
            self.early = self.log.rows(self.frontier.open, self.frontier.seen, FOREVER)
        self.known_last = self.log.last
        self.phase = "last"

    def read_locks(self) -> None:
        self.alive = self.log.alive()
        self.phase = "locks"

    def finish_read(self, limit: int, settles: bool, twice: bool, releases: bool) -> None:
        """Read the rows; the read may be cut off, repeated, or lost before anything is handed on."""
        self.phase = "idle"
        self.sound = False
        frontier = self.frontier
        rows = self.early if self.reads_rows_first else self.log.rows(frontier.open, frontier.seen, limit)
        knows = settles or bool(frontier.open)
        self._note(rows)
        frontier.feed(rows, self.now)
        if twice:
            frontier.feed(rows, self.now)
        if knows and (len(rows) < limit or self.settles_when_cut_off):
            frontier.settle(self.known_last, self.alive)
            dead = Ranges([(1, self.known_last)]) - self.alive
            assert not frontier.open & dead, "what cannot come any more is still waited for"
        if releases:
            self._release()
        self.sound = True

    def _note(self, rows: list[Event]) -> None:
        for event in rows:
            if event.id > self.top:
                for number in range(self.top + 1, event.id):
                    self.noticed[number] = self.now
                self.top = event.id
            self.read_at.setdefault(event.id, self.now)

    def _release(self) -> None:
        frontier = self.frontier
        released = frontier.release(self.now)
        ids = [event.id for event, _ in released]
        assert len({*ids, *self.sent}) == len(ids) + len(self.sent), "released twice"
        assert ids == sorted(ids), "out of order"
        for event, cursor in released:
            assert event.id in self.log.committed
            assert cursor.offered(event.id)
            self.sent.append(event.id)
            self.resume.append((cursor, len(self.sent)))
        self.resume.append((frontier.position, len(self.sent)))
        held = [number for number in self.read_at if number not in self.sent]
        assert frontier.holding == bool(held), "holding says something else"
        for number in held:
            assert self.now - self.read_at[number] < ORDER_WAIT_S, "held for longer than the wait"
            fresh = (i for i in self.noticed if i < number and self.now - self.noticed[i] < ORDER_WAIT_S)
            assert any(i in frontier.open for i in fresh), "held although no missing id below is fresh"

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        if not self.sound:
            return
        self.log.end_all([len(tx.ids) % 3 != 1 for tx in self.log.running])
        self.now += ORDER_WAIT_S
        self.known_last, self.alive = self.log.last, self.log.alive()
        self.reads_rows_first = False
        self.finish_read(FOREVER, True, False, True)
        self.now += ORDER_WAIT_S
        self._release()
        log, frontier = self.log, self.frontier
        expected = {number for number in log.committed if number > self.first}
        assert sorted(self.sent) == sorted(expected), "lost or doubled"
        assert not frontier.open
        assert not frontier.holding
        assert frontier.position == Cursor(log.last), "not at the end"
        place = {number: at for at, number in enumerate(self.sent)}
        for ids in log.transactions:
            places = [place[number] for number in ids if number in place]
            assert places == sorted(places), "one transaction out of order"
        for cursor, count in self.resume:
            missing = expected.difference(self.sent[:count])
            back = Cursor.parse(cursor.text)
            assert {number for number in expected if not cursor.offered(number)} == missing, "a wrong cursor"
            repeats = {number for number in expected if not back.offered(number)}
            assert repeats == missing or (back != cursor and repeats > missing), "a wrong text"


Schedule.TestCase.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None, suppress_health_check=SUPPRESSED_CHECKS
)


class TestSchedule(Schedule.TestCase):
    """The frontier keeps its promises in every schedule."""


# ------------------------------------------------------------------ the checks have teeth


class IgnoresGaps(Frontier):
    def release(self, now: float) -> list[tuple[Event, Cursor]]:
        return [(event, Cursor(cursor.high)) for event, cursor in super().release(now)]


class ForgetsOpenIds(Frontier):
    def feed(self, rows: Iterable[Event], now: float) -> None:
        super().feed([event for event in rows if event.id > self.seen], now)


class BuriesEverything(Frontier):
    def settle(self, last: int, alive: Ranges) -> None:
        super().settle(last, NONE)


class BuriesOneTooMany(Frontier):
    def settle(self, last: int, alive: Ranges) -> None:
        super().settle(last, Ranges((low + 1, up) for low, up in alive))


class NeverBuries(Frontier):
    def settle(self, last: int, alive: Ranges) -> None:
        pass


class WaitsTooLong(Frontier):
    def __init__(self, start: Cursor, wait: float) -> None:
        super().__init__(start, 2 * wait)


class TakesAllTwice(Frontier):
    def feed(self, rows: Iterable[Event], now: float) -> None:
        rows = list(rows)
        super().feed(rows, now)
        self._held.extend(rows[:1])


class HighestFirst(Frontier):
    def release(self, now: float) -> list[tuple[Event, Cursor]]:
        return super().release(now)[::-1]


class LateEventStaysAGap(Frontier):
    def release(self, now: float) -> list[tuple[Event, Cursor]]:
        before = self.position
        released = super().release(now)
        self.position = Cursor(self.position.high, self.position.gaps | before.gaps)
        return released


def fails(complaint: str, **changes: object) -> None:
    """Run the schedules with something broken; they must notice."""
    machine = type("Broken", (Schedule,), changes)
    with pytest.raises(AssertionError, match=complaint):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=400,
                stateful_step_count=50,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                print_blob=False,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (IgnoresGaps, "a wrong cursor"),
        (ForgetsOpenIds, "lost or doubled|holding says"),
        (BuriesEverything, "lost or doubled|a wrong cursor"),
        (BuriesOneTooMany, "lost or doubled|a wrong cursor"),
        (NeverBuries, "still waited for"),
        (WaitsTooLong, "held for longer"),
        (TakesAllTwice, "released twice"),
        (HighestFirst, "out of order"),
        (LateEventStaysAGap, "a wrong cursor|not at the end"),
    ],
)
def test_a_broken_frontier_is_caught(broken: type[Frontier], complaint: str) -> None:
    fails(complaint, make=staticmethod(broken))


def test_settling_after_a_read_that_was_cut_off_is_caught() -> None:
    fails("lost or doubled|a wrong cursor", settles_when_cut_off=True)


def test_reading_the_rows_before_the_locks_is_caught() -> None:
    fails("lost or doubled|a wrong cursor", reads_rows_first=True)


# ------------------------------------------------------------------ by hand


def event(number: int) -> Event:
    return Event(number, "a", "t", "{}", EPOCH)


def ids(released: list[tuple[Event, Cursor]]) -> list[int]:
    return [event.id for event, _ in released]


def texts(released: list[tuple[Event, Cursor]]) -> list[str]:
    return [cursor.text for _, cursor in released]


def test_in_order_without_gaps() -> None:
    frontier = Frontier(Cursor(10), ORDER_WAIT_S)
    frontier.feed([event(11), event(12)], 0)
    released = frontier.release(0)
    assert texts(released) == ["11", "12"]
    assert not frontier.holding


def test_a_gap_that_fills_in_time_is_not_seen() -> None:
    frontier = Frontier(Cursor(10), ORDER_WAIT_S)
    frontier.feed([event(11), event(13)], 0)
    assert ids(frontier.release(0)) == [11]
    assert frontier.holding
    frontier.feed([event(12)], ORDER_WAIT_S / 2)
    assert texts(frontier.release(ORDER_WAIT_S / 2)) == ["12", "13"]


def test_a_gap_that_dies_lets_go_at_once() -> None:
    frontier = Frontier(Cursor(10), ORDER_WAIT_S)
    frontier.feed([event(12)], 0)
    assert ids(frontier.release(0)) == []
    frontier.settle(12, NONE)
    assert texts(frontier.release(0)) == ["12"]


def test_a_gap_that_lasts_is_carried_in_the_cursor_until_it_fills() -> None:
    frontier = Frontier(Cursor(10), ORDER_WAIT_S)
    frontier.feed([event(12)], 0)
    frontier.settle(12, Ranges([(11, 11)]))
    assert ids(frontier.release(0)) == []
    assert texts(frontier.release(ORDER_WAIT_S)) == ["12~1"]
    frontier.feed([event(13)], 5)
    assert texts(frontier.release(5)) == ["13~2"]
    frontier.feed([event(11)], 6)
    assert texts(frontier.release(6)) == ["13"]


def test_an_old_gap_does_not_hold_what_comes_later() -> None:
    frontier = Frontier(Cursor(10), ORDER_WAIT_S)
    frontier.feed([event(12)], 0)
    frontier.release(ORDER_WAIT_S)
    for number in range(13, 40):
        frontier.feed([event(number)], number)
        assert ids(frontier.release(number)) == [number]


def test_dead_between_two_alive() -> None:
    frontier = Frontier(Cursor(10), 0)
    frontier.feed([event(15)], 0)
    frontier.settle(15, Ranges([(11, 11), (14, 14)]))
    assert texts(frontier.release(0)) == ["15~1,2"]


def test_a_quiet_position_moves_with_the_sequence() -> None:
    frontier = Frontier(Cursor(10), ORDER_WAIT_S)
    frontier.settle(20, NONE)
    assert frontier.release(0) == []
    assert frontier.position == Cursor(20)
    frontier.settle(30, Ranges([(26, FOREVER)]))
    frontier.release(0)
    assert frontier.position == Cursor(25)


def test_a_purge_beyond_what_was_read() -> None:
    frontier = Frontier(Cursor(10), ORDER_WAIT_S)
    frontier.feed([event(15)], 0)
    assert frontier.misses_up_to(12)
    frontier.expire(12)
    assert frontier.position == Cursor(12)
    assert not frontier.misses_up_to(12)
    frontier.settle(15, NONE)
    assert texts(frontier.release(0)) == ["15"]


def test_a_purge_leaves_what_is_held_to_be_handed_on() -> None:
    frontier = Frontier(Cursor(10), ORDER_WAIT_S)
    frontier.feed([event(12), event(14)], 0)
    assert ids(frontier.release(0)) == []
    frontier.expire(20)
    assert frontier.position == Cursor(20, Ranges([(12, 12), (14, 14)]))
    assert texts(frontier.release(0)) == ["20~6", "20"]


def test_a_purge_of_an_old_gap() -> None:
    frontier = Frontier(Cursor(10), ORDER_WAIT_S)
    frontier.feed([event(12), event(14)], 0)
    frontier.release(ORDER_WAIT_S)
    frontier.expire(11)
    assert frontier.position == Cursor(14, Ranges([(13, 13)]))
    assert not frontier.misses_up_to(12)
    assert frontier.misses_up_to(13)
