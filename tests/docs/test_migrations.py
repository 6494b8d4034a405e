"""The page about migrations: what ``sse-pg migrate --sql`` prints, run by psql, Alembic and Django."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from support.examples import EXAMPLES
from support.process import one_line, run

CATALOGS = """
SELECT 'relation', c.oid::regclass::text, c.relkind::text || coalesce(c.relacl::text, '')
       || coalesce(c.reloptions::text, '')
  FROM pg_class c WHERE c.relnamespace = 'sse_pg'::regnamespace
UNION ALL
SELECT 'column', a.attrelid::regclass || '.' || a.attname, format_type(a.atttypid, a.atttypmod) || a.attnotnull
       || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relnamespace = 'sse_pg'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = 'sse_pg'::regnamespace
UNION ALL
SELECT 'constraint', k.conrelid::regclass || '.' || k.conname, pg_get_constraintdef(k.oid)
  FROM pg_constraint k WHERE k.connamespace = 'sse_pg'::regnamespace
UNION ALL
SELECT 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '')
  FROM pg_proc p WHERE p.pronamespace = 'sse_pg'::regnamespace
UNION ALL
SELECT 'trigger', t.tgrelid::regclass || '.' || t.tgname, pg_get_triggerdef(t.oid) || t.tgenabled::text
  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
 WHERE c.relnamespace = 'sse_pg'::regnamespace AND NOT t.tgisinternal
UNION ALL
SELECT 'view', v.viewname, v.definition FROM pg_views v WHERE v.schemaname = 'sse_pg'
UNION ALL
SELECT 'migration', number::text, name FROM sse_pg.migrations
ORDER BY 1, 2, 3"""


def catalogs(url: str) -> list[tuple[str, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(CATALOGS).fetchall()


def printed(*words: str, **variables: str) -> str:
    done = run("migrate", "--sql", *words, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": url, "PYTHONWARNINGS": "default"}


def in_psql(url: str, folder: Path) -> None:
    script = printed("--after", "0")
    with psycopg.connect(url) as conn:
        # As a tool does: in its own transaction, in which its own statements follow.
        conn.execute("CREATE TABLE my_versions (n integer)")
        conn.execute(script.encode())
        conn.execute("INSERT INTO my_versions VALUES (2)")


def in_alembic(url: str, folder: Path) -> None:
    versions = folder / "alembic" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").write_text(
        "from alembic import op\nrevision, down_revision = '0001', None\n"
        "def upgrade():\n    op.execute('CREATE TABLE orders (id bigint)')\n"
    )
    shutil.copy(EXAMPLES / "alembic_migration.py", versions / "0002_sse_pg.py")
    (versions / "sse_pg_0001.sql").write_text(printed("--after", "0"))
    (folder / "alembic" / "env.py").write_text(
        "import os\nfrom alembic import context\nfrom sqlalchemy import create_engine, URL\n"
        "from psycopg.conninfo import conninfo_to_dict\n"
        "parts = conninfo_to_dict(os.environ['DATABASE_URL'])\n"
        "url = URL.create('postgresql+psycopg', query={k: str(v) for k, v in parts.items()})\n"
        "with create_engine(url).connect() as connection:\n"
        "    context.configure(connection=connection)\n"
        "    with context.begin_transaction():\n        context.run_migrations()\n"
    )
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = alembic\npath_separator = os\n")
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    done = subprocess.run(command, cwd=folder, env=environment(url), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)


def in_django(url: str, folder: Path) -> None:
    migrations = folder / "shop" / "migrations"
    migrations.mkdir(parents=True)
    (folder / "shop" / "__init__.py").touch()
    (migrations / "__init__.py").touch()
    (migrations / "0001_initial.py").write_text(
        "from django.db import migrations\nclass Migration(migrations.Migration):\n    operations = []\n"
    )
    shutil.copy(EXAMPLES / "django_migration.py", migrations / "0002_sse_pg.py")
    (migrations / "sse_pg_0001.sql").write_text(printed("--after", "0"))
    database = conninfo_to_dict(url)
    name = database.pop("dbname")
    (folder / "shop_settings.py").write_text(
        f"INSTALLED_APPS = ['shop']\nDATABASES = {{'default': {{'ENGINE': 'django.db.backends.postgresql', "
        f"'NAME': {name!r}, 'OPTIONS': {database!r}}}}}\n"
    )
    command = [sys.executable, "-m", "django", "migrate", "--settings", "shop_settings", "--pythonpath", str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment(url), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("apply", [in_psql, in_alembic, in_django], ids=["psql", "alembic", "django"])
def test_the_schema_is_that_of_migrate(
    apply: object, database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    assert callable(apply)
    apply(empty_database_url, tmp_path)
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SHOW search_path").fetchone() == ('"$user", public',)
    made = catalogs(empty_database_url)
    assert len(made) > 200
    assert made == catalogs(database_url)
    assert run("migrate", DATABASE_URL=empty_database_url).stdout == "the schema is up to date\n"


def test_a_database_is_asked_for_what_it_lacks(database_url: str, empty_database_url: str) -> None:
    assert printed(DATABASE_URL=empty_database_url) == printed("--after", "0") == printed()
    assert printed(DATABASE_URL=database_url) == ""
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SELECT to_regnamespace('sse_pg')").fetchone() == (None,)


def test_after_belongs_to_sql() -> None:
    done = run("migrate", "--after", "0")
    assert done.returncode == 2
    assert "--after can only be used with --sql" in done.stderr


def test_a_database_that_cannot_be_reached_is_said() -> None:
    assert "cannot be reached" in one_line(run("migrate", "--sql", DATABASE_URL="host=/nowhere dbname=none"))
