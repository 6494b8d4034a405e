"""Orders in FastAPI with a psycopg connection pool: uvicorn fastapi_app:app"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

pool = AsyncConnectionPool(os.environ["DATABASE_URL"], open=False)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with pool:
        yield


app = FastAPI(lifespan=lifespan)


class NewOrder(BaseModel):
    item: str


@app.post("/orders", status_code=201)
async def place(new: NewOrder) -> dict[str, int]:
    async with pool.connection() as conn:  # a transaction: commits at the end, rolls back on an exception
        row = await (await conn.execute("INSERT INTO orders (item) VALUES (%s) RETURNING id", [new.item])).fetchone()
        order = {"id": row[0], "item": new.item}
        await conn.execute("SELECT sse_pg.publish('orders', 'PLACED', %s)", [Jsonb(order)])
        if new.item == "nothing":
            raise HTTPException(422, "nothing cannot be ordered")
    return {"id": row[0]}
