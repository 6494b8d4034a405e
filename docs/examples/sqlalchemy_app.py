"""Orders in SQLAlchemy with psycopg 3: create_engine("postgresql+psycopg://...")."""

from sqlalchemy import BigInteger, Engine, Identity, bindparam, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

PUBLISH = text("SELECT sse_pg.publish(:channel, :event_type, :payload)").bindparams(bindparam("payload", type_=JSONB))


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    item: Mapped[str]


def place(session: Session, item: str) -> Order:
    """Write the order and its event; if the caller commits, both are stored, otherwise neither."""
    order = Order(item=item)
    session.add(order)
    session.flush()  # assigns the id
    session.execute(
        PUBLISH, {"channel": "orders", "event_type": "PLACED", "payload": {"id": order.id, "item": order.item}}
    )
    return order


def orders_and_position(engine: Engine) -> tuple[list[tuple[int, str]], str]:
    """Return the orders, and the position from which a stream continues after exactly these."""
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        orders = session.execute(select(Order.id, Order.item).order_by(Order.id)).all()
        position = session.execute(text("SELECT sse_pg.position()")).scalar_one()
        return [(number, item) for number, item in orders], position
