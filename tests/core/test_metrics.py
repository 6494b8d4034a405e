"""What the metrics are, and how the numbers of several processes are combined."""

from __future__ import annotations

from sse_pg.core.metrics import METRICS, Numbers, combined, counters_of


def test_labels_are_bounded() -> None:
    """No value that clients choose becomes a label."""
    free = {"sse_pg_build_info"}
    for metric in METRICS:
        assert bool(metric.labels) == bool(metric.known) or metric.name in free, metric.name
        assert metric.help.endswith("."), metric.name
        if metric.kind == "counter":
            assert metric.name.endswith("_total"), metric.name
            assert metric.combine == "sum", metric.name


def _numbers(**values: float) -> Numbers:
    return {f"sse_pg_{name}": {"": value} for name, value in values.items()}


def test_counters_and_gauges_add_up() -> None:
    one = _numbers(deliveries_total=5, streams_limit=10, tail_lag_ids=3, position_id=7)
    two = _numbers(deliveries_total=7, streams_limit=10, tail_lag_ids=9, position_id=4)
    gone = counters_of(_numbers(deliveries_total=100, streams_limit=10, tail_lag_ids=50))
    assert combined([one, two], gone) == _numbers(deliveries_total=112, streams_limit=20, tail_lag_ids=9, position_id=4)
    assert gone == _numbers(deliveries_total=100)
