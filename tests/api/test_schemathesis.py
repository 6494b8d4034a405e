"""Requests made up from /openapi.json, good and bad: none fails the server, and each answer is a described one."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import aiohttp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import openapi
from support.client import Client
from support.process import environment
from support.server import Launcher

PROGRAM = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
#: Of each operation. Thousands were run by hand; these are to notice what changes.
EXAMPLES = "15"


async def test_no_request_fails_the_server(launch: Launcher, tmp_path: Path) -> None:
    """All but the stream, which never ends."""
    assert PROGRAM is not None, "pip install -e '.[dev]' brings schemathesis"
    server = await launch()
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "run",
        f"{server.url}/openapi.json",
        "--url",
        server.url,
        "--exclude-path",
        "/api/events/stream",
        "--checks",
        "not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance",
        "--phases",
        "coverage,fuzzing",
        "--max-examples",
        EXAMPLES,
        "--generation-deterministic",
        "--suppress-health-check",
        "all",
        "--no-color",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=tmp_path,
        env=environment(),
    )
    assert process.stdout is not None
    said = (await process.stdout.read()).decode()
    assert await process.wait() == 0, said[-6000:]
    assert "passed" in said


TEXTS = st.text(max_size=12) | st.sampled_from(["a", "a,b", "0", "-1", "9" * 30, "1~2", "true", "1,1", "u" * 256])
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=12)


async def test_no_request_fails_a_stream(launch: Launcher) -> None:
    cases: list[tuple[dict[str, str], str]] = []
    names = st.sampled_from(["channels", "userId", "envelope", "lastEventId", "lastEventID", "last_event_id", "x"])

    @settings(
        max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(st.dictionaries(names, TEXTS, max_size=4), HEADER)
    def collect(query: dict[str, str], last: str) -> None:
        cases.append((query, last))

    collect()
    server = await launch()
    seen = set()
    async with Client(server.url) as client:
        for query, last in cases:
            async with client.session.get(
                f"{server.url}/api/events/stream",
                params={name: text.encode(errors="replace").decode() for name, text in query.items()},
                headers={"Last-Event-ID": last.strip().encode("latin-1").decode("utf-8", "surrogateescape")},
                timeout=aiohttp.ClientTimeout(total=None),
            ) as response:
                body = None if response.status == 200 else await response.json(content_type=None)
                openapi.check("GET", "/api/events/stream", response.status, response.content_type, body)
                seen.add(response.status)
                if response.status == 200:
                    assert (await response.content.readline()).startswith(b"retry: ")
                response.close()
    assert {200, 422} <= seen < {200, 403, 422, 429}
