"""Orders in FastAPI with async SQLAlchemy: uvicorn fastapi_sqlalchemy_app:app"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from sqlalchemy import BigInteger, Identity, bindparam, make_url, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

url = make_url(os.environ["DATABASE_URL"]).set(drivername=os.environ.get("DRIVER", "postgresql+psycopg"))
engine = create_async_engine(url)
session_of = async_sessionmaker(engine)
PUBLISH = text("SELECT sse_pg.publish(:channel, :event_type, :payload)").bindparams(bindparam("payload", type_=JSONB))


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    item: Mapped[str]


class NewOrder(BaseModel):
    item: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def publish(session: AsyncSession, channel: str, event_type: str, payload: object) -> None:
    """Publish in the transaction of the session."""
    await session.execute(PUBLISH, {"channel": channel, "event_type": event_type, "payload": payload})


@app.post("/orders", status_code=201)
async def place(new: NewOrder) -> dict[str, int]:
    async with session_of.begin() as session:  # commits at the end of the block, rolls back on an exception
        order = Order(item=new.item)
        session.add(order)
        await session.flush()  # assigns the id
        await publish(session, "orders", "PLACED", {"id": order.id, "item": order.item})
        number = order.id
        if new.item == "nothing":
            raise HTTPException(422, "nothing cannot be ordered")
    return {"id": number}


@app.get("/orders", response_class=HTMLResponse)
async def orders() -> str:
    """A page of the orders, and the position from which a stream continues after exactly these."""
    async with engine.execution_options(isolation_level="REPEATABLE READ").connect() as conn:
        items = (await conn.execute(select(Order.item).order_by(Order.id))).scalars().all()
        position = (await conn.execute(text("SELECT sse_pg.position()"))).scalar_one()
    shown = json.dumps(list(items)).replace("<", "\\u003c")
    return PAGE.replace("ITEMS", shown).replace("POSITION", position)


PAGE = """<!doctype html>
<body data-position="POSITION">
<ul id="orders"></ul>
<script id="items" type="application/json">ITEMS</script>
<script type="module" src="/static/orders.js"></script>
"""
