"""The Helm chart: consistent with the program, the image and itself, and understood by helm where it is installed."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.process import CHECKOUT

from sse_pg.config import Settings
from sse_pg.server import REQUEST_GRACE_S
from sse_pg.version import VERSION
from sse_pg.workers.supervisor import EXIT_GRACE_S

CHART = CHECKOUT / "docker" / "chart"
TEMPLATES = {file.name: file.read_text() for file in (CHART / "templates").iterdir()}
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())


def test_the_chart_has_the_version_of_the_program() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_the_templates_use_the_values_that_there_are_and_all_of_them() -> None:
    used = {name for text in TEMPLATES.values() for name in re.findall(r"\.Values\.([\w.]+)", text)}
    for name in used:
        found: Any = VALUES
        for part in name.split("."):
            assert part in found, name
            found = found[part]
    leaves = {
        f"{key}.{inner}" if isinstance(value, dict) and value and f"{key}.{inner}" in used else key
        for key, value in VALUES.items()
        for inner in (value if isinstance(value, dict) and value else [""])
    }
    assert {name for name in leaves if name not in used} == set()


def test_a_pod_gets_the_time_that_a_server_takes_to_stop() -> None:
    found = re.search(
        r"terminationGracePeriodSeconds: {{ add \.Values\.drainSeconds (\d+) }}", TEMPLATES["deployment.yaml"]
    )
    assert found
    assert int(found[1]) > REQUEST_GRACE_S + EXIT_GRACE_S


def test_the_variables_are_settings_and_the_user_is_that_of_the_image() -> None:
    known = {field.metadata["env"] for field in dataclasses.fields(Settings) if "env" in field.metadata}
    names = re.findall(r"- name: ([A-Z_]+)$", TEMPLATES["deployment.yaml"] + TEMPLATES["migrate.yaml"], re.M)
    assert {"DATABASE_URL", "SSE_PG_TOKEN_SECRET_FILE"} <= set(names) <= known
    examples = re.findall(r"^#  (SSE_PG_\w+):", (CHART / "values.yaml").read_text(), re.M)
    assert examples
    assert set(examples) <= known
    assert "USER 10001:10001" in (CHECKOUT / "docker" / "Dockerfile").read_text()
    assert "runAsUser: 10001\nrunAsGroup: 10001" in TEMPLATES["_helpers.tpl"]


def test_only_readiness_asks_for_the_database() -> None:
    text = TEMPLATES["deployment.yaml"]
    paths = dict(re.findall(r"(\w+)Probe:\n\s+httpGet:\n\s+path: (\S+)", text))
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


@pytest.mark.skipif(not shutil.which("helm"), reason="helm is not installed; Debian has no package of it")
@pytest.mark.parametrize(
    "more", [(), ("--set", "database.ownerSecret=owner,ingress.enabled=true,ingress.host=a.example")]
)
def test_helm_understands_the_chart(tmp_path: Path, more: tuple[str, ...]) -> None:
    for command in (("lint", "--strict", str(CHART)), ("template", "bus", str(CHART))):
        done = subprocess.run(["helm", *command, *more], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    kinds = {each["kind"] for each in yaml.safe_load_all(done.stdout) if each}
    assert kinds >= {"Deployment", "Service", "PodDisruptionBudget"} | ({"Job", "Ingress"} if more else set())
