"""The checker: every client's record against the table."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import psycopg

from sse_pg.core.cursor import Cursor
from torture.erasures import KEPT
from torture.readers import Reader, checksum
from torture.workers import CONSUMERS, Worker
from torture.writers import Answers

#: Keeps a copy of every event, in its own transaction, so that what is purged is known to the checker.
KEEP_COPIES = """
    CREATE TABLE copies (id bigint, channel text, payload text, headers text);
    CREATE FUNCTION keep_copy() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.copies VALUES (NEW.id, NEW.channel, NEW.payload::text, NEW.headers::text);
        RETURN NULL;
    END $$;
    CREATE TRIGGER keep_copy AFTER INSERT ON sse_pg.events FOR EACH ROW EXECUTE FUNCTION keep_copy();
"""
EVENTS = "SELECT id, channel, payload::text, headers::text FROM sse_pg.events WHERE payload ? 'm' ORDER BY id"
CONSUMER_CURSOR = "SELECT cursor FROM sse_pg.consumers WHERE name = %s"
COPIES = "SELECT id, channel, payload, headers FROM copies ORDER BY id"


class Row(NamedTuple):
    """A marked event, as it is in the table, or was until it was purged."""

    id: int
    channel: str
    checksum: int
    checksum_with_headers: int
    writer: int
    transaction: int
    place: int


@dataclass
class Report:
    """The figures of a run. A run is good when ``faults`` is empty."""

    seed: int
    events: int = 0
    delivered: int = 0
    connects: int = 0
    lost: int = 0
    doubled: int = 0
    doubled_full_cursor: int = 0
    altered: int = 0
    unordered: int = 0
    not_in_table: int = 0
    http_lost: int = 0
    http_unasked: int = 0
    http_unknown: int = 0
    ids_with_gaps: int = 0
    gaps_told: int = 0
    """Gap events without a reason: nothing between their cursors was purged, or something else was."""
    gaps_expired: int = 0
    """Gap events about events that were purged."""
    began_late: int = 0
    """Readers that came late and began with the last events of their channels."""
    unwanted: int = 0
    """Events that late readers have although they asked for the last ones only."""
    too_few: int = 0
    """Late readers that began with fewer events of a channel than they asked for."""
    stopped: int = 0
    """Readers of channels that ended, which got 204."""
    stopped_wrongly: int = 0
    """What is wrong with what these have."""
    announced: int = 0
    """Events that readers lack because they were purged, as such a gap event has said."""
    purged_to: int = 0
    deleted: set[int] = field(default_factory=set, repr=False)
    """The ids that were deleted row by row: erased, or no longer kept in their channel."""
    erased: int = 0
    served_late: int = 0
    """Deleted events that clients got from a server that had a second to forget them."""
    consumed: int = 0
    """Events that workers of named consumers took and committed."""
    worker_failures: int = 0
    """Batches that were rolled back, and connections that were lost."""
    consumer_lost: int = 0
    consumer_doubled: int = 0
    consumer_announced: int = 0
    """Events that consumers lack because they were purged, as a gap has said."""
    faults_injected: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many errors there were that must not happen."""
        return (
            self.lost
            + self.doubled
            + self.altered
            + self.unordered
            + self.not_in_table
            + self.http_lost
            + self.http_unasked
            + self.gaps_told
            + self.served_late
            + self.unwanted
            + self.too_few
            + self.stopped_wrongly
            + self.consumer_lost
            + self.consumer_doubled
        )


def table(conninfo: str, *, copies: bool = False) -> dict[int, Row]:
    """Read every marked event; ``copies``: also those that are only among the copies."""
    rows: dict[int, Row] = {}
    with psycopg.connect(conninfo) as conn, conn.cursor("all") as cursor:
        cursor.itersize = 20000
        for number, channel, payload, headers in cursor.execute(COPIES if copies else EVENTS):
            event = json.loads(payload)
            if event["m"] in rows:
                raise AssertionError(f"the table holds mark {event['m']} twice")
            text = payload.encode()
            rows[event["m"]] = Row(
                number,
                channel,
                checksum(text),
                checksum(text, (headers or "").encode()),
                event["m"] >> 32,
                event["t"],
                event["n"],
            )
    return rows


def purged_to(conninfo: str) -> int:
    """Return up to which id the log was purged."""
    with psycopg.connect(conninfo) as conn:
        ((number,),) = conn.execute("SELECT purged_to FROM sse_pg.log").fetchall()
        return int(number)


