"""Questions to all servers about their open streams, and the answers: rows that exist only if somebody asks."""

from __future__ import annotations

from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from sse_pg.db.pool import Pool, connection
from sse_pg.db.queries import query


class Question(NamedTuple):
    """What somebody wants to know of all servers."""

    number: int
    user: str | None
    """The user whose streams are meant; None means all streams."""
    most: int
    """How many streams a server lists at most."""


class Answer(NamedTuple):
    """What a server that is up has answered."""

    server_id: int
    name: str
    pid: int
    active_connections: int
    total: int | None
    """How many streams it has; None if it has not answered."""
    streams: list[dict[str, Any]] | None


async def ask(pool: Pool, user: str | None, most: int) -> int:
    """Ask all servers; return the number of the question."""
    async with connection(pool) as conn:
        ((number,),) = await (await conn.execute(query("streams_ask"), (user, most))).fetchall()
    return int(number)


async def is_incomplete(pool: Pool, number: int) -> bool:
    """Return whether a server has not answered a question."""
    async with connection(pool) as conn:
        ((silent,),) = await (await conn.execute(query("streams_silent"), (number,))).fetchall()
    return bool(silent)


async def answers(pool: Pool, number: int) -> list[Answer]:
    """Return what each server has answered."""
    async with connection(pool) as conn:
        return [Answer(*row) for row in await (await conn.execute(query("streams_answers"), (number,))).fetchall()]


async def unanswered(pool: Pool, server_id: int) -> list[Question]:
    """Return the questions that a server has not answered and that still hold."""
    async with connection(pool) as conn:
        return [Question(*row) for row in await (await conn.execute(query("streams_asked"), (server_id,))).fetchall()]


async def answer(pool: Pool, number: int, server_id: int, total: int, streams: list[dict[str, Any]]) -> None:
    """Answer a question."""
    async with connection(pool) as conn:
        await conn.execute(query("streams_answer"), (number, server_id, total, Jsonb(streams)))
