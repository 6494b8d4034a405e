DELETE FROM sse_pg.servers WHERE id = %s
