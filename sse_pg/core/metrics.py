"""What /metrics shows: each metric with its meaning, how the numbers of several processes add up, and the text of it.

No input or output here. ``Numbers`` are what one process knows, or several together: by the name of the metric, then by
the values of its labels with commas between. A histogram has a key for each bucket, which counts all below it too, and
the key ``sum``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

Numbers = dict[str, dict[str, float]]
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Metric(NamedTuple):
    """A metric. ``over`` is how processes add up; ``known`` are the label values that are shown from the start."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    over: Literal["sum", "max", "min"] = "sum"


#: The pools, as labels.
_POOLS: tuple[tuple[str, ...], tuple[str, ...]] = (("pool",), ("requests", "tail"))

METRICS = (
    Metric("sse_pg_build_info", "gauge", "Always 1; the labels say what runs.", ("version", "python"), over="max"),
    Metric("sse_pg_workers", "gauge", "Processes that the numbers of this answer are of."),
    Metric("sse_pg_ready", "gauge", "Processes that can serve: the LISTEN connection is up and they are not stopping."),
    Metric("sse_pg_listening", "gauge", "Processes whose LISTEN connection is up."),
    # ---- publishing
    Metric(
        "sse_pg_events_published_total",
        "counter",
        "Events committed over HTTP, by the form of the request and by whether an event had an idempotency key. An "
        "event whose key was used before counts again. What SQL publishes is not in it.",
        ("form", "keyed"),
        ("single,no", "single,yes", "batch,no", "batch,yes"),
    ),
    Metric("sse_pg_publish_commits_total", "counter", "Commits that these events took; requests share them."),
    Metric("sse_pg_publish_waiting_requests", "gauge", "Publish requests that wait for a commit to begin."),
    # ---- delivery
    Metric(
        "sse_pg_events_read_total",
        "counter",
        "Events read from the log and handed on, whoever published them. Every process reads all of them.",
    ),
    Metric("sse_pg_log_reads_total", "counter", "Reads of the end of the log."),
    Metric("sse_pg_deliveries_total", "counter", "Live events times the streams to which they were handed."),
    Metric(
        "sse_pg_sent_bytes_total",
        "counter",
        "Bytes handed to the connections of streams: events, heartbeats and positions, live or replayed, without the "
        "head of the answer.",
    ),
    Metric(
        "sse_pg_delivery_delay_seconds",
        "histogram",
        "Time from created_at of an event, which the database sets at the insert, until it was written to the sockets "
        "of its streams; once an event and process, with or without streams. It holds the time to the commit, and the "
        "difference of the clocks of both machines.",
    ),
    # ---- streams
    Metric("sse_pg_streams", "gauge", "Open streams.", ("state",), ("live", "catching_up")),
    Metric("sse_pg_streams_limit", "gauge", "Most streams: SSE_PG_MAX_STREAMS of all processes."),
    Metric("sse_pg_streams_opened_total", "counter", "Streams that were opened."),
    Metric(
        "sse_pg_streams_closed_total",
        "counter",
        "Streams that ended. client: the client went. slow: it did not read, and was cut off. drain: the server "
        "stopped. expired: its token did. revoked: it was no longer allowed. rule_failed: the access rule gave no "
        "answer. error: the server's log has more.",
        ("reason",),
        ("client", "slow", "drain", "expired", "revoked", "rule_failed", "error"),
    ),
    Metric(
        "sse_pg_groups",
        "gauge",
        "Groups of live streams that are sent the same bytes, by how many streams are in one.",
        ("streams",),
        ("1", "2-10", "11-100", "101-1000", "1001-"),
    ),
    Metric("sse_pg_group_streams_max", "gauge", "Streams in the largest group of one process.", over="max"),
    # ---- resuming
    Metric(
        "sse_pg_cursors_total",
        "counter",
        "Cursors with which streams were opened. none: from now on. known: of this log. lost: of a log, or a part of "
        "it, that is no more. malformed: not a cursor.",
        ("kind",),
        ("none", "known", "lost", "malformed"),
    ),
    Metric(
        "sse_pg_replays_total",
        "counter",
        "Streams that became live, by where what they had missed came from. none: there was nothing. table: a page or "
        "more of it was read from the database.",
        ("source",),
        ("none", "ring", "table"),
    ),
    Metric(
        "sse_pg_replayed_events_total",
        "counter",
        "Events sent to streams that caught up, from memory or from the table.",
        ("source",),
        ("ring", "table"),
    ),
    Metric(
        "sse_pg_replay_pages_total",
        "counter",
        "Pages of the table sent to streams that caught up. shared: another stream had asked for the same one.",
        ("source",),
        ("read", "shared"),
    ),
    Metric(
        "sse_pg_gap_notices_total",
        "counter",
        "Streams that were told that something can no longer be delivered. expired: it was purged. unknown: the log is "
        "another one than that of their cursor.",
        ("reason",),
        ("expired", "unknown"),
    ),
    Metric("sse_pg_ring_events", "gauge", "Events kept in memory for streams that resume."),
    # ---- gaps
    Metric("sse_pg_gaps_open_ids", "gauge", "Ids below the end of the log that may still be committed.", over="max"),
    Metric(
        "sse_pg_gap_oldest_seconds", "gauge", "Time for which the lowest of these ids has been missing.", over="max"
    ),
    Metric("sse_pg_gaps_opened_ids_total", "counter", "Ids that were missing when a higher one was read."),
    Metric(
        "sse_pg_gaps_retired_ids_total",
        "counter",
        "Missing ids that were settled. came: the event was committed. dead: it was rolled back.",
        ("how",),
        ("came", "dead"),
    ),
    # ---- the bell and the tail
    Metric("sse_pg_bell_rings_total", "counter", "Notifications heard from transactions that published."),
    Metric(
        "sse_pg_tail_seconds_total",
        "counter",
        "Time that the tails spent. asleep: waiting for the bell. awake: polling, while publishers need not ring. "
        "down: without a LISTEN connection.",
        ("state",),
        ("asleep", "awake", "down"),
    ),
    Metric("sse_pg_awake", "gauge", "Processes whose tail is awake."),
    Metric("sse_pg_listen_reconnects_total", "counter", "LISTEN connections made after the first of a process."),
    Metric("sse_pg_listen_failures_total", "counter", "LISTEN connections that were lost or could not be made."),
    Metric(
        "sse_pg_safety_reads_total",
        "counter",
        "Reads that a sleeping tail made although no bell rang. found=yes: there was an event, so a bell was missing.",
        ("found",),
        ("no", "yes"),
    ),
    Metric(
        "sse_pg_tail_lag_ids",
        "gauge",
        "Ids drawn from the sequence above the last that was handed on, by what the furthest behind process has seen. "
        "Missing ids below it are sse_pg_gaps_open_ids.",
        over="max",
    ),
    Metric("sse_pg_tail_read_age_seconds", "gauge", "Time since the log was read last.", over="max"),
    Metric("sse_pg_position_id", "gauge", "The id up to which events were handed on.", over="min"),
    Metric(
        "sse_pg_notification_queue_usage_ratio",
        "gauge",
        "Part of PostgreSQL's queue of notifications, one for the whole cluster, that is in use; commits that notify "
        "fail at 1.",
        over="max",
    ),
    # ---- the pools
    Metric("sse_pg_pool_connections", "gauge", "Database connections of a pool.", *_POOLS),
    Metric("sse_pg_pool_connections_max", "gauge", "Most connections of a pool.", *_POOLS),
    Metric("sse_pg_pool_available", "gauge", "Connections that nobody uses.", *_POOLS),
    Metric("sse_pg_pool_waiting", "gauge", "Who waits for a connection.", *_POOLS),
    Metric("sse_pg_pool_requests_total", "counter", "Connections asked for.", *_POOLS),
    Metric("sse_pg_pool_queued_total", "counter", "Those that had to wait for one.", *_POOLS),
    Metric("sse_pg_pool_wait_seconds_total", "counter", "Time that they waited.", *_POOLS),
    Metric("sse_pg_pool_use_seconds_total", "counter", "Time that connections were lent.", *_POOLS),
    Metric("sse_pg_pool_timeouts_total", "counter", "Those that did not get one.", *_POOLS),
    Metric("sse_pg_pool_connects_total", "counter", "Attempts to connect.", *_POOLS),
    Metric("sse_pg_pool_connect_failures_total", "counter", "Attempts that failed.", *_POOLS),
    # ---- upkeep
    Metric(
        "sse_pg_maintenance_rounds_total",
        "counter",
        "Rounds of making partitions and purging. busy: others held the table, or purged too. failed: see the log.",
        ("result",),
        ("done", "busy", "failed"),
    ),
    Metric(
        "sse_pg_maintenance_success_timestamp_seconds",
        "gauge",
        "Unix time of the last round that did not fail; 0 before the first.",
        over="max",
    ),
    Metric("sse_pg_partitions_made_total", "counter", "Partitions made ahead of the ids."),
    Metric("sse_pg_purged_partitions_total", "counter", "Partitions that these processes dropped."),
    Metric("sse_pg_purged_bytes_total", "counter", "Disk space of those partitions."),
    Metric("sse_pg_purged_keys_total", "counter", "Idempotency keys that were forgotten."),
    Metric("sse_pg_purged_to_id", "gauge", "The highest id that was purged, by whomever.", over="max"),
    # ---- refusals
    Metric(
        "sse_pg_refused_requests_total",
        "counter",
        "Requests that were turned away. 429: streams_user, streams_address, publish_rate. 503: streams, connections, "
        "bodies (limits); not_ready, database, key_held, outcome_unknown, keys, rule (what they need did not answer).",
        ("kind",),
        (
            *("streams_user", "streams_address", "publish_rate", "streams", "connections", "bodies"),
            *("not_ready", "database", "key_held", "outcome_unknown", "keys", "rule"),
        ),
    ),
    Metric(
        "sse_pg_authorization_failures_total",
        "counter",
        "Answers 401 (no token, or none that is accepted) and 403 (not allowed).",
        ("status",),
        ("401", "403"),
    ),
    # ---- the processes, as far as the system tells
    Metric("process_cpu_seconds_total", "counter", "User and system time of the serving processes."),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory of the serving processes."),
    Metric("process_virtual_memory_bytes", "gauge", "Virtual memory of the serving processes."),
    Metric("process_open_fds", "gauge", "Open file descriptors of the serving processes."),
    Metric("process_max_fds", "gauge", "Most file descriptors of all serving processes together."),
    Metric("process_start_time_seconds", "gauge", "Unix time at which the oldest of them started.", over="min"),
)
BY_NAME = {metric.name: metric for metric in METRICS}


