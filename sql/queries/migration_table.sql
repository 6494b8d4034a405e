SELECT number FROM sse_pg.migrations
