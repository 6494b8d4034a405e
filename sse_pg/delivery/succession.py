"""Going on in the log that follows another: after a failover, in a restored backup, in a copy."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sse_pg.core.cursor import trimmed
from sse_pg.core.epoch import Epoch
from sse_pg.core.frontier import Frontier
from sse_pg.core.ranges import Ranges
from sse_pg.db import tail_session
from sse_pg.db.connection import Connection
from sse_pg.delivery.hub import Hub

log = logging.getLogger(__name__)


async def go_on(conn: Connection, hub: Hub, frontier: Frontier, begun: Sequence[Epoch]) -> Frontier:
    """Compare the new log with what was read of the old one; return the frontier to go on with.

    If all of it is there, which is the case after a failover that lost nothing, the streams notice nothing. Otherwise
    they are sent a gap event, and go on with what is there. In both cases the new log is read from where it may have
    something that was not read before.
    """
    certain = begun[0].certain
    for epoch in begun[1:]:
        certain = certain & epoch.certain
    read = frontier.recent.beyond(certain, frontier.position)
    if read is None:
        log.error(
            "another log begins here; of the %d ids that were read, those up to %d are certain, and not all of"
            " those above are in memory to compare", frontier.seen, certain.high,
        )  # fmt: skip
        hub.go_back(hub.position & certain)
        return Frontier(hub.position, 0.0, frontier.counts)
    lost = Ranges((number, number) for number in await tail_session.lost(conn, read))
    # A prepared transaction that was rolled back in the old log only may still commit in this one. It is looked for
    # after the comparison: what was found there is visible, and not in flight.
    lost = lost | (await tail_session.in_flight(conn)).up_to(frontier.seen)
    is_announced = frontier.lose(lost)
    await tail_session.confirm_epochs(conn, trimmed(frontier.seen, frontier.open))
    if is_announced:
        log.error(
            "another log begins here; %d of the ids up to %d are not in it as they were read, of %d events above id %d",
            len(lost), frontier.seen, len(read), certain.high,
        )  # fmt: skip
        hub.go_back(frontier.position)
    else:
        log.warning(
            "another log begins here; all that was read is in it, with %d events above id %d that were compared",
            len(read), certain.high,
        )  # fmt: skip
    return frontier
