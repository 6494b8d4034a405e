"""Answers what ``sse_pg.ask_for_streams()`` asks: which streams are open on this server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import random

import psycopg

from sse_pg.db import stream_questions
from sse_pg.db.connection import summary
from sse_pg.db.pool import Pool
from sse_pg.delivery.hub import Hub
from sse_pg.delivery.stream_list import list_streams
from sse_pg.errors import BusUnavailable

log = logging.getLogger(__name__)

#: Pause between two rounds: every login can send the notification that asks for one.
PAUSE_S = 0.05
#: Average pause before the next attempt if the database is unavailable.
RETRY_PAUSE_S = 0.5


class StreamAnswers:
    """Does what the notification "streams" asks for. It says nothing itself: the questions are rows.

    A question that is sent while the server hears no notifications stays unanswered, and whoever asked sees that.
    """

    def __init__(self, hub: Hub, pool: Pool, server_id: Callable[[], int | None]) -> None:
        """``server_id`` returns this server's number in the registry."""
        self._hub = hub
        self._pool = pool
        self._server_id = server_id
        self._wake = asyncio.Event()

    def heard(self) -> None:
        """Note that somebody has asked."""
        self._wake.set()

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._answer()
                await asyncio.sleep(PAUSE_S)
            except (BusUnavailable, psycopg.Error) as error:
                log.warning("the open streams could not be listed, which is tried again: %s", summary(error))
                self._wake.set()
                await asyncio.sleep(RETRY_PAUSE_S * (0.5 + random()))  # noqa: S311 - jitter

    async def _answer(self) -> None:
        server_id = self._server_id()
        if server_id is None:
            return  # nobody waits for a server that is not registered
        for number, user, most in await stream_questions.unanswered(self._pool, server_id):
            count, listed = await list_streams(self._hub, user, most)
            await stream_questions.answer(self._pool, number, server_id, count, listed)