def added_up(running: Iterable[Numbers], gone: Numbers) -> Numbers:
    """Return the numbers of processes together. ``gone`` has the counters of those that have ended."""
    total: Numbers = {name: dict(values) for name, values in gone.items()}
    for numbers in running:
        for name, values in numbers.items():
            into = total.setdefault(name, {})
            over = BY_NAME[name].over
            for key, value in values.items():
                if key not in into or over == "sum":
                    into[key] = into.get(key, 0.0) + value
                else:
                    into[key] = max(into[key], value) if over == "max" else min(into[key], value)
    return total


def kept(numbers: Numbers) -> Numbers:
    """Return what counts on when a process has ended: what only grows."""
    return {name: values for name, values in numbers.items() if BY_NAME[name].kind != "gauge"}


def text(numbers: Numbers, accept: str) -> tuple[bytes, str]:
    """Return the numbers for Prometheus, in the form that an Accept header asks for, and the content type of it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Shown(numbers))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Shown(Collector):
    """Numbers, as the library takes them."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Family]:
        """Yield a family for each metric that there is a number of."""
        for metric in METRICS:
            values = self._numbers.get(metric.name)
            if values is not None:
                yield _family(metric, {**dict.fromkeys(metric.known, 0.0), **values})


def _family(metric: Metric, values: dict[str, float]) -> Family:
    if metric.kind == "histogram":
        buckets = [(key, value) for key, value in values.items() if key != "sum"]
        return HistogramMetricFamily(metric.name, metric.help, buckets, values["sum"])
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = made(metric.name, metric.help, labels=metric.labels)
    for key, value in values.items():
        family.add_metric(key.split(",") if metric.labels else [], value)
    return family
