SELECT to_regclass('sse_pg.migrations')
