"""A model of the log: what a reader can tell of its sequence, its locks and its table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import HealthCheck

from sse_pg.core.cursor import Cursor
from sse_pg.core.event import Event
from sse_pg.core.ranges import Ranges

EPOCH = 0
FOREVER = 2**62
#: Fewer than in the database, so that schedules come to the end of them.
MAX_WINDOWS = 4
ORDER_WAIT_S = 0.02
#: Schedules are long and many of their steps do not apply.
SUPPRESSED_CHECKS = [
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
]


@dataclass(eq=False)
class Tx:
    """A transaction that publishes: the windows it shows, the ids it drew."""

    bound: int
    windows: list[tuple[int, int]] = field(default_factory=list)
    publishing: bool = False
    stays_open: bool = False
    ids: list[int] = field(default_factory=list)


class Log:
    """The sequence, the locks and the table, as far as a reader can tell."""

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.running: list[Tx] = []
        self.committed: dict[int, Event] = {}
        self.transactions: list[list[int]] = []
        self.channel_of: dict[int, str] = {}

    def begin(self) -> Tx:
        """Read the bound of a first statement; its lock is not there yet."""
        tx = Tx(self.last)
        self.running.append(tx)
        return tx

    def lock(self, tx: Tx) -> None:
        if tx.stays_open:
            pass
        elif len(tx.windows) == MAX_WINDOWS or (tx.windows and tx.windows[-1][0] == tx.bound):
            tx.windows[-1] = (tx.windows[-1][0], FOREVER)
            tx.stays_open = True
        else:
            tx.windows.append((tx.bound, FOREVER))
        tx.publishing = True

    def draw(self, tx: Tx, count: int = 1, channel: str = "a") -> None:
        for _ in range(count):
            self.last += 1
            tx.ids.append(self.last)
            self.channel_of[self.last] = channel

    def close(self, tx: Tx) -> None:
        """End the statement: no id beyond the last value is its own."""
        if not tx.stays_open:
            tx.windows[-1] = (tx.windows[-1][0], self.last)
        tx.publishing = False
        tx.bound = -1

    def commit(self, tx: Tx) -> None:
        self.running.remove(tx)
        self.transactions.append(tx.ids)
        for number in tx.ids:
            self.committed[number] = Event(number, self.channel_of[number], "t", str(number), EPOCH)

    def roll_back(self, tx: Tx) -> None:
        self.running.remove(tx)

    def publish(self, count: int = 1, channel: str = "a") -> None:
        """Publish in one transaction that is over at once."""
        tx = self.begin()
        self.lock(tx)
        self.draw(tx, count, channel)
        self.commit(tx)

    def weave(self, fates: Iterable[str], channels: str = "a") -> None:
        """Let transactions draw one id each; c commits, r rolls back, o stays open."""
        started = []
        for place, fate in enumerate(fates):
            tx = self.begin()
            self.lock(tx)
            self.draw(tx, 1, channels[place % len(channels)])
            self.close(tx)
            started.append((tx, fate))
        for tx, fate in started:
            if fate == "c":
                self.commit(tx)
            elif fate == "r":
                self.roll_back(tx)

    def alive(self) -> Ranges:
        """Return the windows of the locks that are held."""
        return Ranges((low + 1, up) for tx in self.running for low, up in tx.windows)

    def start(self) -> Cursor:
        alive = self.alive()
        return Cursor(min(self.last, alive.spans[0][0] - 1) if alive else self.last)

    def rows(self, open_ids: Ranges, seen: int, limit: int) -> list[Event]:
        """Return what the statement tail_read does."""
        wanted = sorted(number for number in self.committed if number in open_ids or number > seen)
        return [self.committed[number] for number in wanted[:limit]]

    def end_all(self, fates: Iterable[bool]) -> None:
        for tx, commits in zip(list(self.running), fates, strict=False):
            (self.commit if commits else self.roll_back)(tx)
