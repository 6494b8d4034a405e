SELECT sse_pg.last_id()
