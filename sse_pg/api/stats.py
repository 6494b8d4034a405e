"""GET /api/events/stats: the bus at a glance, for the dashboard and for curl."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from sse_pg.api.overview import Overview
from sse_pg.bus import Bus
from sse_pg.core.event import POSTGRES_EPOCH_S, timestamp
from sse_pg.core.meter import HISTORY_S, Second
from sse_pg.http.problem import json_response
from sse_pg.http.query import query_integer, require_known

#: Maximum number of channels in a response: the most recently active ones.
MAX_CHANNELS = 100
#: Time for which the database's part of a response is reused for further requests.
DATABASE_CACHE_S = 0.5


class StatsApi:
    """The state of this server from its memory, and of all servers from the database."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = asyncio.Lock()
        self._queried_at = float("-inf")
        self._queried: tuple[tuple[Any, ...], list[tuple[Any, ...]]] | None = None
        self._overview = Overview(bus.store)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of this module."""
        return [web.get("/api/events/stats", self.stats)]

    async def stats(self, request: web.Request) -> web.Response:
        """Return the current numbers, and those of the last seconds one by one."""
        self._bus.access.require_observer(await self._bus.access.identify(request))
        require_known(request.query, "seconds")
        seconds = query_integer(request.query, "seconds", 60, 0, HISTORY_S)
        async with self._lock:
            log, servers = await self._query()
            overview = await self._overview.show()
        version, newest, oldest, purged_to, settled_to, partitions, publishers = log
        bus, settings, now = self._bus, self._bus.settings, time.time()
        size = bus.maintenance.log_size
        body = {
            "time": _moment(now),
            "database": {"version": version},
            "log": {
                "newestId": newest,
                "oldestId": oldest,
                "purgedTo": purged_to,
                "settledTo": settled_to,
                "partitions": partitions,
                "partitionSize": settings.partition_size,
                "keepEvents": settings.keep_events,
                "keepHours": settings.keep_hours,
                "bytes": size.bytes,
                "oldestAt": None if size.oldest_at is None else _moment(size.oldest_at),
            },
            "publishersInFlight": publishers,
            "openGaps": len(bus.tail.open),
            "server": self._server(newest),
            "servers": [self._of(row, newest) for row in servers],
            "totals": {"events": bus.hub.meter.events, "deliveries": bus.hub.meter.deliveries},
            "recent": [_second(second) for second in bus.hub.meter.recent if second.at >= now - seconds],
            "channels": self._channels(now),
            **overview,
        }
        return json_response(body)

    async def _query(self) -> tuple[tuple[Any, ...], list[tuple[Any, ...]]]:
        if self._queried is None or time.monotonic() - self._queried_at > DATABASE_CACHE_S:
            self._queried = await self._bus.store.stats(), await self._bus.store.servers_state()
            self._queried_at = time.monotonic()
        return self._queried

    def _server(self, newest: int) -> dict[str, object]:
        """Return the current state of the server that serves the request."""
        bus = self._bus
        read_at = bus.tail.read_at
        return {
            "id": bus.registry.server_id,
            "position": bus.hub.position.text,
            "lag": max(0, newest - bus.hub.position.high),
            "secondsSinceRead": None if read_at is None else round(time.monotonic() - read_at, 3),
            "ringEvents": len(bus.hub.ring),
            "notReady": bus.why_not_ready(),
        }

    def _of(self, row: tuple[Any, ...], newest: int) -> dict[str, object]:
        number, name, pid, version, started, active, position, asleep, awake, polls = row
        if number == self._bus.registry.server_id:
            active, position = len(self._bus.hub.streams), self._bus.hub.position.high
        return {
            "id": number,
            "name": name,
            "pid": pid,
            "version": version,
            "startedAt": timestamp(started),
            "activeConnections": active,
            "position": position,
            "lag": max(0, newest - position),
            # A server that changes from one to the other shows both for a moment; publishers ring then.
            "bell": "polling" if polls else "asleep" if asleep else "awake" if awake else "silent",
        }

    def _channels(self, now: float) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for name, channel in reversed(self._bus.hub.meter.channels.items()):
            if len(found) == MAX_CHANNELS:
                break
            found.append(
                {
                    "channel": name,
                    "rate": round(channel.rate(now), 3),
                    "events": channel.events,
                    "last": {
                        "id": channel.last.id,
                        "eventType": channel.last.event_type,
                        "createdAt": timestamp(channel.last.created_at),
                    },
                }
            )
        return found


def _moment(unix: float) -> str:
    return timestamp(round((unix - POSTGRES_EPOCH_S) * 1_000_000))


def _second(second: Second) -> dict[str, object]:
    p50, p99 = second.delay(0.5), second.delay(0.99)
    return {
        "at": second.at,
        "events": second.events,
        "deliveries": second.deliveries,
        "delayP50Ms": None if p50 is None else round(p50 * 1000, 2),
        "delayP99Ms": None if p99 is None else round(p99 * 1000, 2),
    }
