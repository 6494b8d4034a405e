"""The schema of the bus, as a migration of yours: alembic/versions/0002_sse_pg.py"""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"

# sse-pg migrate --sql --after 0 > alembic/versions/sse_pg_0001.sql
SQL = (Path(__file__).parent / "sse_pg_0001.sql").read_text()


def upgrade() -> None:
    # Without parameters, so that neither : nor % in the text mean anything.
    op.get_bind().exec_driver_sql(SQL, execution_options={"no_parameters": True})


def downgrade() -> None:
    op.execute("DROP SCHEMA sse_pg CASCADE")
