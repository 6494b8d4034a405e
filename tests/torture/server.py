"""``sse-pg`` with sweeps that pause before each stream: a run has few readers, so its groups are small otherwise."""

from __future__ import annotations

from sse_pg.cli.main import main
from sse_pg.delivery import fan_out

if __name__ == "__main__":
    fan_out.MAX_DIRECT_WRITES = 0
    fan_out.SLICE_S = 0.0
    fan_out.STREAMS_PER_CLOCK_READ = 1
    main()
