"""``sse-pg`` with sweeps that pause before each stream: a run has few readers, so its groups are small otherwise."""

from __future__ import annotations

from sse_pg.cli.main import main
from sse_pg.delivery import hub, sweeper

if __name__ == "__main__":
    hub.MAX_DIRECT_WRITES = 0
    sweeper.SLICE_S = 0.0
    sweeper.STREAMS_PER_CLOCK_READ = 1
    main()
