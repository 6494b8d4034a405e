"""The SQL files, shipped as sse_pg.sql."""
