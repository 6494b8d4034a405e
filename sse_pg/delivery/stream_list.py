"""The open streams of this process, one by one, for operators."""

from __future__ import annotations

import heapq
import time
from typing import Any

from sse_pg.core.event import POSTGRES_EPOCH_S, timestamp
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream import Stream
from sse_pg.delivery.turns import Turns

#: Maximum number of channels that are named for a stream.
MAX_CHANNELS_NAMED = 20
#: Streams that are collected before all but the first of them are left out.
COLLECTED_STREAMS = 1000


async def list_streams(hub: Hub, user: str | None, most: int) -> tuple[int, list[dict[str, Any]]]:
    """Return how many streams are open, and the first of them: those with the most unread bytes, then the oldest.

    With a user, it looks only at the streams of that user.
    """
    count = 0
    first: list[tuple[int, float, int, Stream]] = []
    turns = Turns()
    for stream in list(hub.streams):
        if user is None or user in (stream.user, stream.follows):
            count += 1
            first.append((-stream.unread, stream.opened_at, stream.number, stream))
            if len(first) >= most + COLLECTED_STREAMS:
                first = heapq.nsmallest(most, first)
        await turns.pause()
    listed = []
    for _, _, _, stream in heapq.nsmallest(most, first):
        listed.append(_described(stream))
        await turns.pause()
    return count, listed


def _described(stream: Stream) -> dict[str, Any]:
    opened = time.time() - (time.monotonic() - stream.opened_at)
    return {
        "number": stream.number,
        "userId": stream.user,
        "address": stream.remote,
        "channels": sorted(stream.channels)[:MAX_CHANNELS_NAMED],
        "channelCount": len(stream.channels),
        "followsSubscriptions": stream.follows is not None,
        "since": timestamp(round((opened - POSTGRES_EPOCH_S) * 1_000_000)),
        "unreadBytes": stream.unread,
        "sentBytes": stream.sent_bytes,
        "catchingUp": not stream.live,
    }
