"""The counts of one process's parts, under the names of core/metrics.py. Reads only memory: no database, no waiting."""

from __future__ import annotations

import platform
import time
from bisect import bisect_left
from itertools import accumulate

from prometheus_client.utils import floatToGoString

from sse_pg.api import process
from sse_pg.bus import Bus
from sse_pg.core.meter import DELAY_BOUNDS_S, Meter
from sse_pg.core.metrics import BY_NAME, Numbers
from sse_pg.db.pool import Pool
from sse_pg.version import VERSION

#: Upper bounds of the size classes of groups, in streams.
_GROUP_SIZES = (1, 10, 100, 1000)


def read(bus: Bus) -> Numbers:
    """Return the current numbers. The work grows with the number of open streams and groups, not with the events."""
    now = time.monotonic()
    numbers: Numbers = {
        "sse_pg_build_info": {f"{VERSION},{platform.python_version()}": 1},
        "sse_pg_workers": {"": 1},
        "sse_pg_ready": {"": bus.why_not_ready() is None},
        "sse_pg_listening": {"": bus.tail.listening.is_set()},
        **_publishing(bus),
        **_delivery(bus.hub.meter),
        **_streams(bus),
        **_resuming(bus),
        **_tail(bus, now),
        **_standby(bus),
        **_upkeep(bus, now),
        "sse_pg_task_failures_total": {task.name: task.failures for task in bus.tasks},
        "sse_pg_refused_requests_total": {
            kind: bus.refused_requests[kind] for kind in BY_NAME["sse_pg_refused_requests_total"].known
        },
        "sse_pg_authorization_failures_total": {status: bus.refused_requests[status] for status in ("401", "403")},
    }
    for pool, kind in ((bus.pool, "requests"), (bus.tail_pool, "tail")):
        for name, value in _pool(pool).items():
            numbers.setdefault(f"sse_pg_pool_{name}", {})[kind] = value
    numbers |= process.read()
    return {name: {key: float(value) for key, value in values.items()} for name, values in numbers.items()}


def _publishing(bus: Bus) -> Numbers:
    return {
        "sse_pg_events_published_total": {
            f"{'batch' if batch else 'single'},{'yes' if keyed else 'no'}": count
            for (batch, keyed), count in bus.publisher.published.items()
        },
        "sse_pg_publish_commits_total": {"": bus.publisher.commits},
        "sse_pg_publish_waiting_requests": {"": bus.publisher.waiting},
    }


def _delivery(meter: Meter) -> Numbers:
    ends = [*map(floatToGoString, DELAY_BOUNDS_S), "+Inf"]
    return {
        "sse_pg_events_read_total": {"": meter.events},
        "sse_pg_deliveries_total": {"": meter.deliveries},
        "sse_pg_delivery_delay_seconds": {
            **dict(zip(ends, accumulate(meter.delays), strict=True)),
            "sum": meter.delay_sum,
        },
    }


def _streams(bus: Bus) -> Numbers:
    hub = bus.hub
    sizes = hub.fan_out.group_sizes
    live = sum(sizes)
    names = BY_NAME["sse_pg_groups"].known
    groups = dict.fromkeys(names, 0)
    for size in sizes:
        groups[names[bisect_left(_GROUP_SIZES, size)]] += 1
    return {
        "sse_pg_streams": {"live": live, "catching_up": len(hub.streams) - live},
        "sse_pg_streams_limit": {"": bus.settings.max_streams},
        "sse_pg_streams_opened_total": {"": hub.opened},
        "sse_pg_streams_closed_total": {reason.value: count for reason, count in hub.closed.items()},
        "sse_pg_sent_bytes_total": {"": hub.ledger.sent_bytes},
        "sse_pg_groups": dict(groups),
        "sse_pg_group_streams_max": {"": max(sizes, default=0)},
        "sse_pg_ring_events": {"": len(hub.ring)},
        "sse_pg_unread_bytes": {"": hub.ledger.unread.bytes},
        "sse_pg_unread_bytes_limit": {"": hub.ledger.unread.limit},
    }


def _resuming(bus: Bus) -> Numbers:
    return {
        "sse_pg_cursors_total": dict(bus.cursors),
        "sse_pg_replays_total": dict(bus.replay.sources),
        "sse_pg_replayed_events_total": {
            "ring": bus.hub.replayed,
            "table": bus.replay.events + bus.replay.latest.events,
        },
        "sse_pg_replay_pages_total": dict(bus.replay.pages),
        "sse_pg_gap_notices_total": dict(bus.hub.gap_notices),
    }


