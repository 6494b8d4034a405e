"""The schema of the bus, as a migration of yours: shop/migrations/0002_sse_pg.py"""

from pathlib import Path

from django.db import migrations

# sse-pg migrate --sql --after 0 > shop/migrations/sse_pg_0001.sql
SQL = (Path(__file__).parent / "sse_pg_0001.sql").read_text()


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]
    operations = [migrations.RunSQL(SQL, reverse_sql="DROP SCHEMA sse_pg CASCADE")]
