"""Orders in Starlette with a psycopg connection pool: uvicorn starlette_app:app"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

pool = AsyncConnectionPool(os.environ["DATABASE_URL"], open=False)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with pool:
        yield


async def place(request: Request) -> JSONResponse:
    item = (await request.json())["item"]
    async with pool.connection() as conn:  # a transaction: commits at the end, rolls back on an exception
        row = await (await conn.execute("INSERT INTO orders (item) VALUES (%s) RETURNING id", [item])).fetchone()
        await conn.execute("SELECT sse_pg.publish('orders', 'PLACED', %s)", [Jsonb({"id": row[0], "item": item})])
        if item == "nothing":
            raise HTTPException(422, "nothing cannot be ordered")
    return JSONResponse({"id": row[0]}, 201)


app = Starlette(routes=[Route("/orders", place, methods=["POST"])], lifespan=lifespan)