def check_workers(report: Report, rows: dict[int, Row], workers: list[Worker], conninfo: str) -> None:
    """Count what the consumers lack. What came twice, the workers saw: their table accepts each event once."""
    report.worker_failures = sum(worker.failures for worker in workers)
    report.consumer_doubled = sum(worker.doubled for worker in workers)
    with psycopg.connect(conninfo) as conn:
        for name in {worker.name for worker in workers}:
            taken = {number for (number,) in conn.execute("SELECT id FROM consumed WHERE consumer = %s", [name])}
            said = conn.execute("SELECT after, before FROM consumer_gaps WHERE consumer = %s", [name]).fetchall()
            gaps = [Cursor.parse(after).missing(Cursor.parse(before)) for after, before in said]
            # The gap of a channel with its own retention comes after the events of others below its newest deleted one.
            kept_to = max((Cursor.parse(before).high for _, before in said), default=0)
            missing = {
                row.id
                for row in rows.values()
                if row.channel in CONSUMERS[name] and row.id not in taken and not _is_erased(report, row)
            }
            kept = {row.id for row in rows.values() if row.channel == KEPT}
            announced = {
                number
                for number in missing
                if (number <= report.purged_to or number in report.deleted)
                and (any(number in gap for gap in gaps) or (number in kept and number <= kept_to))
            }
            report.consumed += len(taken)
            report.consumer_announced += len(announced)
            report.consumer_lost += len(missing - announced)
            if missing - announced:
                # If the cursor does not have these events yet, they are not lost: the consumer was held up.
                ((cursor,),) = conn.execute(CONSUMER_CURSOR, [name]).fetchall() or [("not there",)]
                lacking = sorted(missing - announced)[:3]
                report.examples.append(f"consumer {name} lacks {lacking}; its cursor is {cursor}")


def check(report: Report, rows: dict[int, Row], readers: list[Reader], answers: Answers) -> Report:
    """Count, in a report, what the records of the readers lack or have twice."""
    report.events = len(rows)
    for number, reader in enumerate(readers):
        channels = set(reader.channels)
        expected = {mark for mark, row in rows.items() if reader.wants(row.id, row.channel)}
        counts = Counter(reader.marks)
        missing = expected - counts.keys()
        missing = {m for m in missing if not _is_erased(report, rows[m]) and rows[m].id not in reader.gone}
        lost_to = max((row.id for row in rows.values() if row.channel == KEPT and row.id in report.deleted), default=0)
        announced = _announced(
            report,
            reader,
            number,
            [(mark, rows[mark].id) for mark in missing],
            max(report.purged_to, lost_to if KEPT in channels else 0),
        )
        report.announced += len(announced)
        missing -= announced
        report.lost += len(missing)
        if missing:
            report.examples.append(f"reader {number} lacks {sorted(missing)[:3]}; its cursor is {reader.cursor}")
        for mark, count in counts.items():
            if count > 1:
                if mark in reader.excused:
                    report.doubled_full_cursor += count - 1
                else:
                    report.doubled += count - 1
                    report.examples.append(f"reader {number} has {mark} {count} times")
        _check_content(report, rows, reader, number)
        report.delivered += len(reader.marks)
        report.connects += reader.connects
        report.ids_with_gaps += reader.ids_with_gaps
    report.http_lost = len(answers.accepted - rows.keys())
    report.http_unasked = len(answers.refused & rows.keys())
    report.http_unknown = answers.unknown
    return report


def check_beginning(report: Report, reader: Reader, before: dict[str, int], after: list[tuple[int, str]]) -> None:
    """Check with how many events a late reader began.

    ``before``: how many each channel had before it began; ``after``: ids and channels soon after it had begun.
    """
    report.began_late += reader.began is not None
    for channel in reader.channels:
        had = sum(reader.wants(number, name) for number, name in after if name == channel)
        if had < min(reader.latest, before.get(channel, 0)):
            report.too_few += 1
            report.examples.append(f"a late reader began with {had} of {reader.latest} in {channel}: {reader.began}")


def _is_erased(report: Report, row: Row) -> bool:
    """Whether an event was erased. A reader may have it or not, and is not told."""
    return row.id in report.deleted and row.channel != KEPT


def _announced(report: Report, reader: Reader, number: int, missing: list[tuple[int, int]], lost_to: int) -> set[int]:
    """Return which of the missing marks, each with its id, a reader was told about; count what it was told.

    ``lost_to`` is up to which id events of its channels are lost.
    """
    announced: set[int] = set()
    for told in reader.gaps_told:
        gap = json.loads(told)
        after, before = Cursor.parse(gap["after"]), Cursor.parse(gap["before"])
        if gap["reason"] != "expired" or not after.missing_up_to(lost_to):
            report.gaps_told += 1
            report.examples.append(f"reader {number} was told {told}; its channels are purged up to {lost_to}")
            continue
        report.gaps_expired += 1
        announced.update(
            mark
            for mark, event_id in missing
            if (event_id <= report.purged_to or event_id in report.deleted)
            and before.offered(event_id)
            and not after.offered(event_id)
        )
    return announced


def _check_content(report: Report, rows: dict[int, Row], reader: Reader, number: int) -> None:
    last: dict[tuple[int, int], int] = {}
    seen: set[int] = set()
    for mark, found in zip(reader.marks, reader.sums, strict=True):
        row = rows.get(mark)
        if row is None:
            report.not_in_table += 1
            report.examples.append(f"reader {number} has {mark}, the table does not")
            continue
        expected = row.checksum_with_headers if reader.envelope else row.checksum
        if found != expected or row.channel not in reader.channels:
            report.altered += 1
        if not reader.overflowed and not reader.wants(row.id, row.channel):
            report.unwanted += 1
            report.examples.append(f"reader {number} has {mark}, which lies below its last events")
        if mark in seen:
            continue
        seen.add(mark)
        key = (row.writer, row.transaction)
        if row.place < last.get(key, 0):
            report.unordered += 1
            report.examples.append(f"reader {number} has {mark} after a later event of its transaction")
        last[key] = row.place
