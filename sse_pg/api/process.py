"""The numbers of the process itself, under the names that Prometheus clients use. Linux only: they come from /proc.

Rejected: the collector of prometheus_client. It lists the open files one by one, 10 ms for ten thousand streams.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from sse_pg.core.metrics import Numbers

PROC = Path("/proc")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def read() -> Numbers:
    """Return the current numbers; none if there is no /proc."""
    try:
        virtual, resident = (int(pages) * PAGE_BYTES for pages in (PROC / "self/statm").read_text().split()[:2])
        return {
            "process_cpu_seconds_total": {"": time.process_time()},
            "process_resident_memory_bytes": {"": resident},
            "process_virtual_memory_bytes": {"": virtual},
            "process_open_fds": {"": _open_files()},
            "process_max_fds": {"": resource.getrlimit(resource.RLIMIT_NOFILE)[0]},
            "process_start_time_seconds": {"": _started_at()},
        }
    except OSError:
        return {}


def _open_files() -> int:
    # From Linux 6.2 on, the size of the directory is the number of its entries. Before, it is 0.
    return (PROC / "self/fd").stat().st_size or len(os.listdir(PROC / "self/fd"))


def _started_at() -> float:
    """Return the Unix time at which the process started."""
    ticks = int((PROC / "self/stat").read_text().rpartition(")")[2].split()[19])
    lines = (PROC / "stat").read_text().splitlines()
    boot = next(float(line.split()[1]) for line in lines if line.startswith("btime "))
    return boot + ticks / os.sysconf("SC_CLK_TCK")
