"""Programs of PostgreSQL that tests run against the server under test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sse_pg.embedded import find_binaries


def pg_dump(major: int) -> str:
    """Return a pg_dump that reads this server: the one beside its programs, or one that is not older."""
    programs = os.environ.get("SSE_PG_TEST_POSTGRES")
    beside = find_binaries(Path(programs) if programs else None).bin
    for place in (beside / "pg_dump", find_binaries().bin / "pg_dump", shutil.which("pg_dump")):
        if place is None or not Path(place).exists():
            continue
        said = subprocess.run([place, "--version"], capture_output=True, check=True, encoding="utf-8").stdout
        if int(re.search(r"\(PostgreSQL\) (\d+)", said)[1]) >= major:  # type: ignore[index]
            return str(place)
    pytest.skip("there is no pg_dump for this PostgreSQL")
