"""A standby is promoted, or a primary recovers from a crash: no id is handed out twice, whoever publishes first."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
from support import replication
from support.replication import Node, caught_up, cut_off, publish

pytestmark = [pytest.mark.oldest, pytest.mark.timeout(120)]


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    """A primary and its standby."""
    with replication.pair() as made:
        yield made


class Writers:
    """Sessions that publish from the moment at which the database takes it, each in a transaction of its own."""

    def __init__(self, node: Node, count: int = 8, each: int = 20) -> None:
        self._url = node.url
        self._each = each
        self.ids: list[int] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as conn:
            left = self._each
            while left:
                try:
                    rows = conn.execute("SELECT sse_pg.publish('a', 't', '1') FROM generate_series(1, 3)").fetchall()
                except psycopg.errors.ReadOnlySqlTransaction:
                    continue
                self.ids += [row[0] for row in rows]
                left -= 1

    def ended(self) -> list[int]:
        for thread in self._threads:
            thread.join(60)
        return self.ids


def test_who_publishes_at_the_moment_of_the_promotion_reuses_no_id(nodes: tuple[Node, Node]) -> None:
    primary, standby = nodes
    publish(primary, 10)
    primary.sql("SELECT sse_pg.check_epoch()")  # a server has been there
    primary.sql("UPDATE sse_pg.log SET settled_to = 8, open_first = '{3}', open_last = '{4}'")
    caught_up(primary, standby)
    cut_off(standby)
    lost = publish(primary, 200)
    primary.kill()
    writers = Writers(standby)
    standby.promote()
    ids = writers.ended()
    assert len(ids) == len(set(ids)) == 8 * 20 * 3
    assert min(ids) > max(lost) + 900_000_000
    # All of them found one jump, which a server then notes, and what was certain before it.
    assert max(ids) - min(ids) < 1_000_000
    assert standby.sql("SELECT sse_pg.check_epoch()") == [(True,)]
    assert standby.sql("SELECT sse_pg.check_epoch()") == [(False,)]
    assert standby.sql("SELECT starts_at, settled_to, open_first, open_last FROM sse_pg.epochs") == [
        (min(ids) - 1, 8, [3], [4])
    ]


def test_who_reads_before_a_server_has_looked_is_told(nodes: tuple[Node, Node]) -> None:
    primary, standby = nodes
    publish(primary, 10)
    primary.sql("SELECT sse_pg.check_epoch()")
    primary.sql("UPDATE sse_pg.log SET settled_to = 8")
    caught_up(primary, standby)
    cut_off(standby)
    (lost,) = publish(primary)
    primary.kill()
    standby.promote()
    read = "SELECT id, event_type, payload FROM sse_pg.read(%s, '{a}')"
    gap = {"reason": "unknown", "after": str(lost), "before": "8"}
    for _ in range(2):
        rows = standby.sql(read, str(lost))
        assert rows[0] == (None, "sse-pg.gap", gap)
        assert [row[0] for row in rows[1:3]] == [9, 10]
        assert standby.sql(read, "9") != []  # 9 was not certain either
        assert [row[0] for row in standby.sql(read, "8")][:2] == [9, 10]
        (new,) = publish(standby)
    assert standby.sql(read, str(new)) == []
    assert standby.sql("SELECT count(*) FROM sse_pg.epochs") == [(0,)]


def test_a_purge_before_a_server_has_looked_counts_no_jump(nodes: tuple[Node, Node]) -> None:
    primary, standby = nodes
    primary.sql("SELECT sse_pg.make_partitions(2, 10)")
    publish(primary, 30)
    primary.sql("SELECT sse_pg.check_epoch()")
    primary.sql("UPDATE sse_pg.log SET settled_to = 30")
    caught_up(primary, standby)
    primary.kill()
    standby.promote()
    publish(standby)
    standby.sql("SELECT sse_pg.purge(keep_events => 40)")
    assert standby.sql("SELECT count(*) FROM sse_pg.events") == [(31,)]


def test_a_crash_passes_no_id_and_begins_no_epoch() -> None:
    with replication.cluster.directory() as room:
        node = Node(room, replication.cluster.binaries(), {"max_prepared_transactions": "2"})
        node.start()
        try:
            replication.migrate(node.url)
            publish(node)
            node.sql("SELECT sse_pg.check_epoch()")
            (last,) = publish(node)
            for _ in range(2):
                node.kill()
                node.start()
                assert node.sql("SELECT sse_pg.wire_is_intact()") == [(False,)]
                ids = Writers(node, each=2).ended()
                assert sorted(ids)[0] > last
                assert max(ids) < last + 200  # a sequence skips up to 32 ids in a crash
                assert len(ids) == len(set(ids))
                last = max(ids)
                assert node.sql("SELECT sse_pg.check_epoch()") == [(False,)]
                assert node.sql("SELECT sse_pg.wire_is_intact()") == [(True,)]
            assert node.sql("SELECT count(*) FROM sse_pg.epochs") == [(0,)]
        finally:
            node.stop()


def test_a_first_publisher_that_stays_open_keeps_nobody_waiting(nodes: tuple[Node, Node]) -> None:
    primary, standby = nodes
    publish(primary)
    primary.sql("SELECT sse_pg.check_epoch()")
    caught_up(primary, standby)
    primary.kill()
    standby.promote()
    with psycopg.connect(standby.url) as first:
        first.execute("CREATE TEMPORARY TABLE other_work ()")  # so publishing is not its first write
        first.execute("SELECT sse_pg.publish('a', 't', '1')")
        (number,) = publish(standby)
        assert standby.sql("SELECT sse_pg.check_epoch()") == [(True,)]
        first.rollback()
    assert number > 1_000_000_000
    assert publish(standby) == [number + 1]


def test_a_promotion_that_follows_a_promotion(nodes: tuple[Node, Node]) -> None:
    primary, standby = nodes
    publish(primary)
    primary.sql("SELECT sse_pg.check_epoch()")
    caught_up(primary, standby)
    primary.kill()
    standby.promote()
    (first,) = publish(standby)  # the jump is not noted yet
    standby.kill()
    (standby.files / "standby.signal").touch()  # as a copy of it would be
    standby.start()
    standby.promote()
    (second,) = publish(standby)
    assert second > first + 900_000_000
    assert standby.sql("SELECT sse_pg.check_epoch()") == [(True,)]
    assert standby.sql("SELECT starts_at, settled_to FROM sse_pg.epochs") == [(second - 1, 0)]
