INSERT INTO sse_pg.migrations (number, name) VALUES (%s, %s)
