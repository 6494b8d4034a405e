"""Orders in Litestar with a psycopg connection pool: uvicorn litestar_app:app"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from litestar import Litestar, post
from litestar.exceptions import ClientException
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

pool = AsyncConnectionPool(os.environ["DATABASE_URL"], open=False)


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    async with pool:
        yield


@dataclass
class NewOrder:
    item: str


@post("/orders")
async def place(data: NewOrder) -> dict[str, int]:
    async with pool.connection() as conn:  # a transaction: commits at the end, rolls back on an exception
        row = await (await conn.execute("INSERT INTO orders (item) VALUES (%s) RETURNING id", [data.item])).fetchone()
        order = {"id": row[0], "item": data.item}
        await conn.execute("SELECT sse_pg.publish('orders', 'PLACED', %s)", [Jsonb(order)])
        if data.item == "nothing":
            raise ClientException("nothing cannot be ordered", status_code=422)
    return {"id": row[0]}


app = Litestar([place], lifespan=[lifespan])
