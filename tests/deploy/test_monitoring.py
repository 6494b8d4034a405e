"""The alert rules and the Grafana dashboard: what they ask for is there in a real scrape."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.process import CHECKOUT
from support.server import Launcher

from sse_pg.core.metrics import METRICS

RULES = CHECKOUT / "docker" / "alerts.yml"
DASHBOARD = CHECKOUT / "docker" / "grafana-dashboard.json"
NAME = re.compile(r"\b(?:sse_pg|process)_[a-z_]+")
#: name{label="value"} with the labels that are chosen here, not by Prometheus.
SELECTOR = re.compile(r"\b((?:sse_pg|process)_[a-z_]+)\{([^}]*)\}")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text("utf-8")))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    yield from (each["definition"] for each in dashboard()["templating"]["list"] if "definition" in each)


async def test_every_metric_that_is_asked_for_is_in_a_scrape(launch: Launcher) -> None:
    server = await launch()
    async with aiohttp.ClientSession() as session, session.get(server.url + "/metrics") as answer:
        families = list(text_string_to_metric_families(await answer.text()))
    found = {sample.name for family in families for sample in family.samples}
    labels = {(s.name, *pair) for family in families for s in family.samples for pair in s.labels.items()}
    asked = {name for text in expressions() for name in NAME.findall(text)}
    assert len(asked) > 40
    assert asked <= found
    for text in expressions():
        for name, inside in SELECTOR.findall(text):
            for label, value in re.findall(r'(\w+)="([^"$]*)"', inside):
                assert (name, label, value) in labels, text
        for grouped in re.findall(r"(?:by|without) \(([^)]*)\)", text):
            known = {label for metric in METRICS for label in metric.labels} | {"le", "instance"}
            assert {each.strip() for each in grouped.split(",")} <= known, text


def test_the_dashboard_can_be_imported() -> None:
    whole = dashboard()
    assert whole["title"] == "sse-pg"
    assert len({panel["id"] for panel in whole["panels"]}) == len(whole["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in whole["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["targets"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_every_alert_is_explained() -> None:
    told = (CHECKOUT / "docs" / "operating.md").read_text("utf-8")
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    assert set(re.findall(r"^\| `(SsePg\w+)` \|", told, re.MULTILINE)) == set(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]


@pytest.fixture
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on this machine; it comes with Debian's package prometheus")
    return program


def test_promtool_takes_the_rules(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


def test_promtool_takes_the_expressions_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    known = {"$__rate_interval": "5m", "$job": "sse-pg", "$instance": ".*"}
    made = []
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in known.items():
                text = text.replace(name, value)
            made.append({"record": f"panel:{panel['id']}:{target['refId']}", "expr": text})
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": made}]}))
    done = subprocess.run([promtool, "check", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


#: alert -> series that bring it about, with their values a minute apart.
CAUSES = {
    "SsePgDown": {'up{job="sse-pg",instance="a"}': "0x10"},
    "SsePgNotReady": {'sse_pg_ready{instance="a"}': "1x10", 'sse_pg_workers{instance="a"}': "2x10"},
    "SsePgListenDown": {
        'sse_pg_listening{instance="a"}': "1x10",
        'sse_pg_at_rest{instance="a"}': "0x10",
        'sse_pg_workers{instance="a"}': "2x10",
    },
    "SsePgPurgeNotRunning": {
        "sse_pg_maintenance_success_timestamp_seconds": "-900x10",
        'sse_pg_at_rest{instance="a"}': "1x10",
        'sse_pg_workers{instance="a"}': "2x10",
    },
    "SsePgTaskFailed": {'sse_pg_task_failures_total{instance="a",task="tail"}': "0 0 0 0 1x6"},
    "SsePgGapOpenLong": {'sse_pg_gap_oldest_seconds{instance="a"}': "0+300x10"},
    "SsePgConsumerBehind": {'sse_pg_consumer_retention_used_ratio{instance="a"}': "0.6x10"},
    "SsePgNotificationQueue": {'sse_pg_notification_queue_usage_ratio{instance="a"}': "0.6x10"},
    "SsePgTailLag": {'sse_pg_tail_lag_ids{instance="a"}': "20000x10"},
    "SsePgTailStalled": {'sse_pg_tail_read_age_seconds{instance="a"}': "0+60x10"},
}


#: The same for a server at rest, to which nothing has happened.
AT_REST = {
    "SsePgListenDown": {
        'sse_pg_listening{instance="a"}': "1x10",
        'sse_pg_at_rest{instance="a"}': "1x10",
        'sse_pg_workers{instance="a"}': "2x10",
    },
    "SsePgPurgeNotRunning": {
        "sse_pg_maintenance_success_timestamp_seconds": "-900x10",
        'sse_pg_at_rest{instance="a"}': "2x10",
        'sse_pg_workers{instance="a"}': "2x10",
    },
}


@pytest.mark.parametrize("alert", CAUSES)
def test_an_alert_fires(promtool: str, tmp_path: Path, alert: str) -> None:
    expect(promtool, tmp_path, alert, CAUSES[alert], [{"labels": "{}", "value": 1}])


@pytest.mark.parametrize("alert", AT_REST)
def test_an_alert_does_not_fire_at_rest(promtool: str, tmp_path: Path, alert: str) -> None:
    expect(promtool, tmp_path, alert, AT_REST[alert], [])


def expect(promtool: str, tmp_path: Path, alert: str, causes: dict[str, str], firing: list[dict[str, Any]]) -> None:
    """Check how often an alert fires after nine minutes of these series."""
    series = [{"series": name, "values": values} for name, values in causes.items()]
    asked = {"expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})', "eval_time": "9m"}
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [{**asked, "exp_samples": firing}],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(test))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