def _tail(bus: Bus, now: float) -> Numbers:
    tail, meter, high = bus.tail, bus.tail.meter, bus.hub.position.high
    numbers: Numbers = {
        "sse_pg_log_reads_total": {"": meter.reads},
        "sse_pg_gaps_open_ids": {"": len(tail.open)},
        "sse_pg_gap_oldest_seconds": {"": meter.oldest_missing_s(now)},
        "sse_pg_gaps_opened_ids_total": {"": tail.gaps.opened},
        "sse_pg_gaps_retired_ids_total": {"came": tail.gaps.came, "dead": tail.gaps.dead},
        "sse_pg_bell_rings_total": {"": meter.bells},
        "sse_pg_tail_seconds_total": {str(state): spent for state, spent in meter.seconds(now).items()},
        "sse_pg_at_rest": {"": bus.demand.is_away},
        "sse_pg_awake": {"": meter.state == "awake"},
        "sse_pg_listen_reconnects_total": {"": max(0, meter.connections - 1)},
        "sse_pg_listen_failures_total": {"": meter.failures},
        "sse_pg_safety_reads_total": {"no": meter.safety_reads[False], "yes": meter.safety_reads[True]},
        "sse_pg_tail_lag_ids": {"": max(0, meter.last_id - high)},
        "sse_pg_position_id": {"": high},
        "sse_pg_notification_queue_usage_ratio": {"": meter.queue_usage},
    }
    if tail.read_at is not None and not bus.demand.is_away:
        numbers["sse_pg_tail_read_age_seconds"] = {"": now - tail.read_at}
    return numbers


def _standby(bus: Bus) -> Numbers:
    link = bus.link
    return {
        "sse_pg_standby_lag_ids": {"": link.lag_ids if link is not None else 0},
        "sse_pg_standby_lag_seconds": {"": link.lag_s if link is not None else 0},
        "sse_pg_standby_primary_up": {"": link is None or link.connected.is_set()},
    }


def _upkeep(bus: Bus, now: float) -> Numbers:
    done = bus.maintenance
    return {
        "sse_pg_maintenance_rounds_total": dict(done.rounds),
        "sse_pg_maintenance_success_timestamp_seconds": {"": done.succeeded_at},
        "sse_pg_partitions_made_total": {"": done.made},
        "sse_pg_purged_partitions_total": {"": done.purged.partitions},
        "sse_pg_purged_bytes_total": {"": done.purged.bytes},
        "sse_pg_log_bytes": {"": done.log_size.bytes},
        "sse_pg_log_oldest_event_age_seconds": {"": done.log_size.age_s(now)},
        "sse_pg_purged_keys_total": {"": done.purged.keys},
        "sse_pg_purged_to_id": {"": done.purged.purged_to},
        "sse_pg_consumers": {"": done.consumers.count},
        "sse_pg_consumer_lag_events": {"": done.consumers.lag},
        "sse_pg_consumer_retention_used_ratio": {"": done.consumers.retention_used},
        "sse_pg_consumers_fallen_behind_total": {"": done.fallen_behind},
        "sse_pg_expired_events_total": {"": done.purged.deleted},
        "sse_pg_expired_late_seconds": {"": done.late_s},
        "sse_pg_erased_from_memory_total": {"": bus.erasures.erased},
    }


def _pool(pool: Pool) -> dict[str, float]:
    """Return the pool's counts. The pool omits counts that are still zero, and its times are in milliseconds."""
    stats = pool.get_stats()
    return {
        "connections": stats.get("pool_size", 0),
        "connections_max": stats.get("pool_max", 0),
        "available": stats.get("pool_available", 0),
        "waiting": stats.get("requests_waiting", 0),
        "requests_total": stats.get("requests_num", 0),
        "queued_total": stats.get("requests_queued", 0),
        "wait_seconds_total": stats.get("requests_wait_ms", 0) / 1000,
        "use_seconds_total": pool.lent_seconds,
        "timeouts_total": stats.get("requests_errors", 0),
        "connects_total": stats.get("connections_num", 0),
        "connect_failures_total": stats.get("connections_errors", 0),
    }
