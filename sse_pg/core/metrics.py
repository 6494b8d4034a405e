"""What /metrics shows: each metric and its meaning, how the numbers of several processes are combined, and the text.

There is no I/O here. ``Numbers`` are the values of one process or of several: by the name of the metric, then by the
values of its labels, joined with commas. A histogram has one key for each bucket, which includes the buckets below it,
and the key ``sum``.
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
    """A metric. ``combine`` is how processes are combined; ``known`` are label values that are shown from the start."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    combine: Literal["sum", "max", "min"] = "sum"


#: The label of a pool, and its values.
_POOLS: tuple[tuple[str, ...], tuple[str, ...]] = (("pool",), ("requests", "tail"))

METRICS = (
    Metric(
        "sse_pg_build_info",
        "gauge",
        "Always 1; the labels are the version of sse_pg and of Python.",
        ("version", "python"),
        combine="max",
    ),
    Metric("sse_pg_workers", "gauge", "Server processes whose numbers are combined in this response."),
    Metric("sse_pg_ready", "gauge", "Processes that are ready to serve: /readyz answers 200."),
    Metric("sse_pg_listening", "gauge", "Processes whose LISTEN connection is up."),
    # ---- publishing
    Metric(
        "sse_pg_events_published_total",
        "counter",
        "Events committed over HTTP, by the form of the request and by whether the event had an idempotency key. An "
        "event whose key was used before is counted again. Events published from SQL are not counted.",
        ("form", "keyed"),
        ("single,no", "single,yes", "batch,no", "batch,yes"),
    ),
    Metric(
        "sse_pg_publish_commits_total", "counter", "Commits of events published over HTTP. Waiting requests share one."
    ),
    Metric("sse_pg_publish_waiting_requests", "gauge", "Publish requests that wait for their commit to begin."),
    # ---- delivery
    Metric(
        "sse_pg_events_read_total",
        "counter",
        "Events read from the log, from every publisher. Each process reads all events.",
    ),
    Metric("sse_pg_log_reads_total", "counter", "Reads of the log by the tails."),
    Metric(
        "sse_pg_deliveries_total", "counter", "Writes of live events to streams: an event for ten streams counts ten."
    ),
    Metric(
        "sse_pg_sent_bytes_total",
        "counter",
        "Bytes written to streams: events, heartbeats and positions, live or replayed. The response headers are not "
        "counted.",
    ),
    Metric(
        "sse_pg_delivery_delay_seconds",
        "histogram",
        "Time from the created_at of an event, which the database sets when it inserts the row, until the event was "
        "written to its streams. Counted once for each process and each event of a channel that its streams follow. It "
        "includes the time until the commit and the difference between the clocks of the two machines.",
    ),
    # ---- streams
    Metric("sse_pg_streams", "gauge", "Open streams.", ("state",), ("live", "catching_up")),
    Metric("sse_pg_streams_limit", "gauge", "Maximum number of streams: SSE_PG_MAX_STREAMS of all processes."),
    Metric("sse_pg_streams_opened_total", "counter", "Streams opened."),
    Metric(
        "sse_pg_streams_closed_total",
        "counter",
        "Streams that ended. client: the client closed the connection. slow: the client read too slowly. finished: all "
        "its channels are finished. drain: the server stopped. expired: the token expired. revoked: access was "
        "withdrawn. rule_failed: the access rule could not be evaluated. erased: an erased event was still to be sent. "
        "error: an error that the server's log describes.",
        ("reason",),
        ("client", "slow", "finished", "drain", "expired", "revoked", "rule_failed", "erased", "error"),
    ),
    Metric(
        "sse_pg_groups",
        "gauge",
        "Groups of live streams that get the same bytes, by the number of streams in a group.",
        ("streams",),
        ("1", "2-10", "11-100", "101-1000", "1001-"),
    ),
    Metric("sse_pg_group_streams_max", "gauge", "Streams in the largest group of one process.", combine="max"),
    # ---- resuming
    Metric(
        "sse_pg_cursors_total",
        "counter",
        "Streams opened, by their cursor. none: the stream starts with new events. known: the cursor belongs to this "
        "log. lost: it belongs to another log, or to a part of this one that was lost. malformed: it is not a cursor.",
        ("kind",),
        ("none", "known", "lost", "malformed"),
    ),
    Metric(
        "sse_pg_replays_total",
        "counter",
        "Streams that became live, by the source of the events they had missed. none: they had missed none. ring: all "
        "came from memory. table: some came from the database.",
        ("source",),
        ("none", "ring", "table"),
    ),
    Metric(
        "sse_pg_replayed_events_total",
        "counter",
        "Events sent to streams while they caught up, from memory or from the table.",
        ("source",),
        ("ring", "table"),
    ),
    Metric(
        "sse_pg_replay_pages_total",
        "counter",
        "Pages of the table sent to streams while they caught up. shared: the page had been read for another stream.",
        ("source",),
        ("read", "shared"),
    ),
    Metric(
        "sse_pg_gap_notices_total",
        "counter",
        "Gap events sent: events can no longer be delivered. expired: they were purged. unknown: the cursor belongs to "
        "another log.",
        ("reason",),
        ("expired", "unknown"),
    ),
    Metric("sse_pg_ring_events", "gauge", "Events kept in memory for streams that resume."),
    Metric("sse_pg_unread_bytes", "gauge", "Data that clients have not read yet, at most."),
    Metric("sse_pg_unread_bytes_limit", "gauge", "Maximum of that."),
    # ---- gaps
    Metric(
        "sse_pg_gaps_open_ids",
        "gauge",
        "Missing ids that may still be committed, below the highest id read.",
        combine="max",
    ),
    Metric(
        "sse_pg_gap_oldest_seconds", "gauge", "Time for which the lowest of these ids has been missing.", combine="max"
    ),
    Metric("sse_pg_gaps_opened_ids_total", "counter", "Ids that were missing when a higher one was read."),
    Metric(
        "sse_pg_gaps_retired_ids_total",
        "counter",
        "Missing ids that were settled. came: the event was committed. dead: the id can no longer come.",
        ("how",),
        ("came", "dead"),
    ),
    # ---- the bell and the tail
    Metric("sse_pg_bell_rings_total", "counter", "Notifications received from transactions that published."),
    Metric(
        "sse_pg_tail_seconds_total",
        "counter",
        "Time that the tails spent in each state. asleep: waiting for the bell. awake: polling; publishers need not "
        "ring. down: without a LISTEN connection. rest: without any connection, because nobody needs the database.",
        ("state",),
        ("asleep", "awake", "down", "rest"),
    ),
    Metric("sse_pg_at_rest", "gauge", "Processes that have let go of the database, and have not come back to it yet."),
    Metric("sse_pg_awake", "gauge", "Processes whose tail is awake."),
    Metric("sse_pg_listen_reconnects_total", "counter", "LISTEN connections that a process made after its first."),
    Metric("sse_pg_listen_failures_total", "counter", "LISTEN connections that were lost or could not be made."),
    Metric(
        "sse_pg_safety_reads_total",
        "counter",
        "Safety reads: reads of a sleeping tail without a bell. found=yes: there was an event, so a bell was lost.",
        ("found",),
        ("no", "yes"),
    ),
    Metric(
        "sse_pg_tail_lag_ids",
        "gauge",
        "Ids drawn from the sequence that lie above the position of the process that is furthest behind. Missing ids "
        "below the position are counted by sse_pg_gaps_open_ids.",
        combine="max",
    ),
    Metric(
        "sse_pg_standby_lag_ids",
        "gauge",
        "Ids that the primary had drawn when it was last asked and that the standby does not know of. 0 if this server "
        "reads from the primary.",
        combine="max",
    ),
    Metric(
        "sse_pg_standby_lag_seconds",
        "gauge",
        "Time for which the standby has not replayed something that the primary had written. 0 if this server reads "
        "from the primary.",
        combine="max",
    ),
    Metric(
        "sse_pg_standby_primary_up",
        "gauge",
        "1 while a server that reads from a standby is connected to the primary; 1 on all others.",
        combine="min",
    ),
    Metric("sse_pg_tail_read_age_seconds", "gauge", "Time since the last read of the log.", combine="max"),
    Metric("sse_pg_position_id", "gauge", "The id up to which events were delivered.", combine="min"),
    Metric(
        "sse_pg_notification_queue_usage_ratio",
        "gauge",
        "Part of PostgreSQL's notification queue that is in use. The queue belongs to the whole cluster; at 1, commits "
        "that notify fail.",
        combine="max",
    ),
    # ---- the pools
    Metric("sse_pg_pool_connections", "gauge", "Database connections of a pool.", *_POOLS),
    Metric("sse_pg_pool_connections_max", "gauge", "Maximum number of connections of a pool.", *_POOLS),
    Metric("sse_pg_pool_available", "gauge", "Idle connections of a pool.", *_POOLS),
    Metric("sse_pg_pool_waiting", "gauge", "Tasks that wait for a connection.", *_POOLS),
    Metric("sse_pg_pool_requests_total", "counter", "Requests for a connection.", *_POOLS),
    Metric("sse_pg_pool_queued_total", "counter", "Requests for a connection that had to wait.", *_POOLS),
    Metric("sse_pg_pool_wait_seconds_total", "counter", "Time spent waiting for a connection.", *_POOLS),
    Metric("sse_pg_pool_use_seconds_total", "counter", "Time for which connections were in use.", *_POOLS),
    Metric("sse_pg_pool_timeouts_total", "counter", "Requests for a connection that timed out.", *_POOLS),
    Metric("sse_pg_pool_connects_total", "counter", "Attempts to connect.", *_POOLS),
    Metric("sse_pg_pool_connect_failures_total", "counter", "Attempts to connect that failed.", *_POOLS),
    # ---- the server's own tasks
    Metric(
        "sse_pg_task_failures_total",
        "counter",
        "Failures of tasks that run for as long as the server. A failed task is started again.",
        ("task",),
        ("tail", "registry", "heartbeat", "maintenance", "sweeper", "erasures", "stream answers"),
    ),
    # ---- maintenance
    Metric(
        "sse_pg_maintenance_rounds_total",
        "counter",
        "Rounds of maintenance, which makes partitions and purges. busy: another session held the table or purged at "
        "the same time. failed: the server's log has the error.",
        ("result",),
        ("done", "busy", "failed"),
    ),
    Metric(
        "sse_pg_maintenance_success_timestamp_seconds",
        "gauge",
        "Unix time of the last round of maintenance that did not fail; 0 before the first.",
        combine="max",
    ),
    Metric("sse_pg_partitions_made_total", "counter", "Partitions made in advance."),
    Metric("sse_pg_purged_partitions_total", "counter", "Partitions that these processes purged."),
    Metric("sse_pg_purged_bytes_total", "counter", "Disk space of the partitions that these processes purged."),
    Metric(
        "sse_pg_log_bytes",
        "gauge",
        "What the log takes on disk, its indexes included; measured after each round of maintenance.",
        combine="max",
    ),
    Metric(
        "sse_pg_log_oldest_event_age_seconds",
        "gauge",
        "Age of the oldest event that is stored, as of the last round of maintenance; 0 if there is none.",
        combine="max",
    ),
    Metric("sse_pg_purged_keys_total", "counter", "Idempotency keys that these processes deleted."),
    Metric(
        "sse_pg_expired_events_total",
        "counter",
        "Events that these processes deleted because of their channel's own retention (keep).",
    ),
    Metric(
        "sse_pg_expired_late_seconds",
        "gauge",
        "For how long an event should have been deleted that is beyond its channel's own retention, at most; measured "
        "after each round of maintenance.",
        combine="max",
    ),
    Metric(
        "sse_pg_erased_from_memory_total",
        "counter",
        "Events taken out of the memory of a process, because they were erased or their channel's retention had ended.",
    ),
    Metric("sse_pg_purged_to_id", "gauge", "The highest id that was purged, by any process.", combine="max"),
    # ---- consumers in SQL, as of the last round of maintenance
    Metric("sse_pg_consumers", "gauge", "Named consumers: rows of sse_pg.consumers.", combine="max"),
    Metric(
        "sse_pg_consumer_lag_events",
        "gauge",
        "Events that the consumer lacks that is furthest behind. Counting ends at 100,000 in a channel.",
        combine="max",
    ),
    Metric(
        "sse_pg_consumer_retention_used_ratio",
        "gauge",
        "Share of the retention, by count or by age, that the oldest event which a consumer lacks has behind it. From "
        "1 on, a purge may take events from a consumer.",
        combine="max",
    ),
    Metric(
        "sse_pg_consumers_fallen_behind_total",
        "counter",
        "Consumers that lacked events which these processes purged, counted once for each round. Each gets a gap.",
    ),
    # ---- refusals
    Metric(
        "sse_pg_refused_requests_total",
        "counter",
        "Requests refused, by reason. With 429: streams_user, streams_address, publish_rate. With 503, because of a "
        "limit: streams, connections, bodies; because something did not respond: not_ready, database, key_held, "
        "outcome_unknown, keys, rule.",
        ("kind",),
        (
            *("streams_user", "streams_address", "publish_rate", "streams", "connections", "bodies"),
            *("not_ready", "database", "key_held", "outcome_unknown", "keys", "rule"),
        ),
    ),
    Metric(
        "sse_pg_authorization_failures_total",
        "counter",
        "Responses 401 (no valid token) and 403 (not allowed).",
        ("status",),
        ("401", "403"),
    ),
    # ---- the processes, as the operating system reports them
    Metric("process_cpu_seconds_total", "counter", "User and system time of the serving processes."),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory of the serving processes."),
    Metric("process_virtual_memory_bytes", "gauge", "Virtual memory of the serving processes."),
    Metric("process_open_fds", "gauge", "Open file descriptors of the serving processes."),
    Metric("process_max_fds", "gauge", "Maximum number of open file descriptors, over all serving processes."),
    Metric(
        "process_start_time_seconds", "gauge", "Unix time at which the oldest serving process started.", combine="min"
    ),
)
BY_NAME = {metric.name: metric for metric in METRICS}


def combined(running: Iterable[Numbers], gone: Numbers) -> Numbers:
    """Return the numbers of several processes combined. ``gone`` has the counters of processes that have ended."""
    total: Numbers = {name: dict(values) for name, values in gone.items()}
    for numbers in running:
        for name, values in numbers.items():
            into = total.setdefault(name, {})
            combine = BY_NAME[name].combine
            for key, value in values.items():
                if key not in into or combine == "sum":
                    into[key] = into.get(key, 0.0) + value
                else:
                    into[key] = max(into[key], value) if combine == "max" else min(into[key], value)
    return total


def counters_of(numbers: Numbers) -> Numbers:
    """Return the numbers that still count after their process has ended: counters and histograms."""
    return {name: values for name, values in numbers.items() if BY_NAME[name].kind != "gauge"}


def text(numbers: Numbers, accept: str) -> tuple[bytes, str]:
    """Return the numbers in the Prometheus format that the Accept header asks for, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Shown(numbers))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Shown(Collector):
    """Numbers, in the form that the Prometheus library expects."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Family]:
        """Yield a family for each metric that has a number."""
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
